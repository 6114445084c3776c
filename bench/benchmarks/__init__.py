"""Benchmarks for asv. Kernels are the cost model's choice: wisdom would make commits differ by what was tuned."""

import os
from pathlib import Path

os.environ["FASTCONV_WISDOM"] = os.devnull
# asv installs every commit into the same folder, and Numba's cache looks at no other file than a kernel's own.
if "ASV_COMMIT" in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(Path(os.environ["ASV_ENV_DIR"], "numba", os.environ["ASV_COMMIT"]))

"""Benchmarks for asv. Kernels are the cost model's choice: wisdom would make commits differ by what was tuned."""

import os

os.environ["FASTCONV_WISDOM"] = os.devnull

"""Tests of the GPU kernels in Numba's simulator; `tests/test_cuda_simulated.py` runs them in a process of their own."""

from __future__ import annotations

import os
from importlib.util import find_spec

# The simulator is on for a whole process or not at all. The benchmark for GPUs compares with PyTorch.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore_glob = [] if SIMULATED else ["test_*.py"]
collect_ignore = [] if find_spec("torch") else ["test_bench_gpu.py"]

if SIMULATED:
    import lanes

    lanes.install()

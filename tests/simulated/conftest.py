"""Tests of the GPU kernels in Numba's simulator; `tests/test_cuda_simulated.py` runs them in a process of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import pytest

import fastconv.cuda

# The simulator is on for a whole process or not at all. The benchmark for GPUs compares with PyTorch.
collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["test_*.py"]
collect_ignore = [] if find_spec("torch") else ["test_bench_gpu.py"]


@pytest.fixture(autouse=True, scope="session")
def _quick_barriers() -> Iterator[None]:
    """The simulator polls the threads that wait at a barrier, and would keep the interpreter for 5 ms at a time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(3e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _no_module_grows() -> None:
    """The simulator's threads walk through modules' globals, to which a first warning would add its registry."""
    for info in iter_modules(fastconv.cuda.__path__, "fastconv.cuda."):
        import_module(info.name)  # not by a test itself
    for name, module in list(sys.modules.items()):
        if name.startswith(("fastconv", "test_")):
            vars(module).setdefault("__warningregistry__", {})

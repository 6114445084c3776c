"""Arrays of the simulated GPU over memory that ends at a forbidden page, and kernels to run on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import guarded

from fastconv import algorithms
from fastconv.cuda.arrays import DeviceArray, library_of
from fastconv.problem import Problem


def on_gpu(array: np.ndarray) -> DeviceArray:
    """The same memory as a kernel gets it; a copy whose end touches a forbidden page is `on_gpu(guarded(array))`."""
    fake = FakeCUDAArray(array)
    library = library_of(fake)
    assert library is not None
    return library.describe(fake)


def sent(array: np.ndarray | None) -> DeviceArray | None:
    """A guarded copy."""
    return None if array is None else on_gpu(guarded(array))


def make(problem: Problem, name: str, params: dict[str, int] | None = None) -> Any:
    """The kernel of an algorithm with its last parameters, or these."""
    code = algorithms.module(problem.operation, name, "cuda")
    assert code.unsupported(problem) is None
    return code.make(problem, code.space(problem)[-1] if params is None else params, 1)

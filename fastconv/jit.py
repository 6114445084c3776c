"""The one place that knows how Numba compiles for fastconv.

Every Numba option of the CPU library is set here: kernels are cached on disk, release the GIL,
never check bounds (the tests do, with guard pages) and keep IEEE semantics (no fast-math flag).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, from_dtype, njit, types

OPTIONS = {"cache": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}


@cache
def source_stamp() -> str:
    """Hash of every CPU kernel source.

    Numba's disk cache notices an edit of a kernel's own file only. Kernels close over this stamp, and
    Numba hashes closure values into its key, so an edit of a file that they call recompiles them too.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("cpu/*.py"), Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def jit(*args: Any, **options: Any) -> Any:
    """``numba.njit`` with the project's options; also usable with an explicit signature."""
    return njit(*args, **{**OPTIONS, "nogil": True, **options})


def inline(function: Callable) -> Any:
    """A helper that kernels of the same package call; compiled as part of its callers."""
    return njit(function, error_model="numpy", boundscheck=False, fastmath=False, nogil=True)


def job_kernel(geometry: np.dtype) -> Callable[[Callable], Any]:
    """Compile ``job(x, weight, bias, out, scratch, geometry, index)`` to a C function pointer.

    The first five arguments are addresses, as int64 (int64 + uint64 would make a float64 in Numba),
    `geometry` is a pointer to one record of the given dtype, and `index` says which job of the launch to
    do. A job runs on one thread; spreading jobs over threads is `fastconv.cpu.launch`'s business, so
    each kernel is compiled only once.
    """
    signature = types.void(*[types.int64] * 5, types.CPointer(from_dtype(geometry)), types.int64)
    return cfunc(signature, **OPTIONS)


def address_kernel(arguments: int) -> Callable[[Callable], Any]:
    """Compile a function of int64 arguments (addresses and sizes) to a C function pointer."""
    return cfunc(types.void(*[types.int64] * arguments), **OPTIONS)

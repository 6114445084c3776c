"""The one place that knows how Numba compiles for fastconv.

Every Numba option of the CPU library is set here: kernels are cached on disk, release the GIL,
never check bounds (the tests do, with guard pages) and keep IEEE semantics (no fast-math flag).
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, from_dtype, njit, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

from fastconv.jit_cache import cache_of

if not Path(__file__).is_file():  # kernels on disk are known by their sources
    raise ImportError(f"fastconv runs from a folder, not from an archive: unpack, or install, {Path(__file__).parent}")

OPTIONS = {"error_model": "numpy", "boundscheck": False, "fastmath": False}


def kept_over_forks(lock: Any) -> Any:
    """`lock`, which a fork waits for: the child would never get it back from a thread that it does not have.

    A fork takes those registered last first, so of two that are held together the inner one comes first.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


kept_over_forks(global_compiler_lock)


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


@global_compiler_lock
@cache
def _spare_scipy() -> None:
    """Keep Numba from importing SciPy, which takes longer than everything else that a first call does.

    While Numba registers what it can compile it imports ``scipy.linalg``, only to learn whether that works
    (``numba.np.arraymath._HAVE_BLAS``). Where SciPy is installed the answer is taken for granted; functions
    that call BLAS look again when they are compiled.
    """
    from numba.np import linalg

    real = getattr(linalg, "ensure_blas", None)  # there up to Numba 0.68 at least
    try:
        installed = find_spec("scipy") is not None
    except ValueError:  # a stand-in for the module, without a spec
        installed = False
    if real is None or "numba.np.arraymath" in sys.modules or not installed:
        return
    linalg.ensure_blas = lambda: None
    try:
        import numba.np.arraymath as arraymath
    finally:
        linalg.ensure_blas = real
    arraymath.ensure_blas = real


def jit(function: Callable, signature: Any = None, **options: Any) -> Any:
    """``numba.njit`` with the project's options, kept on disk; compiled now for an explicit signature, if given."""
    _spare_scipy()
    compiled = njit(function, nogil=True, **OPTIONS, **options)
    if config.DISABLE_JIT:
        return compiled
    compiled._cache = cache_of(function)  # what its enable_caching does, with a cache of ours
    if signature is not None:
        compiled.compile(signature)
        compiled.disable_compile()
    return compiled


class _LinkedCode(JITCodeLibrary):
    """Code that is linked into its callers, and only there optimised and made machine code.

    Numba would do both for each helper too, which takes a third of the time that a kernel needs.
    """

    def finalize(self) -> None:
        """Be ready to be linked."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """No address: nothing is there to be called."""
        return 0

    @property
    def codegen(self) -> Any:
        """Where Numba would register constants of machine code."""
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Nothing: the callers' constants are registered."""


class _HelperCompiler(Compiler):
    """Numba's compiler, for code that only compiled code calls."""

    def __init__(self, typingctx: Any, targetctx: Any, *rest: Any) -> None:
        super().__init__(typingctx, targetctx, *rest)
        self.state.library = _LinkedCode(targetctx.codegen(), "helper")


def inline(function: Callable) -> Any:
    """A helper that kernels of the same package call; compiled as part of its callers."""
    alone = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _HelperCompiler}
    return njit(function, nogil=True, **OPTIONS, **alone)


class CFunction:
    """A function for Numba to compile to a C function pointer, or load, when the address is first asked for.

    So a kernel can be made to see how it would run, its workspace for instance, at no cost.
    """

    _compiling = kept_over_forks(threading.Lock())

    def __init__(self, function: Callable, signature: Any) -> None:
        self._function, self._signature = function, signature
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Where the code is; it stays there as long as this object lives."""
        if self._compiled is None:
            with self._compiling:
                if self._compiled is None:
                    _spare_scipy()
                    self._compiled = self._compile()
        return self._compiled.address

    def _compile(self) -> CFunc:
        """What ``numba.cfunc`` does, with a cache of ours."""
        compiled: Any = CFunc(self._function, normalize_signature(self._signature), {}, OPTIONS)
        compiled._cache = cache_of(self._function)
        compiled.compile()
        return compiled


def job_kernel(geometry: np.dtype) -> Callable[[Callable], CFunction]:
    """Compile ``job(x, weight, bias, out, scratch, geometry, index)`` to a C function pointer.

    The first five arguments are addresses, as int64 (int64 + uint64 would make a float64 in Numba),
    `geometry` is a pointer to one record of the given dtype, and `index` says which job of the launch to
    do. A job runs on one thread; spreading jobs over threads is `fastconv.cpu.launch`'s business, so
    each kernel is compiled only once.
    """
    return _c_function(*[types.int64] * 5, types.CPointer(from_dtype(geometry)), types.int64)


def record_kernel(record: np.dtype) -> Callable[[Callable], CFunction]:
    """Compile ``job(scratch, record, index)`` to a C function pointer.

    Like `job_kernel`, but everything that a job reads or writes, arrays included (by address), is in the
    record; for `fastconv.cpu.launch.run_jobs`.
    """
    return _c_function(types.int64, types.CPointer(from_dtype(record)), types.int64)


def address_kernel(arguments: int) -> Callable[[Callable], CFunction]:
    """Compile a function of int64 arguments (addresses and sizes) to a C function pointer."""
    return _c_function(*[types.int64] * arguments)


def _c_function(*arguments: types.Type) -> Callable[[Callable], CFunction]:
    return lambda function: CFunction(function, types.void(*arguments))

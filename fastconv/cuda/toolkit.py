"""The one place that knows how Numba compiles for a GPU, and the only module that imports its CUDA target.

A kernel is a Python function of flat pointers and numbers. For a GPU it is compiled, with no driver and no device
needed, to machine code (`cubin`); with ``NUMBA_ENABLE_CUDASIM=1`` it runs as Python in Numba's simulator.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, cuda, float32, float64, int32, int64, types, uint16, uint32, uint64

__all__ = ["SIMULATED", "cuda", "float32", "float64", "int32", "int64", "types", "uint16", "uint32", "uint64"]

SIMULATED = bool(config.ENABLE_CUDASIM)
_PACKAGES = ("numba", "llvmlite", "numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink")

Capability = tuple[int, int] | tuple[int, int, str]  # (9, 0, "a") names the features of that chip alone


@cache
def require() -> None:
    """Raise unless kernels can be compiled here, or the simulator is on.

    Raises
    ------
    ImportError
        Says what to install.
    """
    if SIMULATED:
        return
    missing = [name for name in ("numba_cuda", "cuda.core", "platformdirs") if not _installed(name)]
    if missing:
        raise ImportError(f"arrays on a GPU need {', '.join(missing)}: pip install 'fastconv[cuda]'")


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def pointer(real: Any) -> Any:
    """The type of a flat pointer to elements of a type; the simulator passes a `SimulatedPointer`."""
    return types.CPointer(real)


class SimulatedPointer:
    """A flat pointer in the simulator: memory that may only be touched where there is some."""

    __slots__ = ("memory",)

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.memory):
            raise IndexError(f"a kernel touches element {index} of {len(self.memory)}")
        return index

    def __getitem__(self, index: int) -> Any:
        return self.memory[self._checked(index)]

    def __setitem__(self, index: int, value: Any) -> None:
        self.memory[self._checked(index)] = value


def numbers(kind: Any, fields: type) -> Any:
    """The type of a named tuple whose fields are all of one type."""
    return types.NamedUniTuple(kind, len(fields._fields), fields)  # type: ignore[attr-defined]


def device(function: Callable) -> Any:
    """A function that kernels call, compiled as part of them."""
    if not SIMULATED:
        return cuda.jit(function, device=True, inline="always")
    # The simulator puts its `cuda` into a function's module for each call, which takes longer than most of them.
    return cuda.jit(function, device=True) if "cuda" in function.__code__.co_names else function


def intrinsic(simulated: Callable) -> Callable[[Callable], Any]:
    """`numba.extending.intrinsic` for the GPU, as a decorator; in the simulator kernels call `simulated` instead."""
    if SIMULATED:
        return lambda emitting: simulated
    from numba.cuda.extending import intrinsic

    return intrinsic


def literal(kind: Any) -> Any:
    """The value of an intrinsic's argument that must be known when a kernel is compiled, from its type."""
    from numba.cuda.core.errors import RequireLiteralValue

    if not hasattr(kind, "literal_value"):
        raise RequireLiteralValue(kind)
    return kind.literal_value


def _version(package: str) -> str:
    """That of a package as it was installed, or "none": a toolkit of the system's has no package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def source_stamp() -> str:
    """Hash of every source of this package and of the packages that compile it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for name in _PACKAGES:
        digest.update(f"{name} {_version(name)}".encode())
    digest.update(sys.version.encode())
    return digest.hexdigest()


def cubin(
    function: Callable, arguments: tuple, capability: Capability, *, name: str, launch_bounds: Any = None
) -> bytes:
    """Machine code of a kernel for GPUs of a compute capability, compiled as ``@cuda.jit`` does.

    Parameters
    ----------
    function : callable
        The kernel.
    arguments : tuple of Numba types
        `pointer` and `numbers` make those of arrays and of named tuples.
    capability : (int, int) or (int, int, "a")
        Such as (8, 0).
    name : str
        Of the entry in the code.
    launch_bounds : int or (int, int), optional
        Most threads of a block, and fewest blocks that a multiprocessor must be able to hold.
    """
    require()
    from cuda.core import Linker, LinkerOptions, ObjectCode

    code, _ = cuda.compile(
        function, types.void(*arguments), device=False, abi="numba", abi_info={"abi_name": name}, cc=capability,
        output="ltoir", launch_bounds=launch_bounds,
    )  # fmt: skip
    arch = "sm_" + "".join(map(str, capability))
    options = LinkerOptions(arch=arch, link_time_optimization=True)
    return Linker(ObjectCode.from_ltoir(code), options=options).link("cubin").code

"""Loads machine code onto a GPU and starts kernels there: the only module that talks to the CUDA driver.

Numba's own launches look at every argument again; here, all that a launch needs is laid out once.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from fastconv.cuda.store import stored_cubin

if TYPE_CHECKING:
    from fastconv.cuda.kernel import Kernel, Launch

_KINDS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}

_functions: dict[tuple, Any] = {}
_loading = threading.Lock()


def capability(device: int) -> tuple[int, int]:
    """Compute capability of a device."""
    from cuda.core import Device

    major, minor = Device(device).compute_capability
    return major, minor


def _function(kernel: Kernel, device: int) -> Any:
    """The kernel's handle on a device; loaded once."""
    from cuda.core import ObjectCode

    key = (kernel, device)
    found = _functions.get(key)
    if found is None:
        with _loading:
            code = ObjectCode.from_cubin(stored_cubin(kernel, capability(device)))
            found = code, int(code.get_kernel(kernel.name).handle)
            _functions[key] = found  # the code lives as long as the handle is in use
    return found[1]


def _primary_context(device: int) -> Any:
    """The context that PyTorch, CuPy and Numba share on a device."""
    from cuda.bindings import driver as cu

    _checked(cu.cuInit(0))
    code, context = cu.cuDevicePrimaryCtxRetain(device)
    _checked((code,))
    return context


class Prepared:
    """A launch with its arguments laid out as the driver wants them; only the addresses change."""

    def __init__(self, launch: Launch, device: int) -> None:
        kernel = launch.kernel
        from cuda.bindings import driver as cu

        self._cu = cu
        self.context, self.function = _primary_context(device), _function(kernel, device)
        self.grid = (*launch.grid, 1, 1)[:3]
        self.threads, self.shared = kernel.threads, launch.shared
        self.values = _scalars(kernel.arguments, launch.values)

    def __call__(self, pointers: list[int], stream: int) -> None:
        cu = self._cu
        # The driver reads the arguments before it returns, but without the GIL: each call has its own.
        addresses = (ctypes.c_void_p * len(pointers))(*pointers)
        base, size = ctypes.addressof(addresses), ctypes.sizeof(ctypes.c_void_p)
        where = [base + size * i for i in range(len(pointers))] + [ctypes.addressof(v) for v in self.values]
        arguments = (ctypes.c_void_p * len(where))(*where)
        _checked(cu.cuCtxPushCurrent(self.context))  # a thread may have no context yet, or that of another GPU
        try:
            result = cu.cuLaunchKernel(
                self.function, *self.grid, self.threads, 1, 1, self.shared, stream, ctypes.addressof(arguments), 0
            )
        finally:
            cu.cuCtxPopCurrent()
        _checked(result)


def _scalars(kinds: tuple, values: tuple) -> list[Any]:
    """Each number as the C value that the kernel takes; a named tuple is one for each of its fields."""
    found: list[Any] = []
    for kind, value in zip(kinds[len(kinds) - len(values) :], values, strict=True):
        if isinstance(value, tuple):
            found += [_KINDS[str(kind.dtype)](number) for number in value]
        else:
            found.append(_KINDS[str(kind)](value))
    numbers = [number for value in values for number in (value if isinstance(value, tuple) else (value,))]
    for number, as_c in zip(numbers, found, strict=True):
        if isinstance(number, int) and as_c.value != number:
            raise ValueError(f"a size or stride must fit the kernel's integers, got {number}; copy the array first")
    return found


def _checked(result: tuple) -> None:
    code = result[0]
    if int(code):
        raise RuntimeError(f"the CUDA driver refused: {code}")

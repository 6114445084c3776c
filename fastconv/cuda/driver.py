"""Loads machine code onto a GPU and starts kernels there: the only module that talks to the CUDA driver.

A launch through the driver's function takes under a microsecond; Numba's own takes twenty, for it looks at every
argument again.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from fastconv.cuda.store import stored_cubin
from fastconv.cuda.toolkit import SIMULATED

if TYPE_CHECKING:
    from fastconv.cuda.kernel import Kernel, Launch

_FREE_SHARED = 48 << 10  # bytes of dynamic shared memory that need no permission
_KINDS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}

_functions: dict[tuple, Any] = {}
_loading = threading.Lock()


def capability(device: int) -> tuple[int, int]:
    """Compute capability of a device."""
    from cuda.core import Device

    major, minor = Device(device).compute_capability
    return major, minor


def device_name() -> str:
    """Name of the current device, such as "NVIDIA H100 80GB HBM3"; "simulator" in Numba's."""
    if SIMULATED:
        return "simulator"
    from cuda.core import Device

    return str(Device().name)


def _function(kernel: Kernel, device: int, shared: int) -> Any:
    """The kernel's handle on a device; loaded once, with permission for as much shared memory as asked for."""
    from cuda.bindings import driver as cu
    from cuda.core import ObjectCode

    key = (kernel.name, id(kernel), device, shared > _FREE_SHARED and shared)
    with _loading:
        if key not in _functions:
            code = ObjectCode.from_cubin(stored_cubin(kernel, capability(device)))
            function = int(code.get_kernel(kernel.name).handle)
            if shared > _FREE_SHARED:
                what = cu.CUkernel_attribute if hasattr(cu, "CUkernel_attribute") else cu.CUfunction_attribute
                limit = what.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(cu.cuKernelSetAttribute(limit, shared, function, device))
            _functions[key] = (code, function)  # the code lives as long as the handle is in use
    return _functions[key][1]


class Prepared:
    """A launch with its arguments laid out as the driver wants them; only the addresses change."""

    def __init__(self, launch: Launch, device: int) -> None:
        kernel = launch.kernel
        self.function = _function(kernel, device, launch.shared)
        self.grid = (*launch.grid, 1, 1)[:3]
        self.threads, self.shared = kernel.threads, launch.shared
        self.values = _scalars(kernel.arguments, launch.values)

    def __call__(self, pointers: list[int], stream: int) -> None:
        from cuda.bindings import driver as cu

        # The driver reads the arguments before it returns, but without the GIL: each call has its own.
        addresses = (ctypes.c_void_p * len(pointers))(*pointers)
        base, size = ctypes.addressof(addresses), ctypes.sizeof(ctypes.c_void_p)
        where = [base + size * i for i in range(len(pointers))] + [ctypes.addressof(v) for v in self.values]
        arguments = (ctypes.c_void_p * len(where))(*where)
        _checked(
            cu.cuLaunchKernel(
                self.function, *self.grid, self.threads, 1, 1, self.shared, stream, ctypes.addressof(arguments), 0
            )
        )


def _scalars(kinds: tuple, values: tuple) -> list[Any]:
    """Each number as the C value that the kernel takes; a named tuple is one for each of its fields."""
    found = []
    for kind, value in zip(kinds[len(kinds) - len(values) :], values, strict=True):
        if isinstance(value, tuple):
            found += [_KINDS[str(kind.dtype)](number) for number in value]
        else:
            found.append(_KINDS[str(kind)](value))
    return found


def _checked(result: tuple) -> None:
    code = result[0]
    if int(code):
        raise RuntimeError(f"the CUDA driver refused a launch: {code}")

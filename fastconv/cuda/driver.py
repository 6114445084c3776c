"""Loads machine code onto a GPU and starts kernels there: the only module that talks to the CUDA driver.

What tuning and plans want of the driver is here too: attributes, events, copies.

Numba's own launches look at every argument again; here, all that a launch needs is laid out once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastconv.cuda.store import stored_cubin

if TYPE_CHECKING:
    from fastconv.cuda.kernel import Kernel, Launch

_KINDS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}

_SHARED_BYTES = 48 << 10  # of a block, unless its kernel is allowed more

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


def primary_context(device: int) -> Any:
    """The context that PyTorch, CuPy and Numba share on a device."""
    from cuda.bindings import driver as cu

    _checked(cu.cuInit(0))
    return _checked(cu.cuDevicePrimaryCtxRetain(device))


def attributes(device: int) -> tuple[str, tuple[int, int], int, int, int, int]:
    """Name, compute capability, multiprocessors, clock in kHz, bytes of L2, and the driver's CUDA version.

    Raises
    ------
    RuntimeError
        If there is no driver, or no such device.
    """
    from cuda.bindings import driver as cu

    _checked(cu.cuInit(0))
    number = _checked(cu.cuDeviceGet(device))
    kinds, prefix = cu.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_"
    major, minor, count, clock, l2 = (
        _checked(cu.cuDeviceGetAttribute(getattr(kinds, prefix + name), number))
        for name in ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT", "CLOCK_RATE",
                     "L2_CACHE_SIZE")
    )  # fmt: skip
    name = _checked(cu.cuDeviceGetName(256, number)).split(b"\0")[0].decode()
    return name, (major, minor), count, clock, l2, _checked(cu.cuDriverGetVersion())


def registers(kernel: Kernel, device: int = 0) -> int:
    """Registers that a thread of a kernel takes."""
    from cuda.bindings import driver as cu

    attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS
    return _checked(cu.cuKernelGetAttribute(attribute, int(_function(kernel, device)), device))


def free_bytes(device: int = 0) -> int:
    """Bytes of a device's memory that nobody has taken."""
    with _current(primary_context(device)) as cu:
        free, _ = cu.cuMemGetInfo()[1:]
        return free


@contextmanager
def _current(context: Any) -> Iterator[Any]:
    """The driver's functions, in a context: a thread may have none yet, or that of another GPU."""
    from cuda.bindings import driver as cu

    _checked(cu.cuCtxPushCurrent(context))
    try:
        yield cu
    finally:
        cu.cuCtxPopCurrent()


def clear(pointer: int, size: int, context: Any) -> None:
    """Write zeros to so many bytes, on the default stream."""
    with _current(context) as cu:
        _checked(cu.cuMemsetD8Async(pointer, 0, size, 0))


def copy(target: int, source: int, size: int, device: int, stream: int) -> None:
    """Copy so many bytes from one place on a device to another, on a stream."""
    with _current(primary_context(device)) as cu:
        _checked(cu.cuMemcpyDtoDAsync(target, source, size, stream))


def wait(device: int, stream: int) -> None:
    """Return when all is done that was started on a stream."""
    with _current(primary_context(device)) as cu:
        _checked(cu.cuStreamSynchronize(stream))


class Events:
    """Two points in the default stream's work, to know the time between them."""

    def __init__(self, context: Any) -> None:
        self._context = context
        with _current(context) as cu:
            self._pair = [_checked(cu.cuEventCreate(0)) for _ in range(2)]

    def record(self, which: int) -> None:
        """Put one of them behind what was started so far."""
        with _current(self._context) as cu:
            _checked(cu.cuEventRecord(self._pair[which], 0))

    def elapsed_ns(self) -> float:
        """Wait for the second; nanoseconds from the first to it."""
        with _current(self._context) as cu:
            _checked(cu.cuEventSynchronize(self._pair[1]))
            return 1e6 * _checked(cu.cuEventElapsedTime(*self._pair))

    def __del__(self) -> None:
        with suppress(Exception), _current(self._context) as cu:  # at the interpreter's end there may be no driver
            for event in self._pair:
                cu.cuEventDestroy(event)


class _Arguments:
    """Memory for the addresses of one launch.

    Attributes
    ----------
    addresses : array of void *
        To be written before a launch.
    place : int
        Address of what the driver reads: where each argument lies, addresses first.
    """

    __slots__ = ("_where", "addresses", "place")

    def __init__(self, count: int, values: list[Any]) -> None:
        self.addresses: Any = (ctypes.c_void_p * count)()
        first, size = ctypes.addressof(self.addresses), ctypes.sizeof(ctypes.c_void_p)
        where = [first + size * i for i in range(count)] + [ctypes.addressof(value) for value in values]
        self._where = (ctypes.c_void_p * len(where))(*where)
        self.place = ctypes.addressof(self._where)


class Prepared:
    """A launch with its arguments laid out as the driver wants them; only the addresses change."""

    def __init__(self, launch: Launch, device: int) -> None:
        from cuda.bindings import driver as cu

        kernel = launch.kernel
        self._context, handle = primary_context(device), _function(kernel, device)
        if launch.shared > _SHARED_BYTES:
            attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(cu.cuKernelSetAttribute(attribute, launch.shared, handle, device))
        grid = (*launch.grid, 1, 1)[:3]
        self._fixed = cu.CUfunction(handle), *grid, kernel.threads, 1, 1, launch.shared  # the driver takes a CUkernel
        self._launch, self._current = cu.cuLaunchKernel, cu.cuCtxGetCurrent
        self._count = len(kernel.arguments) - len(launch.values)
        self._values = _scalars(kernel.arguments, launch.values)
        self._spare: list[_Arguments] = []

    def __call__(self, addresses: Sequence[int], stream: int) -> None:
        """Start the kernel on arrays at these addresses."""
        try:  # the driver reads arguments without the GIL: launches of several threads have their own
            arguments = self._spare.pop()
        except IndexError:
            arguments = _Arguments(self._count, self._values)
        arguments.addresses[:] = addresses
        if self._current()[1] == self._context:
            result = self._launch(*self._fixed, stream, arguments.place, 0)
        else:  # the thread has no context yet, or that of another GPU
            with _current(self._context):
                result = self._launch(*self._fixed, stream, arguments.place, 0)
        self._spare.append(arguments)
        if result[0]:
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


def _checked(result: tuple) -> Any:
    """The value behind the code of a call of the driver, None if there is none."""
    code = result[0]
    if int(code):
        raise RuntimeError(f"the CUDA driver refused: {code}")
    return result[1] if len(result) > 1 else None

"""Arrays on a GPU as users bring them: PyTorch tensors, arrays of CuPy and Numba, and all that can say where they are.

An array is described once, as a `DeviceArray`, without a copy, and results are made by the library that the input
came from, on the stream that this library works on.
"""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fastconv.arrays import dense_strides
from fastconv.cuda import dlpack
from fastconv.cuda.toolkit import SIMULATED, SimulatedPointer, cuda, require
from fastconv.problem import ITEMSIZE, MemoryFormat

DTYPES = ("float32", "float64", "float16", "bfloat16")
_ITEMSIZE = {**ITEMSIZE, "int64": 8, "int32": 4, "int16": 2}


@dataclass(slots=True, eq=False)  # made in a third of the time of a frozen one
class DeviceArray:
    """Where an array lies on a GPU; never changed.

    Attributes
    ----------
    pointer : int
        Address of the first element.
    shape, strides : tuple of int
        Strides in elements, none negative.
    dtype : str
        NumPy's name of it.
    owner : object
        What keeps the memory alive.
    stream : int
        Handle of the stream that its owner works on; 0 is the default stream.
    device : int
        Number of the GPU.
    read_only : bool
        Whether its owner says that nobody may write to it.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    owner: Any
    stream: int = 0
    device: int = 0
    read_only: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self.dtype]

    @property
    def end(self) -> int:
        """Address behind the last element."""
        return self.pointer + self.itemsize * self.reach

    @property
    def reach(self) -> int:
        """Elements from the first to behind the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def simulated(self) -> SimulatedPointer:
        """The memory as kernels get it in the simulator, where it is the host's; 16-bit elements as their bits."""
        memory = (ctypes.c_byte * (self.itemsize * self.reach)).from_address(self.pointer)
        return SimulatedPointer(
            np.ndarray(self.reach, np.uint16 if self.itemsize == 2 else self.dtype, memoryview(memory))
        )


def memory_format(shape: tuple[int, ...], strides: tuple[int, ...]) -> MemoryFormat:
    """The format of an (N, C, H, W) array, as `fastconv.arrays.memory_format` says it of an array of NumPy's."""
    dense = dense_strides(shape, "contiguous")
    if all(size == 1 or step == wanted for size, step, wanted in zip(shape, strides, dense, strict=True)):
        return "contiguous"
    return "channels_last" if strides[1] < strides[3] else "contiguous"


class Library(ABC):
    """What fastconv asks of a library of GPU arrays.

    The addresses of new arrays are multiples of 16, as those of all memory on a GPU.
    """

    @abstractmethod
    def owns(self, x: Any) -> bool:
        """Whether `x` is an array of this library, on a GPU."""

    @abstractmethod
    def describe(self, x: Any) -> DeviceArray:
        """Where `x` lies."""

    @abstractmethod
    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        """An uninitialised array with these strides in elements, on the device of `like`."""

    def sight(self, x: Any) -> tuple[tuple, int, int] | None:
        """All that kernels and checks depend on but the address, then the address, and the stream; None: `describe`."""
        array = self.describe(x)
        layout = (array.shape, array.strides, array.dtype, array.device, array.read_only, array.pointer % 16)
        return layout, array.pointer, array.stream

    def address(self, x: Any) -> int:
        """That of the first element."""
        return self.describe(x).pointer

    def written(self, x: Any) -> Any:
        """What a caller gets whose array, given or new, is `x`, after the kernel that writes it was started."""
        return x


class _Torch(Library):
    def owns(self, x: Any) -> bool:
        return "torch" in _packages[type(x)] and getattr(x, "is_cuda", False)

    def describe(self, x: Any) -> DeviceArray:
        if x.requires_grad and self._torch.is_grad_enabled():
            raise ValueError("tensors must not require gradients, which fastconv would not pass on; use x.detach()")
        device = x.get_device()
        dtype, stream = self._names[x.dtype], self._current_stream(device)
        return DeviceArray(x.data_ptr(), tuple(x.shape), x.stride(), dtype, x, stream, device)

    def sight(self, x: Any) -> tuple[tuple, int, int] | None:
        if x.requires_grad and self._torch.is_grad_enabled():
            return None
        address, device = x.data_ptr(), x.get_device()
        return (x.shape, x.stride(), x.dtype, device, address % 16), address, self._current_stream(device)

    def address(self, x: Any) -> int:
        return x.data_ptr()

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        dtype_of_torch = getattr(self._torch, dtype)
        if self._quick_new and like.get_device() == self._torch._C._cuda_getDevice():
            return self._quick_new(shape, strides, dtype_of_torch)
        return self._torch.empty_strided(shape, strides, dtype=dtype_of_torch, device=like.device)

    @cached_property
    def _torch(self) -> Any:
        import torch

        return torch

    @cached_property
    def _quick_new(self) -> Any:
        """What compiled code makes arrays with, on the current device, in half the time; None if this is not there."""
        inner = self._torch._C
        guards = getattr(getattr(inner, "_dynamo", None), "guards", None)
        return getattr(guards, "_empty_strided_cuda", None) if hasattr(inner, "_cuda_getDevice") else None

    @cached_property
    def _names(self) -> dict[Any, str]:
        """NumPy's name of each of PyTorch's dtypes."""
        found = {value for value in vars(self._torch).values() if isinstance(value, self._torch.dtype)}
        return {dtype: str(dtype).removeprefix("torch.") for dtype in found}

    @cached_property
    def _current_stream(self) -> Callable[[int], int]:
        """Handle of a device's current stream; what compiled code asks, in a tenth of the time of the public call."""
        asked = self._torch.cuda.current_stream
        return getattr(self._torch._C, "_cuda_getCurrentRawStream", lambda device: asked(device).cuda_stream)


class _CuPy(Library):
    def owns(self, x: Any) -> bool:
        return "cupy" in _packages[type(x)]

    def describe(self, x: Any) -> DeviceArray:
        import cupy

        strides = tuple(step // x.itemsize for step in x.strides)
        stream = cupy.cuda.get_current_stream().ptr
        return DeviceArray(x.data.ptr, x.shape, strides, str(x.dtype), x, stream, x.device.id)

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        import cupy

        with like.device:
            flat = cupy.empty(math.prod(shape), dtype)
        return cupy.ndarray(shape, dtype, flat.data, tuple(step * flat.itemsize for step in strides))


class _Numba(Library):
    """Numba's device arrays, those of its simulator among them, and all others that say where they are."""

    def owns(self, x: Any) -> bool:
        return hasattr(x, "__cuda_array_interface__") or (SIMULATED and "numba" in _packages[type(x)])

    def describe(self, x: Any) -> DeviceArray:
        if SIMULATED:
            strides = tuple(step // x.dtype.itemsize for step in x.strides)
            return DeviceArray(x._ary.ctypes.data, tuple(x.shape), strides, str(x.dtype), x)
        where = x.__cuda_array_interface__
        shape, dtype = tuple(where["shape"]), np.dtype(where["typestr"])
        steps = where.get("strides")
        if steps is None:
            steps = tuple(dtype.itemsize * step for step in row_major(shape))
        strides = tuple(step // dtype.itemsize for step in steps)
        stream, device = where.get("stream") or 0, cuda.current_context().device.id
        pointer, read_only = where["data"]
        return DeviceArray(pointer, shape, strides, str(dtype), x, stream, device, read_only)

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        itemsize = np.dtype(dtype).itemsize
        if SIMULATED:
            from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

            host = np.empty(math.prod(shape), dtype)
            host.view(np.uint8)[:] = 0xFF  # NaN: what a kernel does not write is seen
            return FakeCUDAArray(np.lib.stride_tricks.as_strided(host, shape, [itemsize * step for step in strides]))
        return cuda.device_array(shape, dtype, strides=tuple(itemsize * step for step in strides))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array that fills its memory, its last axis the nearest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Packages(dict[type, frozenset[str]]):
    """Names of the packages that a type and its bases come from."""

    def __missing__(self, kind: type) -> frozenset[str]:
        found = self[kind] = frozenset(base.__module__.split(".")[0] for base in kind.__mro__)
        return found


_packages = _Packages()


class _DLPack(Library):
    """Arrays that can only be handed over, and then borrowed; see `fastconv.cuda.dlpack`."""

    def owns(self, x: Any) -> bool:
        if isinstance(x, (dlpack.Borrowed, dlpack.Lent)):
            return True
        return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == dlpack.CUDA

    def sight(self, x: Any) -> tuple[tuple, int, int] | None:
        return None  # an array is borrowed once for each call, and for all of it

    def describe(self, x: Any) -> DeviceArray:
        if isinstance(x, dlpack.Lent):
            return replace(x.array, owner=x)
        lender = x if isinstance(x, dlpack.Borrowed) else dlpack.Borrowed(x)
        return DeviceArray(
            lender.pointer, lender.shape, lender.strides, lender.dtype, lender, 0, lender.device, lender.read_only
        )

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        ours = isinstance(like, (dlpack.Borrowed, dlpack.Lent))
        namespace = like.namespace if ours else dlpack.namespace_of(like)
        device = like.array.device if isinstance(like, dlpack.Lent) else int(like.__dlpack_device__()[1])
        storage = "int16" if dtype == "bfloat16" else dtype  # NumPy has no name for it
        with cuda.gpus[device]:
            made = _NUMBA.describe(_NUMBA.new(shape, strides, storage, like))
        return dlpack.Lent(replace(made, dtype=dtype, device=device), namespace, _order)

    def written(self, x: Any) -> Any:
        if isinstance(x, dlpack.Lent):
            return x.namespace.from_dlpack(x)
        with cuda.gpus[int(x.__dlpack_device__()[1])]:
            cuda.synchronize()  # nobody says on which stream the caller goes on with an array of its own
        return x


def _order(stream: int, device: int) -> None:
    """Make a stream wait for the default stream."""
    with cuda.gpus[device]:
        event = cuda.event(timing=False)
        event.record()
        event.wait(cuda.external_stream(stream))


_TORCH, _NUMBA = _Torch(), _Numba()
_OTHERS = (_CuPy(), _NUMBA, _DLPack())


def library_of(x: Any) -> Library | None:
    """The library whose GPU array `x` is; None if it is no such array. What makes arrays itself is its own library."""
    if "torch" in _packages[type(x)] and getattr(x, "is_cuda", False):  # `owns`, without a call
        return _TORCH
    if isinstance(x, (np.ndarray, Library)):
        return None if isinstance(x, np.ndarray) else x
    return next((library for library in _OTHERS if library.owns(x)), None)


def _either(choices: tuple) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last


def as_device_array(
    x: Any, name: str, ndim: tuple[int, ...] | None = None, dtypes: tuple[str, ...] = DTYPES
) -> DeviceArray:
    """Describe a GPU array.

    Raises
    ------
    ImportError
        If Numba's CUDA target is not installed; says what to install.
    TypeError
        If `x` is not on a GPU, or its elements are of another type.
    ValueError
        If it has another number of axes, or negative strides.
    """
    library = library_of(x)
    if library is None:
        raise TypeError(f"{name} must be on the GPU, as the other arrays are, got {type(x).__name__}")
    require()
    array = library.describe(x)
    if array.dtype not in dtypes:
        raise TypeError(f"{name} must be {_either(dtypes)}, got {array.dtype}")
    if ndim is not None and len(array.shape) not in ndim:
        raise ValueError(f"{name} must have {_either(ndim)} axes, got shape {array.shape}")
    if min(array.strides, default=0) < 0:
        raise ValueError(f"{name} must not have negative strides, got {array.strides}; copy it first")
    return array


def scratch(size: int, like: DeviceArray, dtype: str | None = None) -> DeviceArray:
    """Uninitialised memory for so many elements, of the library and stream of an array, and by default of its dtype."""
    library, dtype = library_of(like.owner), dtype or like.dtype
    assert library is not None
    storage = "int16" if dtype in ("float16", "bfloat16") else dtype  # kernels see their bits
    made = library.describe(library.new((size,), (1,), storage, like.owner))
    return replace(made, dtype=dtype, stream=like.stream)  # of most libraries, new arrays are on stream 0

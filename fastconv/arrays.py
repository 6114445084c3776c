"""Arrays as users bring them: rank, dtype and memory format checked or read from the strides."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from fastconv.problem import MemoryFormat
from fastconv.sizes import shown

_DLPACK_CUDA = 2  # DLPack's number of this kind of device
_CACHE_LINE = 64  # bytes
_WORTH_ALIGNING = 1 << 13  # elements
_MOST_BYTES = 1 << 47  # that a process can have addresses for

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def memory_format(x: np.ndarray) -> MemoryFormat:
    """The format of an (N, C, H, W) array: "channels_last" where channels are the nearest neighbours.

    An array that is both (one channel, or one pixel) counts as "contiguous", as in torch.
    """
    if x.flags.c_contiguous:
        return "contiguous"
    return "channels_last" if abs(x.strides[1]) < abs(x.strides[3]) else "contiguous"


def empty(shape: tuple[int, ...], dtype: Any, format: MemoryFormat) -> np.ndarray:
    """An uninitialised (N, C, H, W) array in the given memory format."""
    return allocator(shape, dtype, format)()


def allocator(shape: tuple[int, ...], dtype: Any, format: MemoryFormat) -> Callable[[], np.ndarray]:
    """`empty` for many arrays that are alike."""
    dtype, size = np.dtype(dtype), math.prod(shape)
    check_room(size * dtype.itemsize, shape)
    strides = tuple(dtype.itemsize * step for step in dense_strides(shape, format))
    if size > _WORTH_ALIGNING:
        return partial(_aligned, size * dtype.itemsize, shape, dtype, strides)
    if format == "contiguous":
        return partial(np.empty, shape, dtype)
    view: Callable[..., np.ndarray] = np.ndarray  # faster than transposing
    return partial(view, shape, dtype, None, 0, strides)


def dense_strides(shape: tuple[int, ...], format: str) -> tuple[int, ...]:
    """Strides in elements of an (N, C, H, W) array that fills its memory."""
    _, c, h, w = shape
    return (c * h * w, 1, w * c, c) if format == "channels_last" else (c * h * w, h * w, w, 1)


def aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that starts at a cache line: no vector in it straddles two of them."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    check_room(size, shape)
    return _aligned(size, shape, dtype, None)


def _aligned(size: int, shape: tuple[int, ...], dtype: np.dtype, strides: tuple[int, ...] | None) -> np.ndarray:
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = -_address(_first_byte(memory.data)) % _CACHE_LINE  # in half the time of memory.ctypes.data
    return np.ndarray(shape, dtype, memory, start, strides)


_address, _first_byte = ctypes.addressof, ctypes.c_char.from_buffer


def as_dtype(dtype: Any, name: str = "dtype") -> np.dtype:
    """float32 or float64, in native byte order, from whatever NumPy takes for one of them.

    Raises
    ------
    TypeError
        For anything else.
    """
    try:
        found = np.dtype(dtype)
    except Exception:  # NumPy has several
        found = None
    if dtype is None or found is None or found not in FLOATS or not found.isnative:
        got = shown(dtype) if dtype is None or found is None else str(found)
        raise TypeError(f"{name} must be float32 or float64, got {got}")
    return found


def on_gpu(x: Any) -> bool:
    """Whether `x` is an array on a GPU, of PyTorch, CuPy, Numba or whatever says so as they do."""
    if isinstance(x, np.ndarray):
        return False
    if hasattr(x, "is_cuda"):  # a tensor of PyTorch, which makes the whole interface when it is asked for it
        return bool(x.is_cuda)
    if hasattr(x, "__cuda_array_interface__") or type(x).__module__.startswith("numba.cuda"):
        return True
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == _DLPACK_CUDA


def as_floats(x: Any, name: str, ndim: tuple[int, ...] | None = None) -> np.ndarray:
    """`x` as a float32 or float64 array of one of the given ranks (any if None), not copied if it is one.

    Raises
    ------
    TypeError
        If the elements are not float32 or float64 in native byte order.
    ValueError
        If the rank is wrong.
    """
    array = x if type(x) is np.ndarray else plain(x, name)
    if array.dtype not in FLOATS or not array.dtype.isnative:
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}; use {name}.astype(numpy.float32)")
    if ndim is not None and array.ndim not in ndim:
        wanted = " or ".join(str(n) for n in ndim)
        raise ValueError(f"{name} must have {wanted} axes, got shape {array.shape}")
    return array if array.flags.aligned else array.copy(order="K")


def plain(x: Any, name: str) -> np.ndarray:
    """`x` as an array of NumPy's own class: subclasses may index and compare as they like.

    Raises
    ------
    TypeError
        If `x` is on a GPU, or masked.
    TypeError, ValueError
        If NumPy makes no array of it.
    """
    if on_gpu(x):
        raise TypeError(
            f"{name} is on a GPU, got {type(x).__name__}; it must be on the CPU: this function takes no other arrays "
            "so far, or the other arguments are there"
        )
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be ignored; use {name}.filled(...)")
    try:
        return np.asarray(x)
    except (TypeError, ValueError) as error:  # a ragged list, for one
        raise type(error)(f"{name} must be an array or what NumPy makes one of, got {shown(x)}: {error}") from None


def as_image(x: Any, name: str) -> tuple[np.ndarray, bool]:
    """`x` as (N, C, H, W), and whether it had the batch axis; (C, H, W) gets one.

    Raises
    ------
    TypeError, ValueError
        As `as_floats`; also if an axis other than N is empty.
    """
    array = as_floats(x, name, (3, 4))
    image = array if array.ndim == 4 else array[None]
    if 0 in image.shape[1:]:
        raise ValueError(f"{name} must not have an empty axis other than N, got shape {array.shape}")
    return image, array.ndim == 4


def check_room(size: int, shape: tuple[int, ...]) -> None:
    """Raise MemoryError for an array of `size` bytes that no process can address."""
    if not size:  # NumPy counts the other axes
        size = math.prod(n or 1 for n in shape)
    if size > _MOST_BYTES:
        raise MemoryError(f"an array of shape {shape} takes {size} bytes, more than a process can address")


def check_out(out: Any, shape: tuple[int, ...], dtype: Any, *inputs: np.ndarray) -> np.ndarray:
    """Check that results of `shape` and `dtype` can be written to `out` while `inputs` are read.

    Returns
    -------
    array
        `out`, or a view of it where it is of a subclass.

    Raises
    ------
    TypeError
        If `out` is not an array of that dtype.
    ValueError
        If its shape is wrong, it is read-only or not aligned, its elements share memory with each other
        or with an input.
    """
    plain_class = type(out) is np.ndarray
    if not plain_class and (not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray)):
        raise TypeError(f"out must be a NumPy array of {np.dtype(dtype)}, got {type(out)}")
    if out.dtype != dtype:
        raise TypeError(f"out must be a NumPy array of {np.dtype(dtype)}, got {out.dtype}")
    if out.shape != tuple(shape):
        raise ValueError(f"out must have shape {tuple(shape)}, got {out.shape}")
    if not out.flags.writeable or not out.flags.aligned:
        raise ValueError("out must be writeable and aligned")
    if overlaps_itself(out.shape, out.strides, out.itemsize):
        raise ValueError(f"out has elements that share memory, with strides {out.strides} for shape {out.shape}")
    if any(np.may_share_memory(out, x) and _overlap(out, x) for x in inputs):
        raise ValueError("out must not overlap x or another input; give a separate array")
    return out if plain_class else out.view(np.ndarray)


def target(
    out: Any, shape: tuple[int, ...], batched: bool, dtype: Any, format: MemoryFormat, *inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a kernel writes, an array of `shape` (N, C, H, W), and what its caller returns.

    The latter is `out`, or a new array; both are without N if the caller's input was (`batched` False). Raises
    as `check_out`.
    """
    if out is None:
        result = empty(shape, dtype, format)
        return result, result if batched else result[0]
    result = check_out(out, shape if batched else shape[1:], dtype, *inputs)
    return result if batched else result[None], out


@lru_cache
def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether strides are too short for their axes (sufficient for arrays made by slicing)."""
    if 0 in shape:
        return False
    reach = itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # numpy's stub knows -1 and 0 only
    except np.exceptions.TooHardError:
        return True

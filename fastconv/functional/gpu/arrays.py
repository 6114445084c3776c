"""Arguments and results of functions on a GPU: what convolution, pooling and local convolution share.

Arrays are not copied, results are made by the library of the input, and kernels are started on the stream that this
library works on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from fastconv.arrays import overlaps_itself
from fastconv.cuda.arrays import DTYPES, DeviceArray, Library, as_device_array, library_of, memory_format
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.problem import MemoryFormat

FLOATS = ("float32", "float64")  # what kernels of other layers than convolution and pooling compute


def as_image(x: Any, name: str, dtypes: tuple[str, ...] = DTYPES) -> tuple[DeviceArray, tuple[int, ...]]:
    """`x` as (N, C, H, W), and which of these axes it had not.

    Raises
    ------
    TypeError, ValueError
        As `as_device_array`; also if an axis other than N is empty.
    """
    array = as_device_array(x, name, (3, 4), dtypes)
    if 0 in array.shape[-3:]:
        raise ValueError(f"{name} must not have an empty axis other than N, got shape {array.shape}")
    missing = (0,) if len(array.shape) == 3 else ()
    return with_axes(array, missing), missing


def with_axes(array: DeviceArray, axes: tuple[int, ...]) -> DeviceArray:
    """The same memory with axes of size 1 put in at these places, counted in the result."""
    if not axes:
        return array
    shape, strides = list(array.shape), list(array.strides)
    for axis in axes:
        strides.insert(axis, max(1, array.reach))
        shape.insert(axis, 1)
    return replace(array, shape=tuple(shape), strides=tuple(strides))


def format_of(image: DeviceArray) -> MemoryFormat:
    """The memory format of an (N, C, H, W) array."""
    return memory_format(image.shape, image.strides)


def check_fit(image: DeviceArray, name: str, **others: DeviceArray | None) -> None:
    """Raise unless the others have the dtype of an image, and are on its GPU and its stream."""
    for other, array in others.items():
        if array is None:
            continue
        if array.dtype != image.dtype:
            raise TypeError(f"{other} must have the dtype of {name}, {image.dtype}, got {array.dtype}")
        check_place(image, name, **{other: array})


def check_place(image: DeviceArray, name: str, **others: DeviceArray) -> None:
    """Raise unless the others are on the GPU and the stream of an image."""
    for other, array in others.items():
        if (array.device, array.stream) != (image.device, image.stream):
            raise ValueError(
                f"{other} must be on the GPU and the stream of {name}, {image.device} and {image.stream}, got "
                f"{array.device} and {array.stream}"
            )


def prepared(calls: CallCache, key: tuple, describe: Callable[[], Any], algorithm: str | None) -> tuple[Any, Any]:
    """The kernel and the problem of a call by what decides them; `describe` makes a problem seen for the first time."""
    try:
        return calls[*key, algorithm]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        problem = describe()
        found = kernel_for(problem, algorithm)[0], problem
        calls.remember((*key, algorithm), found)
        return found


class Target(NamedTuple):
    """Where a kernel writes.

    Attributes
    ----------
    array : DeviceArray
        With the axes that the kernel wants.
    answer : object
        What the caller gets once the kernel was started: see `finished`.
    library : Library
        Whose array that is.
    """

    array: DeviceArray
    answer: Any
    library: Library

    def finished(self) -> Any:
        """The answer, after the kernel that writes it was started."""
        return self.library.written(self.answer)


def target(
    out: Any, shape: tuple[int, ...], strides: tuple[int, ...], missing: tuple[int, ...], like: Any, inputs: tuple
) -> Target:
    """`out` if it fits, else a new array of the library of `like`.

    Parameters
    ----------
    out : array or None
    shape, strides : tuple of int
        What the kernel writes; the strides, in elements, are those of a new array.
    missing : tuple of int
        Axes of it that the caller's arrays have not.
    like : array
        Whose library makes a new array.
    inputs : tuple of DeviceArray or None
        What is read meanwhile; the first has the dtype of the result.

    Raises
    ------
    TypeError, ValueError
        If `out` has another dtype or shape, is elsewhere, or shares memory with itself or an input.
    """
    image, wanted = inputs[0], _without(shape, missing)
    if out is None:
        return new(shape, strides, missing, image.dtype, like)
    array = as_device_array(out, "out")
    if array.dtype != image.dtype:
        raise TypeError(f"out must have the dtype of the input, {image.dtype}, got {array.dtype}")
    if array.shape != wanted:
        raise ValueError(f"out must have shape {wanted}, got {array.shape}")
    check_place(image, "the input", out=array)
    if array.read_only:
        raise ValueError("out must be writeable")
    if overlaps_itself(array.shape, array.strides, 1):
        raise ValueError(f"out has elements that share memory, with strides {array.strides} for shape {array.shape}")
    for x in (x for x in inputs if x is not None):
        if array.pointer < x.end and x.pointer < array.end:
            raise ValueError("out must not overlap x or another input; give a separate array")
    library = library_of(out)
    assert library is not None
    return Target(with_axes(array, missing), out, library)


def new(shape: tuple[int, ...], strides: tuple[int, ...], missing: tuple[int, ...], dtype: str, like: Any) -> Target:
    """A new array of the library of `like`; the parameters are those of `target`."""
    library = library_of(like)
    assert library is not None
    made = library.new(_without(shape, missing), _without(strides, missing), dtype, like)
    return Target(with_axes(library.describe(made), missing), made, library)


def _without(values: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value for axis, value in enumerate(values) if axis not in axes) if axes else values

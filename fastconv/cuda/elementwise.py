"""Elementwise functions of whole arrays on a GPU: activations, dropout, sums, squared errors, and copies.

Functions write where they are told to, on the stream of their first array, and do not wait. But for `copy`, arrays
fill their memory, all in the same order, so that an element is found by its number.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer, types

RELU, RELU_BACKWARD, LEAKY_RELU, LEAKY_RELU_BACKWARD, DROPOUT, ADD, DIVIDE, FILL, RELU6, RELU6_BACKWARD = range(10)
OPERATIONS = range(10)
THREADS = 256
MOST_AXES = 6
_MOST_BLOCKS = 1 << 16
_RANDOM_BITS = 53

uint64 = types.uint64


def blocks_for(elements: int) -> tuple[int]:
    """A grid with a thread for each element, or as many as are worth having: threads go on to further elements."""
    return (min(-(-elements // THREADS), _MOST_BLOCKS),)


def apply(
    op: int, first: DeviceArray | None, second: DeviceArray | None, out: DeviceArray, *, constant: float = 0.0,
    threshold: int = 0, seed: int = 0,
) -> None:  # fmt: skip
    """Compute `out` by one of the operations above, element by element.

    Parameters
    ----------
    op : int
        ``RELU`` max(x, 0), ``RELU_BACKWARD`` y where the output x is positive, ``LEAKY_RELU`` x where it is positive,
        else constant * x, ``LEAKY_RELU_BACKWARD`` y where x is positive, else constant * y, ``DROPOUT``, ``ADD``
        x + y, ``DIVIDE`` x / constant, ``FILL`` the constant, ``RELU6`` min(max(x, 0), constant), ``RELU6_BACKWARD`` y
        where the output x is between 0 and the constant.
    first, second : DeviceArray or None
        x and y, None for one that the operation does not read; of the dtype of `out`.
    out : DeviceArray
        float32 or float64.
    constant : float
        The slope, the divisor, the upper bound, or the scale of what dropout keeps.
    threshold, seed : int
        Of dropout: element number i becomes 0 where 53 random bits, the splitmix64 generator's at `seed` and i
        (Steele et al., 2014), are less than `threshold`. The CPU's layers drop the same elements.
    """
    values = (out.size, threshold, seed, float(constant))
    launch = Launch(elementwise_kernel(op, out.dtype), blocks_for(out.size), values)
    launch((first, second, out), out.stream)


class Axes(NamedTuple):
    """Sizes or strides of `MOST_AXES` axes; sizes in front are 1."""

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int

    @classmethod
    def of(cls, values: tuple[int, ...], missing: int) -> Axes:
        """With `missing` for the axes that there are not."""
        return cls(*[missing] * (MOST_AXES - len(values)), *values)


def copy(source: DeviceArray, out: DeviceArray) -> None:
    """Copy between arrays of the same shape, of up to `MOST_AXES` axes, any strides and float32 or float64 each.

    Raises
    ------
    ValueError
        If shapes differ, or there are more axes.
    """
    if source.shape != out.shape:
        raise ValueError(f"out must have the shape of source, {source.shape}, got {out.shape}")
    if len(out.shape) > MOST_AXES:
        raise ValueError(f"source must have at most {MOST_AXES} axes, got shape {source.shape}")
    steps = Axes.of(source.strides, 0), Axes.of(out.strides, 0)
    launch = Launch(
        copy_kernel(source.dtype, out.dtype), blocks_for(out.size), (out.size, Axes.of(out.shape, 1), *steps)
    )
    launch((source, out), source.stream)


def squared_error(output: DeviceArray, target: DeviceArray, losses: DeviceArray, gradient: DeviceArray) -> None:
    """``(output - target)**2`` of each element, and its gradient with respect to `output`."""
    launch = Launch(squared_error_kernel(output.dtype), blocks_for(output.size), (output.size,))
    launch((output, target, losses, gradient), output.stream)


@device
def _random(seed, index):
    """53 random bits, the same for the same seed and index."""
    z = uint64(seed) + uint64(index + 1) * uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return int64((z ^ (z >> uint64(31))) >> uint64(64 - _RANDOM_BITS))


@cache
def elementwise_kernel(op: int, dtype: str) -> Kernel:
    """The kernel of `apply`."""
    real = getattr(types, dtype)

    def elementwise(a, b, out, count, threshold, seed, constant):
        i, step, zero = cuda.grid(1), cuda.gridsize(1), real(0)
        while i < count:
            if op == RELU:
                out[i] = zero if a[i] < zero else a[i]  # NaN compares false, so it passes through
            elif op == RELU_BACKWARD:
                out[i] = zero if a[i] <= zero else b[i]
            elif op == RELU6:
                out[i] = zero if a[i] < zero else constant if a[i] > constant else a[i]
            elif op == RELU6_BACKWARD:
                out[i] = zero if a[i] <= zero or a[i] >= constant else b[i]
            elif op == LEAKY_RELU:
                out[i] = a[i] if a[i] > zero else constant * a[i]
            elif op == LEAKY_RELU_BACKWARD:
                out[i] = b[i] if a[i] > zero else constant * b[i]
            elif op == DROPOUT:
                out[i] = a[i] * (constant if _random(seed, i) >= threshold else zero)
            elif op == ADD:
                out[i] = a[i] + b[i]
            elif op == DIVIDE:
                out[i] = a[i] / constant
            else:
                out[i] = constant
            i += step

    array = pointer(real)
    return Kernel(elementwise, (array, array, array, int64, int64, int64, real), (op, dtype), threads=THREADS)


@cache
def copy_kernel(source_dtype: str, dtype: str) -> Kernel:
    """The kernel of `copy`."""
    real = getattr(types, dtype)

    def copy_strided(source, out, count, sizes, s, o):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < count:
            rest = index
            f, rest = rest % sizes.f, rest // sizes.f
            e, rest = rest % sizes.e, rest // sizes.e
            d, rest = rest % sizes.d, rest // sizes.d
            c, rest = rest % sizes.c, rest // sizes.c
            b, a = rest % sizes.b, rest // sizes.b
            start = a * s.a + b * s.b + c * s.c + d * s.d + e * s.e + f * s.f
            out[a * o.a + b * o.b + c * o.c + d * o.d + e * o.e + f * o.f] = real(source[start])
            index += step

    axes = numbers(int64, Axes)
    kinds = (pointer(getattr(types, source_dtype)), pointer(real), int64, axes, axes, axes)
    return Kernel(copy_strided, kinds, (source_dtype, dtype), threads=THREADS)


@cache
def squared_error_kernel(dtype: str) -> Kernel:
    """The kernel of `squared_error`."""
    real = getattr(types, dtype)

    def squared_errors(output, target, losses, gradient, count):
        i, step = cuda.grid(1), cuda.gridsize(1)
        while i < count:
            difference = output[i] - target[i]
            losses[i] = difference * difference
            gradient[i] = real(2) * difference
            i += step

    array = pointer(real)
    return Kernel(squared_errors, (array, array, array, array, int64), (dtype,), threads=THREADS)

"""Elementwise functions of whole arrays, in one pass over memory: activations, dropout, sums.

Results have the memory format of the first array. Arrays are cut into pieces of fixed size, whatever the
number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.arrays import aligned, as_floats, memory_format
from fastconv.cpu.launch import run_jobs
from fastconv.cpu.memory import get, put
from fastconv.jit import inline, record_kernel, source_stamp

RELU, RELU_BACKWARD, LEAKY_RELU, LEAKY_RELU_BACKWARD, DROPOUT, ADD, NORM_SHARE, RELU6, RELU6_BACKWARD = range(9)
CHUNK = 1 << 15  # elements of one job
_RANDOM_BITS = 53


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    return _apply(RELU, x)


def relu_backward(output: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of `relu`'s input from its output: 0 where the output is 0."""
    return _apply(RELU_BACKWARD, output, grad_output)


def relu6(x: np.ndarray) -> np.ndarray:
    """min(max(x, 0), 6); NaN stays NaN."""
    return _apply(RELU6, x, constant=6.0)


def relu6_backward(output: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of `relu6`'s input from its output: 0 where the output is 0 or 6."""
    return _apply(RELU6_BACKWARD, output, grad_output, constant=6.0)


def leaky_relu(x: np.ndarray, slope: float) -> np.ndarray:
    """x where it is positive, else slope * x."""
    return _apply(LEAKY_RELU, x, constant=slope)


def leaky_relu_backward(x: np.ndarray, grad_output: np.ndarray, slope: float) -> np.ndarray:
    """Gradient of `leaky_relu`'s input. For a slope >= 0 the output may stand for `x`: both have the same sign."""
    return _apply(LEAKY_RELU_BACKWARD, x, grad_output, constant=slope)


def dropout(x: np.ndarray, p: float, seed: int, last: bool) -> np.ndarray:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p).

    Which ones is a function of the seed and of the place in memory, in an array that is channels-last or not
    as `last` says. So the gradient is the same function of the gradient, and no mask is stored.
    """
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return _apply(DROPOUT, x, constant=scale, seed=seed, threshold=round(p * 2**_RANDOM_BITS), last=last)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b."""
    return _apply(ADD, a, b, "b")


def norm_share(grad_output: np.ndarray, output: np.ndarray, norm_type: float) -> np.ndarray:
    """What an Lp norm passes on to x**(p-1): ``grad_output * output**(1-p)``, or nothing where the norm is 0."""
    return _apply(NORM_SHARE, grad_output, output, "output", constant=norm_type - 1)


def _apply(
    op: int, first: np.ndarray, second: np.ndarray | None = None, name: str = "grad_output", *,
    last: bool | None = None, constant: float = 0.0, threshold: int = 0, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Run one of the functions above on arrays of any strides.

    Raises
    ------
    TypeError, ValueError
        If an array is not float32 or float64, or the second one (`name`) differs in dtype or shape.
    """
    first = as_floats(first, "x")
    last = channels_last(first) if last is None else last
    a = b = in_memory_order(first, last)
    if second is not None:
        second = as_floats(second, name)
        check_alike(first, second, name)
        b = in_memory_order(second, last)
    out = aligned(a.shape, a.dtype)
    words = (a.ctypes.data, b.ctypes.data, out.ctypes.data, a.size, threshold, seed, constant)
    record = np.array([words], _record_dtype(a.dtype.char))
    run_jobs(_compiled(op, a.dtype.char, source_stamp()), record, -(-a.size // CHUNK))
    return out.transpose(0, 3, 1, 2) if last else out


def check_alike(first: np.ndarray, second: np.ndarray, name: str) -> None:
    """Raise TypeError or ValueError unless `second`, which messages call `name`, has the first's dtype and shape."""
    if second.dtype != first.dtype:
        raise TypeError(f"{name} must have dtype {first.dtype}, got {second.dtype}")
    if second.shape != first.shape:
        raise ValueError(f"{name} must have shape {first.shape}, got {second.shape}")


def channels_last(x: np.ndarray) -> bool:
    """Whether `x` is an image with the channels as nearest neighbours."""
    return x.ndim == 4 and memory_format(x) == "channels_last"


def in_memory_order(x: np.ndarray, last: bool) -> np.ndarray:
    """`x` as a C-contiguous array, (N, H, W, C) if `last`; copied only if it lies otherwise."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if last else x)


@cache
def _record_dtype(char: str) -> np.dtype:
    words = ("a", "b", "out", "count", "threshold", "seed")
    return np.dtype([*[(name, np.int64) for name in words], ("constant", char)])


@inline
def _random(seed, index):
    """53 random bits, the same for the same seed and index: the splitmix64 generator (Steele et al., 2014)."""
    z = np.uint64(seed) + np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(64 - _RANDOM_BITS))


@cache
def _compiled(OP: int, char: str, stamp: str) -> Any:
    ITEM, ZERO = np.dtype(char).itemsize, np.dtype(char).type(0)

    @record_kernel(_record_dtype(char))
    def elementwise(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        first = index * CHUNK
        a, b, out = g.a + ITEM * first, g.b + ITEM * first, g.out + ITEM * first
        constant, seed, threshold = g.constant, g.seed, g.threshold
        for i in range(min(CHUNK, g.count - first)):
            x = get(a, i, ITEM)
            if OP == RELU:
                y = ZERO if x < ZERO else x
            elif OP == RELU_BACKWARD:
                y = ZERO if x <= ZERO else get(b, i, ITEM)
            elif OP == RELU6:
                y = ZERO if x < ZERO else constant if x > constant else x
            elif OP == RELU6_BACKWARD:
                y = ZERO if x <= ZERO or x >= constant else get(b, i, ITEM)
            elif OP == LEAKY_RELU:
                y = x if x > ZERO else constant * x
            elif OP == LEAKY_RELU_BACKWARD:
                y = get(b, i, ITEM) if x > ZERO else constant * get(b, i, ITEM)
            elif OP == DROPOUT:
                y = x * (constant if _random(seed, first + i) >= threshold else ZERO)
            elif OP == NORM_SHARE:
                norm = get(b, i, ITEM)
                y = x
                if constant == 1:
                    y = x / norm
                elif constant != 0:
                    y = x * norm**-constant
                y = y if norm != ZERO else ZERO
            else:
                y = x + get(b, i, ITEM)
            put(out, i, y, ITEM)

    return elementwise

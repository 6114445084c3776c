"""Windows of a pooling: what kernels read of them, where their taps are inside of a map, and how they are reduced."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.elements import first_tap, last_tap, taps_inside
from fastconv.cuda.toolkit import device, types
from fastconv.pooling import Pool
from fastconv.sizes import Pair

MAX, AVERAGE, SQUARES, POWERS = range(4)  # modes; the last two are Lp norms, with p = 2 and any other


def mode_of(pool: Pool) -> int:
    """MAX, AVERAGE, SQUARES or POWERS."""
    if pool.mode == "lp":
        return SQUARES if pool.norm_type == 2 else POWERS
    return MAX if pool.mode == "max" else AVERAGE


class Window(NamedTuple):
    """Sizes of a map and of its windows, which start at the pixel (-top, -left)."""

    height: int
    width: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    include_pad: int

    @classmethod
    def of(cls, pool: Pool, size: Pair) -> Window:
        """Those of a pooling of maps of a height and width."""
        numbers: tuple[int, ...] = (
            *size, *pool.output_size(size), *pool.kernel_size, *pool.stride, *pool.padding, *pool.dilation,
            int(pool.count_include_pad),
        )  # fmt: skip
        return cls(*numbers)


class Norm(NamedTuple):
    """An Lp norm is ``(mean(x**power) * area) ** root``, where `area` is the window's and `root` is 1/power."""

    power: float
    area: float
    root: float

    @classmethod
    def of(cls, pool: Pool) -> Norm:
        """That of a pooling; the other modes do not look at it."""
        return cls(pool.norm_type, math.prod(pool.kernel_size), 1 / pool.norm_type)


@device
def covered(start, kernel, padding, size, include_pad):
    """Along one axis: elements that count for the average; the trailing padding ends the window (ceil_mode)."""
    if include_pad:
        return min(start + kernel, size + padding) - start
    return min(start + kernel, size) - max(start, 0)


@device
def first_window(pixel, kernel, stride, padding, dilation):
    """Along one axis: the first window that reaches as far as a pixel."""
    return max(0, (pixel + padding - (kernel - 1) * dilation + stride - 1) // stride)


@device
def last_window(pixel, stride, padding, windows):
    """One behind the last of all windows that does not start behind a pixel."""
    return min(windows, (pixel + padding) // stride + 1)


@cache
def folding(mode: int, dtype: str) -> Any:
    """How values become one: device functions ``fold(result, value, norm)`` and ``finish(result, count, norm)``.

    The result starts as -inf in mode MAX, as 0 in the others; `count` is the number of elements to divide by.
    """
    real = getattr(types, dtype)

    @device
    def larger(best, value, norm):
        return value if value > best or value != value else best

    @device
    def add(total, value, norm):
        if mode == SQUARES:
            value = value * value
        elif mode == POWERS:
            value = value**norm.power
        return total + value

    @device
    def best(best, count, norm):
        return best

    @device
    def mean(total, count, norm):
        total /= real(count)
        if mode == SQUARES:
            total = real(math.sqrt(total * norm.area))
        elif mode == POWERS:
            total = (total * norm.area) ** norm.root
        return total

    return (larger, best) if mode == MAX else (add, mean)


@cache
def reduction(mode: int, dtype: str, value_at: Callable) -> Any:
    """A function that kernels call to reduce a window.

    Parameters
    ----------
    mode : {MAX, AVERAGE, SQUARES, POWERS}
    dtype : {"float32", "float64"}
    value_at : device function
        ``value_at(source, row, column)`` is a value of the map.

    Returns
    -------
    device function
        ``reduced(source, i, j, window, norm)`` is the value of window (i, j), and the flat position of the maximum:
        the first one, or the last NaN, or -1 for a window without a pixel and in the other modes.
    """
    real = getattr(types, dtype)
    fold, finish = folding(mode, dtype)

    @device
    def maximum(source, i, j, w, norm):
        top, left = i * w.stride_h - w.top, j * w.stride_w - w.left
        best, where = real(-math.inf), -1
        for r in range(first_tap(top, w.dilation_h), last_tap(top, w.dilation_h, w.height, w.kernel_h)):
            row = top + r * w.dilation_h
            for s in range(first_tap(left, w.dilation_w), last_tap(left, w.dilation_w, w.width, w.kernel_w)):
                column = left + s * w.dilation_w
                value = value_at(source, row, column)
                if where < 0 or value > best or value != value:
                    best, where = value, row * w.width + column
        return best, where

    @device
    def mean(source, i, j, w, norm):
        top, left = i * w.stride_h - w.top, j * w.stride_w - w.left
        total = real(0)
        for row in range(max(top, 0), min(top + w.kernel_h, w.height)):
            for column in range(max(left, 0), min(left + w.kernel_w, w.width)):
                total = fold(total, value_at(source, row, column), norm)
        rows = covered(top, w.kernel_h, w.top, w.height, w.include_pad)
        return finish(total, rows * covered(left, w.kernel_w, w.left, w.width, w.include_pad), norm), -1

    return maximum if mode == MAX else mean


@cache
def folding4(mode: int, dtype: str) -> Any:
    """`folding` of tuples of four values, and ``start()``, their results before the first."""
    real, first = getattr(types, dtype), -math.inf if mode == MAX else 0.0
    fold, finish = folding(mode, dtype)

    @device
    def start4():
        return real(first), real(first), real(first), real(first)

    @device
    def fold4(t, v, norm):
        return fold(t[0], v[0], norm), fold(t[1], v[1], norm), fold(t[2], v[2], norm), fold(t[3], v[3], norm)

    @device
    def finish4(t, count, norm):
        f0, f1 = finish(t[0], count, norm), finish(t[1], count, norm)
        return f0, f1, finish(t[2], count, norm), finish(t[3], count, norm)

    return start4, fold4, finish4


@cache
def folding8(mode: int, dtype: str) -> Any:
    """`folding4` of pairs of tuples of four values."""
    start4, fold4, finish4 = folding4(mode, dtype)

    @device
    def start8():
        return start4(), start4()

    @device
    def fold8(t, v, norm):
        return fold4(t[0], v[0], norm), fold4(t[1], v[1], norm)

    @device
    def finish8(t, count, norm):
        return finish4(t[0], count, norm), finish4(t[1], count, norm)

    return start8, fold8, finish8


def vector_reduction(folding: Any, values_at: Callable) -> Any:
    """`reduction` of several maps at a time.

    Parameters
    ----------
    folding : tuple of device functions
        Those of `folding4` or `folding8`.
    values_at : device function
        ``values_at(source, row, column)`` are values of the maps, as they take them.

    Returns
    -------
    device function
        ``reduced(source, i, j, window, norm)`` has the values of window (i, j).
    """
    start, fold, finish = folding

    @device
    def reduced(source, i, j, w, norm):
        top, left = i * w.stride_h - w.top, j * w.stride_w - w.left
        first_r, last_r = taps_inside(top, w.dilation_h, w.height, w.kernel_h)
        first_s, last_s = taps_inside(left, w.dilation_w, w.width, w.kernel_w)
        totals = start()
        for r in range(first_r, last_r):
            for s in range(first_s, last_s):
                totals = fold(totals, values_at(source, top + r * w.dilation_h, left + s * w.dilation_w), norm)
        rows = covered(top, w.kernel_h, w.top, w.height, w.include_pad)
        return finish(totals, rows * covered(left, w.kernel_w, w.left, w.width, w.include_pad), norm)

    return reduced

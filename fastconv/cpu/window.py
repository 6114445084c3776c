"""The window of a pooling: a record that kernels read, and where its taps are inside of a map."""

from __future__ import annotations

import math

import numpy as np
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from fastconv.cpu.ranges import inside
from fastconv.cpu.reduce import MAX, SQUARES, SUM
from fastconv.jit import inline
from fastconv.pooling import Pool
from fastconv.sizes import Pair

LINE = 1024  # longest line of a row that windows are reduced along, in elements
POWERS = 4  # a mode beside those of `reduce`

WINDOW = np.dtype(
    [
        (name, np.int64)
        for name in (
            "mode", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w",
            "dilation_h", "dilation_w", "out_width", "include_pad",
        )
    ]
    + [(name, np.float64) for name in ("norm", "area", "root")]
)  # fmt: skip


def mode_of(pool: Pool) -> int:
    """SUM, SQUARES or MAX of `fastconv.cpu.reduce`, or POWERS."""
    if pool.mode == "lp":
        return {1.0: SUM, 2.0: SQUARES}.get(pool.norm_type, POWERS)
    return MAX if pool.mode == "max" else SUM


def window_record(pool: Pool, size: Pair) -> np.ndarray:
    """One WINDOW record for pooling maps of the given height and width.

    The result of a window is ``(sum / divisor * area) ** root``, with area and root 1 except for lp.
    """
    lp = pool.mode == "lp"
    values = (
        mode_of(pool), *pool.kernel_size, *pool.stride, *pool.padding, *pool.dilation, pool.output_size(size)[1],
        int(pool.count_include_pad), pool.norm_type if lp else 1.0,
        math.prod(pool.kernel_size) if lp else 1.0, 1 / pool.norm_type if lp else 1.0,
    )  # fmt: skip
    return np.array([values], WINDOW)


@intrinsic
def _window_pointer(typingctx, address):
    kind = types.CPointer(from_dtype(WINDOW))

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64), codegen


@inline
def window_at(address):
    """The WINDOW record at `address`."""
    return carray(_window_pointer(address), 1)[0]


@inline
def clip(position, kernel, stride, padding, dilation, size):
    """Along one axis: coordinate of the first tap that is not before the map, and how many are inside."""
    origin = position * stride - padding
    if origin >= 0 and origin + (kernel - 1) * dilation < size:  # most windows, for which a division is too slow
        return origin, kernel
    first, last = inside(origin, dilation, size, kernel)
    return origin + first * dilation, last - first


@inline
def whole_windows(size, kernel, stride, padding, dilation, margin):
    """Positions [first, last) of windows that reach no further than `margin` over the ends of an axis."""
    beyond = padding - margin
    return -(-beyond // stride), (size + padding + margin - (kernel - 1) * dilation - 1) // stride + 1


@inline
def covered(position, kernel, stride, padding, size, include_pad):
    """Along one axis: elements that count for the average; the trailing padding ends the window (ceil_mode)."""
    start = position * stride - padding
    if include_pad:
        return min(start + kernel, size + padding) - start
    return min(start + kernel, size) - max(start, 0)


@inline
def rows_inside(i, height, w):
    """First input row, number of rows and what they count for the average, of output row `i`."""
    h, rows = clip(i, w.kernel_h, w.stride_h, w.padding_h, w.dilation_h, height)
    return h, rows, covered(i, w.kernel_h, w.stride_h, w.padding_h, height, w.include_pad)


@inline
def columns_inside(j, width, w):
    """The same of output column `j`."""
    v, columns = clip(j, w.kernel_w, w.stride_w, w.padding_w, w.dilation_w, width)
    return v, columns, covered(j, w.kernel_w, w.stride_w, w.padding_w, width, w.include_pad)


@inline
def alike(i, last, height, w):
    """How many output rows from `i` on are reduced alike: those whose windows are inside the map."""
    whole_first, whole_last = whole_windows(height, w.kernel_h, w.stride_h, w.padding_h, w.dilation_h, 0)
    return min(last, whole_last) - i if whole_first <= i < whole_last else 1

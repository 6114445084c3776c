"""Pooling of rows: what the pooling kernel and the epilogue of a tiled convolution both do.

`way` says for given strides which of these is the fastest that can do it:

=====================  ===============  ===========================================================
way                    input            vectors hold
=====================  ===============  ===========================================================
CHANNELS               channels-last    channels; the taps of a window are walked for each output pixel
SMALL_COLUMNS          contiguous rows  columns; the taps are walked for neighbouring windows
COLUMNS                contiguous rows  columns; rows are reduced into a line in L1, then along the line
RUNS                   contiguous rows  neighbouring taps of one window: global pooling, very wide windows
CHANNELS_WITH_INDICES  channels-last    channels
COLUMNS_WITH_INDICES   contiguous rows  columns, of one row of windows after the other
ONE_BY_ONE             any, any mode    nothing: plain loops
=====================  ===============  ===========================================================

No tap is tested for being inside the image: `fastconv.cpu.window.clip` says which are. Maxima propagate NaN, as in
torch.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from fastconv.cpu.host import host
from fastconv.cpu.memory import get, ints, put, stack
from fastconv.cpu.reduce import MAX, reduce_runs
from fastconv.cpu.reduce_pixels import reduce_pixels
from fastconv.cpu.transpose import move
from fastconv.cpu.window import LINE, POWERS, columns_inside, mode_of, rows_inside, whole_windows, window_at
from fastconv.cpu.windows_columns import by_columns, by_small_columns
from fastconv.cpu.windows_indices import channels_with_indices, columns_with_indices
from fastconv.jit import CFunction, address_kernel, inline, source_stamp
from fastconv.pooling import Pool
from fastconv.sizes import Pair

CHANNELS, SMALL_COLUMNS, COLUMNS, RUNS, CHANNELS_WITH_INDICES, COLUMNS_WITH_INDICES, ONE_BY_ONE = range(7)
_UNROLLED = ((2, 2), (3, 3))  # windows whose taps are not walked in loops, which would cost more
_TILE = 2048  # elements that `_by_channels` brings into another order


@inline
def _by_channels(source, target, shape, first, last, w, SIZE, OP, ITEM):
    x, x_row, x_column, _ = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    tile = stack(_TILE, ITEM)
    most = w.out_width if out_channel == 1 else _TILE // channels
    whole_first, whole_last = whole_windows(width, w.kernel_w, w.stride_w, w.padding_w, w.dilation_w, 0)
    for i in range(first, last):
        h, rows, down = rows_inside(i, height, w)
        j = 0
        while j < w.out_width:
            v, columns, across = columns_inside(j, width, w)
            count = min(most, min(whole_last, w.out_width) - j) if whole_first <= j < whole_last else 1
            o = out + ITEM * (i * out_row + j * out_column)
            reduce_pixels(
                (x + ITEM * (h * x_row + v * x_column), w.stride_w * x_column),
                (w.dilation_h * x_row, rows, w.dilation_w * x_column, columns),
                (o, out_column, count) if out_channel == 1 else (tile, channels, count),
                channels, np.float64(down * across), SIZE, OP, ITEM,
            )  # fmt: skip
            if out_channel != 1:
                move(tile, channels, 1, o, out_column, out_channel, count, channels, ITEM)
            j += count


@inline
def _by_runs(source, target, shape, first, last, w, OP, ITEM):
    x, x_row, _, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    row_step = w.dilation_h * x_row
    for i in range(first, last):
        h, rows, down = rows_inside(i, height, w)
        for j in range(w.out_width):
            v, columns, across = columns_inside(j, width, w)
            runs = rows
            if row_step == columns:  # the rows follow each other: one run
                runs, columns = min(rows, 1), rows * columns
            reduce_runs(
                (x + ITEM * (h * x_row + v), x_channel), (row_step, runs, columns),
                (out + ITEM * (i * out_row + j * out_column), out_channel),
                channels, np.float64(down * across), OP, ITEM,
            )  # fmt: skip


@inline
def _one_by_one(source, target, indices, shape, first, last, w, OP, ITEM):
    x, x_row, x_column, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    row_step, column_step = w.dilation_h * x_row, w.dilation_w * x_column
    for c in range(channels):
        for i in range(first, last):
            h, rows, down = rows_inside(i, height, w)
            for j in range(w.out_width):
                v, columns, across = columns_inside(j, width, w)
                a = x + ITEM * (c * x_channel + h * x_row + v * x_column)
                o = c * out_channel + i * out_row + j * out_column
                if OP == MAX:
                    best, r, s = _maximum(a, row_step, rows, column_step, columns, ITEM)
                    put(out, o, best, ITEM)
                    if indices != 0:
                        index = (h + r * w.dilation_h) * width + v + s * w.dilation_w
                        ints(indices + 8 * o, 1, 1)[0, 0] = index if rows * columns > 0 else -1
                else:
                    total = _power_sum(a, row_step, rows, column_step, columns, w.norm, ITEM)
                    put(out, o, total / (down * across), ITEM)


@inline
def _maximum(x, row_step, rows, column_step, columns, ITEM):
    best, row, column = -np.inf, 0, 0
    for r in range(rows):
        for s in range(columns):
            value = np.float64(get(x, r * row_step + s * column_step, ITEM))
            better = (value > best) | (value != value)  # selected, not branched on: data is unpredictable
            best, row, column = value if better else best, r if better else row, s if better else column
    return best, row, column


@inline
def _power_sum(x, row_step, rows, column_step, columns, power, ITEM):
    total = 0.0
    for r in range(rows):
        for s in range(columns):
            value = np.float64(get(x, r * row_step + s * column_step, ITEM))
            total += value if power == 1 else value**power
    return total


@inline
def _roots(target, channels, first, last, w, ITEM):
    """The last step of Lp pooling, on the rows that have just been written."""
    out, out_row, out_column, out_channel = target
    outer, inner = (channels, out_channel), (w.out_width, out_column)
    if out_channel == 1:
        outer, inner = inner, outer
    for i in range(first, last):
        for a in range(outer[0]):
            o = out + ITEM * (i * out_row + a * outer[1])
            if w.root == 0.5 and inner[1] == 1:
                for b in range(inner[0]):
                    put(o, b, math.sqrt(get(o, b, ITEM) * w.area), ITEM)
            else:
                for b in range(inner[0]):
                    put(o, b * inner[1], (get(o, b * inner[1], ITEM) * w.area) ** w.root, ITEM)


def way(pool: Pool, size: Pair, x: Pair, out: Pair, channels: int, indices: bool) -> int:
    """How to pool a map: one of the constants at the top.

    Parameters
    ----------
    pool : Pool
    size : (int, int)
        Of the map, without padding.
    x, out : (int, int)
        Steps from column to column and from channel to channel, in elements, of the map and of the result.
    channels : int
        Most channels at a time.
    indices : bool
        Whether indices of maxima are wanted.
    """
    vectors = mode_of(pool) != POWERS
    span = (pool.kernel_size[1] - 1) * pool.dilation[1] + 1
    if vectors and x[0] == 1 and span <= LINE and indices:
        return COLUMNS_WITH_INDICES
    if vectors and x[0] == 1 and not indices:
        if pool.dilation[1] == 1 and (pool.output_size(size)[1] == 1 or span > LINE):
            return RUNS
        if out[0] == 1 and _is_small(pool):
            return SMALL_COLUMNS
        if span <= LINE:
            return COLUMNS
    if x[1] == 1 and out[1] == 1 and indices:
        return CHANNELS_WITH_INDICES
    if vectors and x[1] == 1 and not indices and (out[1] == 1 or channels <= _TILE):
        return CHANNELS
    return ONE_BY_ONE


def _is_small(pool: Pool) -> bool:
    """Whether `by_small_columns` can do it.

    Then no window is empty: padding is at most half of it, and `ceil_mode` drops those that start behind the map.
    """
    (rows, taps), stride = pool.kernel_size, pool.stride[1]
    return rows <= taps and taps in (2, 3) and stride in (1, 2) and pool.dilation == (1, 1)


def pooling(pool: Pool, chosen: int, ITEM: int) -> CFunction:
    """Pool the output rows [first, last) of one image, all columns and some channels: a function of 15 integers.

    x, x_row, x_column, x_channel : address and strides in elements
        Row 0, column 0, channel 0 of the map. Only what the output rows need of it is read, so it may be a virtual
        origin.
    height, width, channels
        Size of the map, without padding.
    out, out_row, out_column, out_channel
        Of the result.
    indices
        Address of the int64 indices of the maxima, which have the strides of `out`; 0 if none are wanted.
    first, last
    window
        Address of a WINDOW record made for (height, width).
    """
    taps, stride = pool.kernel_size[1], pool.stride[1]
    constants = {SMALL_COLUMNS: (taps, stride), CHANNELS: (taps if pool.kernel_size in _UNROLLED else 0, 0)}
    return _compiled(chosen, *constants.get(chosen, (0, 0)), mode_of(pool), ITEM, host().lanes(ITEM), source_stamp())


@cache
def _compiled(WAY: int, TAPS: int, STRIDE: int, OP: int, ITEM: int, LANES: int, stamp: str) -> CFunction:
    # Numba's disk cache asks that only numbers and text are closed over; it drops the branches not taken.
    @address_kernel(15)
    def pool(x, x_row, x_column, x_channel, height, width, channels, out, out_row, out_column, out_channel,
             indices, first, last, window):  # fmt: skip
        _ = stamp, LANES
        w, shape = window_at(window), (height, width, channels)
        source, target = (x, x_row, x_column, x_channel), (out, out_row, out_column, out_channel)
        if WAY == CHANNELS:
            _by_channels(source, target, shape, first, last, w, TAPS, OP, ITEM)
        elif WAY == SMALL_COLUMNS:
            by_small_columns(source, target, shape, first, last, w, TAPS, STRIDE, OP, ITEM)
        elif WAY == COLUMNS:
            by_columns(source, target, shape, first, last, w, OP, ITEM)
        elif WAY == RUNS:
            _by_runs(source, target, shape, first, last, w, OP, ITEM)
        elif WAY == CHANNELS_WITH_INDICES:
            channels_with_indices(source, target, indices, shape, first, last, w, ITEM)
        elif WAY == COLUMNS_WITH_INDICES:
            columns_with_indices(source, target, indices, shape, first, last, w, ITEM)
        else:
            _one_by_one(source, target, indices, shape, first, last, w, OP, ITEM)
        if w.root != 1 or w.area != 1:
            _roots(target, channels, first, last, w, ITEM)

    return pool

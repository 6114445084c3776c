"""Pooling of rows: what the pooling kernel and the epilogue of a tiled convolution both do.

Four ways, chosen by the strides of the input at run time:

==========  ==================  ===========================================================
function    input               vectors hold
==========  ==================  ===========================================================
_channels   channels-last       channels; the taps of a window are walked for each output pixel
_columns    contiguous rows     columns: rows are reduced into a line in L1, then along the line
_runs       contiguous rows     neighbouring taps of one window: global pooling, very wide windows
_anything   any, any mode       nothing: plain loops
==========  ==================  ===========================================================

No tap is tested for being inside the image: `fastconv.cpu.window.clip` says which are. Maxima with their indices
are in `fastconv.cpu.windows_indices`. Maxima propagate NaN, as in torch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fastconv.cpu.memory import get, ints, put, stack
from fastconv.cpu.reduce import MAX, SQUARES, SUM, reduce_run
from fastconv.cpu.reduce_lines import reduce_along, reduce_down, reduce_pixels
from fastconv.cpu.transpose import move
from fastconv.cpu.window import POWERS, columns_inside, covered, rows_inside, whole_windows, window_at
from fastconv.cpu.windows_indices import LINE, channels_with_indices, columns_with_indices
from fastconv.jit import address_kernel, inline

_TILE = 2048  # elements that `_channels` brings into another order
_LINES = 2 * LINE  # elements of several lines, one after the other
_LINE_ROOM = _LINES + 64  # vectors read past the end of the last one


@inline
def _channels(source, target, shape, first, last, w, op, ITEM):
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
                channels, op, np.float64(down * across), ITEM,
            )  # fmt: skip
            if out_channel != 1:
                move(tile, channels, 1, o, out_column, out_channel, count, channels, ITEM)
            j += count


@inline
def _columns(source, target, shape, first, last, w, op, ITEM):
    x, x_row, _, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    line = stack(_LINE_ROOM, ITEM)
    stride, padding, span = w.stride_w, w.padding_w, (w.kernel_w - 1) * w.dilation_w + 1
    most = (LINE - span) // stride + 1
    # The columns that count all of their window for the average.
    margin = w.padding_w if w.include_pad else 0
    whole = whole_windows(width, w.kernel_w, stride, padding, 1, margin) if op != MAX else (0, w.out_width)
    for begin in range(0, w.out_width, most):
        end = min(begin + most, w.out_width)
        origin, reach = begin * stride - padding, (end - 1) * stride - padding + span
        left, right = max(origin, 0), min(reach, width)
        pitch = reach - origin
        most_lines = _LINES // pitch
        for i in range(most_lines):
            _fill_empty(line + ITEM * i * pitch, left - origin, op, ITEM)
            _fill_empty(line + ITEM * (i * pitch + right - origin), reach - right, op, ITEM)
        i = first
        while i < last:
            # One step on many rows and channels before the next: what has just been stored is slow to load.
            count = min(most_lines, _alike(i, last, height, w))
            together = most_lines // count
            h, rows, down = rows_inside(i, height, w)
            for c in range(0, channels, together):
                some = min(together, channels - c)
                for k in range(some):
                    place = line + ITEM * (k * count * pitch + left - origin)
                    reduce_down(
                        (x + ITEM * ((c + k) * x_channel + h * x_row + left), w.stride_h * x_row),
                        (place, pitch, count), w.dilation_h * x_row, rows, right - left, op, ITEM,
                    )  # fmt: skip
                for k in range(some):
                    _along(
                        (line + ITEM * k * count * pitch, pitch, count),
                        (out + ITEM * ((c + k) * out_channel + i * out_row), out_row, out_column), (begin, end),
                        whole, width, down, w, SUM if op == SQUARES else op, ITEM,
                    )  # fmt: skip
            i += count


@inline
def _alike(i, last, height, w):
    """How many output rows from `i` on are reduced alike: those whose windows are inside the map."""
    whole_first, whole_last = whole_windows(height, w.kernel_h, w.stride_h, w.padding_h, w.dilation_h, 0)
    return min(last, whole_last) - i if whole_first <= i < whole_last else 1


@inline
def _fill_empty(line, count, op, ITEM):
    value = -np.inf if op == MAX else 0.0
    for i in range(count):
        put(line, i, value, ITEM)


@inline
def _along(lines, target, columns, whole, width, down, w, op, ITEM):
    """Windows of lines that start with the first tap of the first column, in runs of the same divisor."""
    kernel, stride, padding, step = w.kernel_w, w.stride_w, w.padding_w, w.dilation_w
    line, pitch, count = lines
    out, out_row, out_column = target
    begin, end = columns
    whole_first, whole_last = whole
    j = begin
    while j < end:
        across = covered(j, kernel, stride, padding, width, w.include_pad)
        n = min(whole_last, end) - j if whole_first <= j < whole_last else 1
        taps, o = line + ITEM * (j - begin) * stride, out + ITEM * j * out_column
        divisor = np.float64(down * across)
        if stride <= 2 and out_column == 1:
            reduce_along((taps, pitch, count), (kernel, step, stride), (o, out_row, n), op, divisor, ITEM)
        else:
            for i in range(count):
                for q in range(n):
                    total = _folded(taps + ITEM * (i * pitch + q * stride), kernel, step, op, ITEM)
                    put(o, i * out_row + q * out_column, total if op == MAX else total / divisor, ITEM)
        j += n


@inline
def _folded(x, count, step, op, ITEM):
    """Sum or maximum of `count` elements."""
    total = get(x, 0, ITEM)
    for i in range(1, count):
        value = get(x, i * step, ITEM)
        if op != MAX:
            total += value
        elif value > total or value != value:
            total = value
    return total


@inline
def _runs(source, target, shape, first, last, w, op, ITEM):
    x, x_row, _, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    row_step = w.dilation_h * x_row
    for c in range(channels):
        for i in range(first, last):
            h, rows, down = rows_inside(i, height, w)
            for j in range(w.out_width):
                v, columns, across = columns_inside(j, width, w)
                runs = rows
                if row_step == columns:  # the rows follow each other: one run
                    runs, columns = min(rows, 1), rows * columns
                total = reduce_run(x + ITEM * (c * x_channel + h * x_row + v), row_step, runs, columns, op, ITEM)
                o = c * out_channel + i * out_row + j * out_column
                put(out, o, total if op == MAX else total / (down * across), ITEM)


@inline
def _anything(source, target, indices, shape, first, last, w, ITEM):
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
                if w.mode == MAX:
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


@inline
def pool_rows(
    x, x_row, x_column, x_channel, height, width, channels, out, out_row, out_column, out_channel,
    indices, first, last, window, ITEM,
):  # fmt: skip
    """Pool the output rows [first, last) of one image, all columns and all `channels`.

    Parameters
    ----------
    x, out, indices : int64
        Addresses of row 0, column 0, channel 0 of the map, of the result, and of the int64 indices of
        the maxima (0: none wanted). Only what the output rows need of `x` is read, so it may be a
        virtual origin.
    x_row, ... out_channel : int64
        Strides in elements; those of `out` are also those of `indices`.
    height, width, channels : int64
        Size of the map, without padding.
    window : int64
        Address of a WINDOW record made for (height, width).
    ITEM : literal int
        Bytes of an element, 4 or 8.
    """
    w = window_at(window)
    source, target = (x, x_row, x_column, x_channel), (out, out_row, out_column, out_channel)
    shape = (height, width, channels)
    span = (w.kernel_w - 1) * w.dilation_w + 1
    in_rows = x_column == 1 and w.mode != POWERS
    if in_rows and indices == 0 and w.dilation_w == 1 and (w.out_width == 1 or span > LINE):
        _runs(source, target, shape, first, last, w, w.mode, ITEM)
    elif in_rows and indices != 0 and span <= LINE:
        columns_with_indices(source, target, indices, shape, first, last, w, ITEM)
    elif in_rows and span <= LINE:
        _columns(source, target, shape, first, last, w, w.mode, ITEM)
    elif x_channel == 1 and out_channel == 1 and indices != 0:
        channels_with_indices(source, target, indices, shape, first, last, w, ITEM)
    elif x_channel == 1 and indices == 0 and w.mode != POWERS and (out_channel == 1 or channels <= _TILE):
        _channels(source, target, shape, first, last, w, w.mode, ITEM)
    else:
        _anything(source, target, indices, shape, first, last, w, ITEM)
    if w.root != 1 or w.area != 1:
        _roots(target, channels, first, last, w, ITEM)


@cache
def pooling(ITEM: int, LANES: int, stamp: str) -> Any:
    """`pool_rows` as a C function of its first 15 arguments, compiled once for all kernels that pool."""

    @address_kernel(15)
    def pool(x, x_row, x_column, x_channel, height, width, channels, out, out_row, out_column, out_channel,
             indices, first, last, window):  # fmt: skip
        _ = stamp, LANES
        pool_rows(
            x, x_row, x_column, x_channel, height, width, channels, out, out_row, out_column, out_channel,
            indices, first, last, window, ITEM,
        )  # fmt: skip

    return pool

"""Windows on contiguous rows, where vectors hold columns.

Small ones (`by_small_columns`) take their taps straight from the map. For others (`by_columns`), rows are reduced into
a line in L1, which serves all windows that look at it. The arguments are those that `fastconv.cpu.windows` has put
together.
"""

from __future__ import annotations

import numpy as np

from fastconv.cpu.memory import get, put, stack
from fastconv.cpu.reduce import MAX
from fastconv.cpu.reduce_lines import reduce_along, reduce_down
from fastconv.cpu.reduce_small import reduce_small
from fastconv.cpu.window import LINE, alike, covered, rows_inside, whole_windows
from fastconv.jit import inline

_LINES = 2 * LINE  # elements of several lines, one after the other
_LINE_ROOM = _LINES + 64  # vectors read past the end of the last one


@inline
def by_small_columns(source, target, shape, first, last, w, TAPS, STRIDE, OP, ITEM):
    """Output rows [first, last) where windows have TAPS columns, at most as many rows, and are STRIDE columns apart."""
    x, x_row, _, x_channel = source
    out, out_row, _, out_channel = target
    height, width, channels = shape
    divisors = stack(LINE, ITEM)
    i = first
    while i < last:
        lines = alike(i, last, height, w)
        h, rows, down = rows_inside(i, height, w)
        for begin in range(0, w.out_width, LINE):
            count = min(LINE, w.out_width - begin)
            if OP != MAX:
                for j in range(count):
                    across = covered(begin + j, TAPS, STRIDE, w.padding_w, width, w.include_pad)
                    put(divisors, j, down * across, ITEM)
            reduce_small(
                (x + ITEM * h * x_row, x_channel, w.stride_h * x_row, x_row), rows,
                (begin * STRIDE - w.padding_w, width),
                (out + ITEM * (i * out_row + begin), out_channel, out_row), (channels, lines, count), divisors,
                TAPS, STRIDE, OP, ITEM,
            )  # fmt: skip
        i += lines


@inline
def by_columns(source, target, shape, first, last, w, OP, ITEM):
    """Output rows [first, last), whatever the windows are."""
    x, x_row, _, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    line = stack(_LINE_ROOM, ITEM)
    stride, padding, span = w.stride_w, w.padding_w, (w.kernel_w - 1) * w.dilation_w + 1
    most = (LINE - span) // stride + 1
    # The columns that count all of their window for the average.
    margin = w.padding_w if w.include_pad else 0
    whole = whole_windows(width, w.kernel_w, stride, padding, 1, margin) if OP != MAX else (0, w.out_width)
    for begin in range(0, w.out_width, most):
        end = min(begin + most, w.out_width)
        origin, reach = begin * stride - padding, (end - 1) * stride - padding + span
        left, right = max(origin, 0), min(reach, width)
        pitch = reach - origin
        most_lines = _LINES // pitch
        for i in range(most_lines):
            _fill_empty(line + ITEM * i * pitch, left - origin, OP, ITEM)
            _fill_empty(line + ITEM * (i * pitch + right - origin), reach - right, OP, ITEM)
        i = first
        while i < last:
            # One step on many rows and channels before the next: what has just been stored is slow to load.
            count = min(most_lines, alike(i, last, height, w))
            together = most_lines // count
            h, rows, down = rows_inside(i, height, w)
            for c in range(0, channels, together):
                some = min(together, channels - c)
                for k in range(some):
                    place = line + ITEM * (k * count * pitch + left - origin)
                    reduce_down(
                        (x + ITEM * ((c + k) * x_channel + h * x_row + left), w.stride_h * x_row),
                        (place, pitch, count), w.dilation_h * x_row, rows, right - left, OP, ITEM,
                    )  # fmt: skip
                for k in range(some):
                    _along(
                        (line + ITEM * k * count * pitch, pitch, count),
                        (out + ITEM * ((c + k) * out_channel + i * out_row), out_row, out_column), (begin, end),
                        whole, width, down, w, OP, ITEM,
                    )  # fmt: skip
            i += count


@inline
def _fill_empty(line, count, OP, ITEM):
    value = -np.inf if OP == MAX else 0.0
    for i in range(count):
        put(line, i, value, ITEM)


@inline
def _along(lines, target, columns, whole, width, down, w, OP, ITEM):
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
            reduce_along((taps, pitch, count), (kernel, step, stride), (o, out_row, n), divisor, OP, ITEM)
        else:
            for i in range(count):
                for q in range(n):
                    total = _folded(taps + ITEM * (i * pitch + q * stride), kernel, step, OP, ITEM)
                    put(o, i * out_row + q * out_column, total if OP == MAX else total / divisor, ITEM)
        j += n


@inline
def _folded(x, count, step, OP, ITEM):
    """Sum or maximum of `count` elements."""
    total = get(x, 0, ITEM)
    for i in range(1, count):
        value = get(x, i * step, ITEM)
        if OP != MAX:
            total += value
        elif value > total or value != value:
            total = value
    return total

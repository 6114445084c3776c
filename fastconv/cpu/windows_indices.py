"""Maxima of windows with their indices: the first of equal maxima, the last NaN, -1 for a window without a pixel.

The arguments are those that `fastconv.cpu.windows` has put together.
"""

from __future__ import annotations

import numpy as np

from fastconv.cpu.memory import get, ints, lanes_of, put, stack
from fastconv.cpu.reduce import reduce_taps
from fastconv.cpu.window import LINE, columns_inside, rows_inside
from fastconv.jit import inline


@inline
def _reduce_lanes(x, row_step, rows, column_step, columns, out, count, places, ITEM):
    """`reduce_taps` to maxima and their indices for `count` neighbouring lanes."""
    lanes = lanes_of(ITEM)
    indices, index, index_row, index_column = places
    done = 0
    while done < count:
        n = count - done
        a, o, place = x + ITEM * done, out + ITEM * done, indices + 8 * done
        if n >= 4 * lanes:
            n = 4 * lanes
            reduce_taps(
                a, row_step, rows, column_step, columns, o, n, place, index, index_row, index_column, 4, 0, ITEM
            )
        else:
            n = min(n, lanes)
            reduce_taps(
                a, row_step, rows, column_step, columns, o, n, place, index, index_row, index_column, 1, 1, ITEM
            )
        done += n


@inline
def channels_with_indices(source, target, indices, shape, first, last, w, ITEM):
    """Output rows [first, last) where channels are neighbours; vectors hold channels."""
    x, x_row, x_column, _ = source
    out, out_row, out_column, _ = target
    height, width, channels = shape
    for i in range(first, last):
        h, rows, _ = rows_inside(i, height, w)
        for j in range(w.out_width):
            v, columns, _ = columns_inside(j, width, w)
            o = i * out_row + j * out_column
            index = h * width + v if rows * columns > 0 else -1
            _reduce_lanes(
                x + ITEM * (h * x_row + v * x_column), w.dilation_h * x_row, rows, w.dilation_w * x_column, columns,
                out + ITEM * o, channels, (indices + 8 * o, index, w.dilation_h * width, w.dilation_w), ITEM,
            )  # fmt: skip


@inline
def columns_with_indices(source, target, indices, shape, first, last, w, ITEM):
    """The same where columns are: rows are reduced into a line of maxima and their rows, then along the line."""
    x, x_row, _, x_channel = source
    out, out_row, out_column, out_channel = target
    height, width, channels = shape
    line, places = stack(LINE, ITEM), stack(LINE, 8)
    row_of = ints(places, 1, LINE)[0]
    most = (LINE - (w.kernel_w - 1) * w.dilation_w - 1) // w.stride_w + 1
    for c in range(channels):
        for i in range(first, last):
            h, rows, _ = rows_inside(i, height, w)
            for begin in range(0, w.out_width, most):
                end = min(begin + most, w.out_width)
                left = max(0, begin * w.stride_w - w.padding_w)
                right = min(width, (end - 1) * w.stride_w - w.padding_w + (w.kernel_w - 1) * w.dilation_w + 1)
                _reduce_lanes(
                    x + ITEM * (c * x_channel + h * x_row + left), w.dilation_h * x_row, rows, 0, 1,
                    line, right - left, (places, h, w.dilation_h, 0), ITEM,
                )  # fmt: skip
                for j in range(begin, end):
                    v, columns, _ = columns_inside(j, width, w)
                    o = c * out_channel + i * out_row + j * out_column
                    index = np.int64(-1)
                    if rows * columns > 0:
                        best, index = _first_maximum(line, row_of, v - left, columns, w.dilation_w, width, ITEM)
                        index += left
                        put(out, o, best, ITEM)
                    else:
                        put(out, o, -np.inf, ITEM)
                    ints(indices + 8 * o, 1, 1)[0, 0] = index


@inline
def _first_maximum(line, row_of, start, columns, step, width, ITEM):
    """Maximum of some elements of a line, each from a row of its own, and the first place that has it."""
    best, index = get(line, start, ITEM), row_of[start] * width + start
    for s in range(1, columns):
        column = start + s * step
        value, place = get(line, column, ITEM), row_of[column] * width + column
        better = (value > best) | ((value == best) & (place < index))
        better |= (value != value) & ((best == best) | (place > index))  # the last NaN wins
        best, index = value if better else best, place if better else index
    return best, index

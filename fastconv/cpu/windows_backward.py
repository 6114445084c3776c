"""Jobs of the gradients of pooling.

==============  ==============================  =================================================
function        a job owns                      and does
==============  ==============================  =================================================
scatter_maxima  whole planes                    adds each gradient to the pixel that its index names
gather_rows     rows of contiguous planes       adds up, for each pixel, the shares of the windows
                                                that cover it: down the rows into a line, then along it
gather_pixels   channels-last pixels            the same, for all channels at once
==============  ==============================  =================================================

The share of a window is its gradient, for a norm times a power of the norm, over the number of its elements:
a factor for its row times one for its column.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray

from fastconv.cpu.kernel import fields
from fastconv.cpu.memory import copy, fill, get, ints, put
from fastconv.jit import inline, job_kernel

AVERAGE, SUM, SQUARES, POWERS = range(4)  # modes; the last three are Lp norms with p = 1, 2 and any

GEOMETRY = fields(
    "channels_last", "height", "width", "channels", "out_height", "out_width", "per_job", "jobs_per_image",
    "kernel_w", "stride_w", "padding_w", "rows", "columns", "down", "across", "power", "before", "line", "row", "reach",
    "grad_batch", "grad_channel", "grad_row", "grad_column", "out_batch", "out_channel", "out_row", "out_column",
)  # fmt: skip


@inline
def _scatter(grad, indices, count, plane, lane, pixel, area, ITEM):
    """Add `count` neighbouring gradients to the pixels that their indices name; -1 and the like name none."""
    where = ints(indices, 1, count)[0]
    for i in range(count):
        index = where[i]
        if 0 <= index < area:
            o = i * lane + index * pixel
            put(plane, o, get(plane, o, ITEM) + get(grad, i, ITEM), ITEM)


@cache
def scatter_maxima(ITEM: int, stamp: str) -> Any:
    """The job that clears its planes and adds each gradient to the pixel of its maximum, which its index names."""

    @job_kernel(GEOMETRY)
    def scatter(grad, indices, _third, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, c = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        channels, area = min(g.per_job, g.channels - c), g.height * g.width
        image, first = out + ITEM * (n * g.out_batch + c * g.out_channel), n * g.grad_batch + c * g.grad_channel
        if g.channels_last:
            for pixel in range(area):
                fill(image + ITEM * pixel * g.out_column, channels, 0.0, ITEM)
            for i in range(g.out_height):
                for j in range(g.out_width):
                    o = first + i * g.grad_row + j * g.grad_column
                    _scatter(grad + ITEM * o, indices + 8 * o, channels, image, 1, g.out_column, area, ITEM)
        else:
            for channel in range(channels):
                plane = image + ITEM * channel * g.out_channel
                fill(plane, area, 0.0, ITEM)
                for i in range(g.out_height):
                    o = first + channel * g.grad_channel + i * g.grad_row
                    _scatter(grad + ITEM * o, indices + 8 * o, g.out_width, plane, 0, 1, area, ITEM)

    return scatter


@inline
def _share(grad, y, i, power, MODE, ITEM):
    """What a window passes on. For a norm that is the gradient times norm**(1-p), or nothing where the norm is 0."""
    value = get(grad, i, ITEM)
    if MODE == AVERAGE:
        return value
    norm = get(y, i, ITEM)
    if MODE == SQUARES:
        value /= norm
    elif MODE == POWERS:
        value *= norm**-power
    return value if norm != 0 else norm


@inline
def _times_power(out, x, count, power, MODE, ITEM):
    """Multiply the result by x**(p-1) where the pooling is a norm."""
    if MODE == SQUARES:
        for i in range(count):
            put(out, i, get(out, i, ITEM) * get(x, i, ITEM), ITEM)
    elif MODE == POWERS:
        for i in range(count):
            put(out, i, get(out, i, ITEM) * get(x, i, ITEM) ** power, ITEM)


@inline
def _add_windows(grad, y, weight, out, count, first, power, MODE, ITEM):
    """``out[i] += share[i] * weight`` for `count` neighbours; ``=`` for the first windows."""
    if first:
        for i in range(count):
            put(out, i, _share(grad, y, i, power, MODE, ITEM) * weight, ITEM)
    else:
        for i in range(count):
            put(out, i, get(out, i, ITEM) + _share(grad, y, i, power, MODE, ITEM) * weight, ITEM)


@inline
def _window_sums(line, windows, out, count, ITEM):
    """``out[q] = line[q] + line[q - 1] + ...``, of so many windows."""
    if windows < 2:
        for q in range(count):
            put(out, q, get(line, q, ITEM) if windows else 0.0, ITEM)
    else:
        for q in range(count):
            put(out, q, get(line, q, ITEM) + get(line, q - 1, ITEM), ITEM)
    for m in range(2, windows):
        for q in range(count):
            put(out, q, get(out, q, ITEM) + get(line, q - m, ITEM), ITEM)


@inline
def _along(line, row, g, ITEM):
    """Spread a line of window shares, which has zeros on both sides, over the padded row of their pixels."""
    if g.stride_w == 1:
        _window_sums(line, g.kernel_w, row, g.reach, ITEM)
    elif g.stride_w == 2:
        # Even pixels of the padded row have one window more if the kernel is odd.
        both = g.kernel_w // 2
        sums = row + ITEM * 2 * g.reach
        _window_sums(line, both, sums, g.reach, ITEM)
        if g.kernel_w % 2:
            for q in range(g.reach):
                put(row, 2 * q, get(sums, q, ITEM) + get(line, q - both, ITEM), ITEM)
                put(row, 2 * q + 1, get(sums, q, ITEM), ITEM)
        else:
            for q in range(g.reach):
                put(row, 2 * q, get(sums, q, ITEM), ITEM)
                put(row, 2 * q + 1, get(sums, q, ITEM), ITEM)
    else:
        fill(row, g.row, 0.0, ITEM)
        for j in range(g.out_width):
            share, start = get(line, j, ITEM), j * g.stride_w
            for w in range(start, start + g.kernel_w):
                put(row, w, get(row, w, ITEM) + share, ITEM)


@cache
def gather_rows(ITEM: int, MODE: int, stamp: str) -> Any:
    """Contiguous planes: a job is some rows of some planes of one image."""

    @job_kernel(GEOMETRY)
    def gather(grad, y, x, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        power = get(g.power, 0, ITEM)
        rows = ints(g.rows, g.height, 3)
        line, row = scratch + ITEM * g.before, scratch + ITEM * g.line
        fill(scratch, g.line, 0.0, ITEM)
        n, begin = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        c, h = begin // g.height, begin % g.height - 1
        for r in range(begin, min(begin + g.per_job, g.channels * g.height)):
            h += 1
            if h == g.height:
                c, h = c + 1, 0
            first, windows, another = rows[h]
            if another or r == begin:
                if windows == 0:
                    fill(line, g.out_width, 0.0, ITEM)
                for i in range(first, first + windows):
                    source = n * g.grad_batch + c * g.grad_channel + i * g.grad_row
                    _add_windows(
                        grad + ITEM * source, y + ITEM * source, get(g.down, i, ITEM), line, g.out_width, i == first,
                        power, MODE, ITEM,
                    )  # fmt: skip
                for j in range(g.out_width):
                    put(line, j, get(line, j, ITEM) * get(g.across, j, ITEM), ITEM)
                _along(line, row, g, ITEM)
            o = n * g.out_batch + c * g.out_channel + h * g.out_row
            copy(row + ITEM * g.padding_w, 1, out + ITEM * o, g.width, ITEM)
            _times_power(out + ITEM * o, x + ITEM * o, g.width, power, MODE, ITEM)

    return gather


@cache
def gather_pixels(ITEM: int, MODE: int, stamp: str) -> Any:
    """Channels-last: a job is some pixels of one image."""

    @job_kernel(GEOMETRY)
    def gather(grad, y, x, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        power = get(g.power, 0, ITEM)
        rows, columns = ints(g.rows, g.height, 3), ints(g.columns, g.width, 3)
        n, begin = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        h, w = begin // g.width, begin % g.width - 1
        for _pixel in range(begin, min(begin + g.per_job, g.height * g.width)):
            w += 1
            if w == g.width:
                h, w = h + 1, 0
            top, down, _ = rows[h]
            left, across, _ = columns[w]
            o = n * g.out_batch + h * g.out_row + w * g.out_column
            if down * across == 0:
                fill(out + ITEM * o, g.channels, 0.0, ITEM)
            for i in range(top, top + down):
                for j in range(left, left + across):
                    source = n * g.grad_batch + i * g.grad_row + j * g.grad_column
                    _add_windows(
                        grad + ITEM * source, y + ITEM * source, get(g.down, i, ITEM) * get(g.across, j, ITEM),
                        out + ITEM * o, g.channels, i == top and j == left, power, MODE, ITEM,
                    )  # fmt: skip
            _times_power(out + ITEM * o, x + ITEM * o, g.channels, power, MODE, ITEM)

    return gather

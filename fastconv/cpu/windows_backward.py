"""Jobs of the gradients of pooling.

==============  ==============================  =================================================
function        a job owns                      and does
==============  ==============================  =================================================
scatter_maxima  whole planes                    adds each gradient to the pixel that its index names
gather_rows     rows of contiguous planes       adds up, for each pixel, what the windows that cover
                                                it pass on
gather_pixels   channels-last pixels            the same, for all channels at once
==============  ==============================  =================================================

A maximum passes on its gradient to the pixel that its index names, and the jobs count how many of these are in their
windows; if not all are, nobody has added the others. An average passes on a share of its gradient: a weight for its row
times one for its column. So does a norm, with the gradient times ``y**(1-p)``, and a pixel multiplies the sum by
``x**(p-1)``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu import gather_lines
from fastconv.cpu.gather_lines import fill_run
from fastconv.cpu.kernel import fields
from fastconv.cpu.memory import get, ints, put
from fastconv.cpu.region import fetch_add
from fastconv.jit import inline, job_kernel

MAX, AVERAGE, SQUARES, POWERS = range(4)  # modes; the last two are Lp norms, with p = 2 and any other

GEOMETRY = fields(
    "channels_last", "height", "width", "channels", "out_height", "out_width", "per_job", "jobs_per_image",
    "kernel_w", "stride_w", "padding_w", "rows", "columns", "down", "across", "power",
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
                fill_run(image + ITEM * pixel * g.out_column, channels, 0.0, ITEM)
            for i in range(g.out_height):
                for j in range(g.out_width):
                    o = first + i * g.grad_row + j * g.grad_column
                    _scatter(grad + ITEM * o, indices + 8 * o, channels, image, 1, g.out_column, area, ITEM)
        else:
            for channel in range(channels):
                plane = image + ITEM * channel * g.out_channel
                fill_run(plane, area, 0.0, ITEM)
                for i in range(g.out_height):
                    o = first + channel * g.grad_channel + i * g.grad_row
                    _scatter(grad + ITEM * o, indices + 8 * o, g.out_width, plane, 0, 1, area, ITEM)

    return scatter


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
def _spread(grad, out, row, g, ITEM):
    """One row of averages whose windows are far apart: what is not covered before is filled, a run at a time."""
    first, windows = ints(g.rows, g.height, 2)[row]
    done = np.int64(0)
    for j in range(g.out_width):
        share = 0.0
        for i in range(first, first + windows):
            share += get(grad, i * g.grad_row + j, ITEM) * get(g.down, i, ITEM)
        share *= get(g.across, j, ITEM)
        start = max(0, j * g.stride_w - g.padding_w)
        end = min(j * g.stride_w - g.padding_w + g.kernel_w, g.width)
        for w in range(start, done):
            put(out, w, get(out, w, ITEM) + share, ITEM)
        fill_run(out + ITEM * done, start - done, 0.0, ITEM)
        done = max(done, start)
        fill_run(out + ITEM * done, end - done, share, ITEM)
        done = max(done, end)
    fill_run(out + ITEM * done, g.width - done, 0.0, ITEM)


@cache
def gather_rows(ITEM: int, MODE: int, KERNEL: int, STRIDE: int, stamp: str) -> Any:
    """Contiguous planes, no maxima: a job is some rows of some planes of one image. A STRIDE of 0 stands for any."""

    @job_kernel(GEOMETRY)
    def gather(grad, _second, x, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, begin = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        end = min(begin + g.per_job, g.channels * g.height)
        while begin < end:
            c, h = begin // g.height, begin % g.height
            last = min(g.height, h + end - begin)
            plane, target = grad + ITEM * (n * g.grad_batch + c * g.grad_channel), n * g.out_batch + c * g.out_channel
            if STRIDE:
                gather_lines.gather_rows(
                    (plane, g.grad_row, g.out_width), (out + ITEM * target, g.out_row, g.width),
                    (g.rows, g.down, g.across), (h, last), g.padding_w, KERNEL, STRIDE, ITEM,
                )  # fmt: skip
            for row in range(h, last):
                o = ITEM * (target + row * g.out_row)
                if not STRIDE:
                    _spread(plane, out + o, row, g, ITEM)
                _times_power(out + o, x + o, g.width, get(g.power, 0, ITEM), MODE, ITEM)
            begin += last - h

    return gather


@cache
def gather_pixels(ITEM: int, MODE: int, stamp: str) -> Any:
    """Channels-last: a job is some pixels of one image."""
    MAXIMUM = int(MODE == MAX)

    @job_kernel(GEOMETRY)
    def gather(grad, second, third, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, begin = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        source, end, found = n * g.grad_batch, min(begin + g.per_job, g.height * g.width), 0
        for row in range(begin // g.width, (end - 1) // g.width + 1):
            first, last = max(0, begin - row * g.width), min(g.width, end - row * g.width)
            target = n * g.out_batch + row * g.out_row
            found += gather_lines.gather_pixels(
                (grad + ITEM * source, second + 8 * source, g.grad_row, g.grad_column),
                (out + ITEM * target, g.out_column), (g.rows, g.columns, g.down, g.across),
                (row, g.width, first, last), g.channels, MAXIMUM, ITEM,
            )  # fmt: skip
            if MODE in (SQUARES, POWERS):
                for column in range(first, last):
                    o = ITEM * (target + column * g.out_column)
                    _times_power(out + o, third + o, g.channels, get(g.power, 0, ITEM), MODE, ITEM)
        if MODE == MAX:
            fetch_add(third, found)

    return gather

"""Pooling by columns: the windows of a block are copied out as a matrix (taps, windows), then its rows are reduced.

It is the simple way: padding is written into the matrix (-inf for the maximum, else 0), so the reduction
knows nothing of borders. The matrix of one block is all the workspace there is.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.kernel import Geometry, Params, fields, record
from fastconv.cpu.memory import get, ints, put
from fastconv.cpu.pool_kernel import PoolKernel, unsupported
from fastconv.cpu.reduce import MAX
from fastconv.cpu.window import covered, window_at, window_record
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import PoolProblem

__all__ = ["cost", "make", "space", "unsupported"]

_MOST_BYTES = 1 << 20  # of the matrix, if one column allows it

# A block is `windows` neighbouring windows of `lane_channels` channels; its columns are (window, channel).
GEOMETRY = fields(
    "window", "indices", "height", "width", "channels", "pixels", "windows", "pixel_jobs", "lane_channels",
    "channel_jobs", "lanes", "taps", "x_batch", "x_channel", "x_row", "x_column",
    "out_batch", "out_channel", "out_row", "out_column",
)  # fmt: skip


def space(problem: PoolProblem) -> list[Params]:
    """Columns of one block."""
    return [{"lanes": lanes} for lanes in (256, 1024)]


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: each tap is written and read again."""
    per_tap = 20.0 if problem.pool.mode == "lp" else 1.0
    copied_one_by_one = 1.5 if problem.memory_format == "contiguous" else 0.0
    block = 300 * problem.flops / (math.prod(problem.pool.kernel_size) * params["lanes"])
    return 500 + 0.1 * problem.bytes + (per_tap + copied_one_by_one) * problem.flops + block


def make(problem: PoolProblem, params: Params, threads: int) -> PoolKernel:
    """The kernel, to be compiled or loaded when it is first run."""
    return ColumnPool(problem, params, threads)


@inline
def _build(x, columns, starts, first, count, channels, g, w, ITEM):
    """Columns of `count` windows from output pixel `first` on; `starts` gets the first tap of each that is inside."""
    empty = -np.inf if w.mode == MAX else 0.0
    for q in range(count):
        i, j = (first + q) // w.out_width, (first + q) % w.out_width
        start = np.int64(-1)
        for tap in range(g.taps):
            h = i * w.stride_h - w.padding_h + tap // w.kernel_w * w.dilation_h
            v = j * w.stride_w - w.padding_w + tap % w.kernel_w * w.dilation_w
            column = columns + ITEM * (tap * g.lanes + q * channels)
            if 0 <= h < g.height and 0 <= v < g.width:
                start = tap if start < 0 else start
                source = x + ITEM * (h * g.x_row + v * g.x_column)
                for c in range(channels):
                    value = get(source, c * g.x_channel, ITEM)
                    put(column, c, value if w.norm == 1 else value**w.norm, ITEM)
            else:
                for c in range(channels):
                    put(column, c, empty, ITEM)
        for c in range(channels):
            starts[q * channels + c] = start


@inline
def _reduce(columns, result, places, count, g, w, ITEM):
    """Reduce `count` columns over the taps into `result`; `places` gets the tap of each maximum."""
    for lane in range(count):
        put(result, lane, -np.inf if w.mode == MAX else 0.0, ITEM)
    for tap in range(g.taps):
        row = columns + ITEM * tap * g.lanes
        for lane in range(count):
            value, before = get(row, lane, ITEM), get(result, lane, ITEM)
            if w.mode != MAX:
                put(result, lane, before + value, ITEM)
            elif value > before or value != value:
                put(result, lane, value, ITEM)
                places[lane] = tap


@inline
def _finish(result, places, out, indices, first, count, channels, g, w, ITEM):
    """Write `count` windows to `out` and, if wanted, the indices of their maxima."""
    for q in range(count):
        i, j = (first + q) // w.out_width, (first + q) % w.out_width
        down = covered(i, w.kernel_h, w.stride_h, w.padding_h, g.height, w.include_pad)
        across = covered(j, w.kernel_w, w.stride_w, w.padding_w, g.width, w.include_pad)
        for c in range(channels):
            lane, o = q * channels + c, i * g.out_row + j * g.out_column + c * g.out_channel
            value = get(result, lane, ITEM)
            if w.mode != MAX:
                value = value / (down * across) * w.area
            put(out, o, value if w.root == 1 else value**w.root, ITEM)
            if g.indices:
                tap = places[lane]
                h = i * w.stride_h - w.padding_h + tap // w.kernel_w * w.dilation_h
                v = j * w.stride_w - w.padding_w + tap % w.kernel_w * w.dilation_w
                ints(indices + 8 * o, 1, 1)[0, 0] = h * g.width + v if tap >= 0 else -1


@cache
def _compiled(ITEM: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def pool_columns(x, indices, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        w = window_at(g.window)
        job, rest = index % g.pixel_jobs, index // g.pixel_jobs
        c, n = rest % g.channel_jobs * g.lane_channels, rest // g.channel_jobs
        first, channels = job * g.windows, min(g.lane_channels, g.channels - c)
        count = min(g.windows, g.pixels - first)
        places, result = ints(scratch, 1, g.lanes)[0], scratch + 8 * g.lanes
        columns = result + ITEM * g.lanes
        o = n * g.out_batch + c * g.out_channel
        _build(x + ITEM * (n * g.x_batch + c * g.x_channel), columns, places, first, count, channels, g, w, ITEM)
        _reduce(columns, result, places, count * channels, g, w, ITEM)
        _finish(result, places, out + ITEM * o, indices + 8 * o, first, count, channels, g, w, ITEM)

    return pool_columns


class ColumnPool(PoolKernel):
    """Pooling of one problem by blocks of columns."""

    layout_copies = "columns, in blocks"

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function = _compiled(self.item, source_stamp())

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        taps, pixels = math.prod(p.pool.kernel_size), math.prod(p.out_size)
        lanes = max(1, min(self.params["lanes"], _MOST_BYTES // (taps * self.item)))
        lane_channels = min(p.channels, lanes) if x[1] == 1 else 1
        windows = max(1, min(pixels, lanes // lane_channels))
        lanes = windows * lane_channels
        pixel_jobs, channel_jobs = -(-pixels // windows), -(-p.channels // lane_channels)
        slab = -(-(8 + self.item * (taps + 1)) * lanes // 64) * 64
        return record(
            GEOMETRY, p.batch * pixel_jobs * channel_jobs, slab, {"window": window_record(p.pool, p.in_size)},
            indices=p.return_indices, height=p.in_size[0], width=p.in_size[1], channels=p.channels, pixels=pixels,
            windows=windows, pixel_jobs=pixel_jobs, lane_channels=lane_channels, channel_jobs=channel_jobs,
            lanes=lanes, taps=taps, x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3],
            out_batch=out[0], out_channel=out[1], out_row=out[2], out_column=out[3],
        )  # fmt: skip

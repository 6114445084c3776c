"""The whole column matrix of torch.nn.functional.unfold and fold, built and added up.

Columns are (N, C*R*S, L) in torch's order, here as (N, C, R*S, L). One job copies the columns of some
channels of one image, or gathers some rows of one channel's plane, so that no two jobs write the same
element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.kernel import Geometry, Kernel, fields, record
from fastconv.cpu.memory import get, put
from fastconv.cpu.ranges import inside
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.sizes import Pair

GEOMETRY = fields(
    "channels", "height", "width", "kernel_h", "kernel_w", "out_height", "out_width", "stride_h", "stride_w",
    "padding_h", "padding_w", "dilation_h", "dilation_w", "per_job", "jobs_per_image",
    "image_batch", "image_channel", "image_row", "image_column",
    "column_batch", "column_channel", "column_tap", "column_step",
)  # fmt: skip

_JOB_BYTES = 64 << 10


@dataclass(frozen=True)
class ColumnsProblem:
    """Which windows of which image; what `Kernel` needs to know of a problem."""

    batch: int
    channels: int
    size: Pair
    windows: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    dtype: str

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Shape of the image, (N, C, H, W)."""
        return (self.batch, self.channels, *self.size)

    @property
    def columns_shape(self) -> tuple[int, int, int, int]:
        """Shape of the columns, (N, C, R*S, L)."""
        return (self.batch, self.channels, math.prod(self.kernel_size), math.prod(self.windows))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize


@inline
def _inside(tap, stride, padding, dilation, windows, size):
    """Along one axis: the windows [first, last) whose element `tap` lies in the image, and where that starts."""
    origin = tap * dilation - padding
    first, last = inside(origin, stride, size, windows)
    return first, last, origin


@inline
def _unfold_tap(plane, columns, r, s, g, ITEM):
    """Copy the elements (r, s) of all windows of one plane."""
    first, last, left = _inside(s, g.stride_w, g.padding_w, g.dilation_w, g.out_width, g.width)
    for i in range(g.out_height):
        h = i * g.stride_h - g.padding_h + r * g.dilation_h
        line = columns + ITEM * i * g.out_width
        begin, end = first, last
        if h < 0 or h >= g.height:
            begin, end = g.out_width, g.out_width
        for j in range(begin):
            put(line, j, 0.0, ITEM)
        source, step = plane + ITEM * (h * g.image_row + left * g.image_column), g.stride_w * g.image_column
        if step == 1:
            for j in range(begin, end):
                put(line, j, get(source, j, ITEM), ITEM)
        else:
            for j in range(begin, end):
                put(line, j, get(source, j * step, ITEM), ITEM)
        for j in range(end, g.out_width):
            put(line, j, 0.0, ITEM)


@inline
def _fold_row(columns, plane, h, g, ITEM):
    """Add up row `h` of one plane from every window that covers it."""
    line = plane + ITEM * h * g.image_row
    for w in range(g.width):
        put(line, w, 0.0, ITEM)
    for r in range(g.kernel_h):
        down = h + g.padding_h - r * g.dilation_h
        i = down // g.stride_h
        if down % g.stride_h != 0 or i < 0 or i >= g.out_height:
            continue
        for s in range(g.kernel_w):
            first, last, left = _inside(s, g.stride_w, g.padding_w, g.dilation_w, g.out_width, g.width)
            tap = columns + ITEM * ((r * g.kernel_w + s) * g.column_tap + i * g.out_width * g.column_step)
            for j in range(first, last):
                w = left + j * g.stride_w
                put(line, w, get(line, w, ITEM) + get(tap, j * g.column_step, ITEM), ITEM)


@cache
def _unfold(ITEM: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def unfold(x, _weight, _bias, columns, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, first = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        taps = g.kernel_h * g.kernel_w
        for line in range(first, min(first + g.per_job, g.channels * taps)):
            c, tap = line // taps, line % taps
            plane = x + ITEM * (n * g.image_batch + c * g.image_channel)
            target = columns + ITEM * (n * g.column_batch + c * g.column_channel + tap * g.column_tap)
            _unfold_tap(plane, target, tap // g.kernel_w, tap % g.kernel_w, g, ITEM)

    return unfold


@cache
def _fold(ITEM: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def fold(columns, _weight, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, first = index // g.jobs_per_image, index % g.jobs_per_image * g.per_job
        for line in range(first, min(first + g.per_job, g.channels * g.height)):
            c, h = line // g.height, line % g.height
            plane = out + ITEM * (n * g.image_batch + c * g.image_channel)
            _fold_row(columns + ITEM * (n * g.column_batch + c * g.column_channel), plane, h, g, ITEM)

    return fold


class _ColumnsKernel(Kernel):
    """What both directions share: lines of the result are spread over the jobs."""

    def __init__(self, problem: ColumnsProblem, threads: int, function: Any) -> None:
        super().__init__(problem, {}, threads)
        self.function = function
        self._no_bias = np.empty(0, problem.dtype)

    def run(self, source: np.ndarray, target: np.ndarray) -> None:
        """Compute `target` from `source`, an image and columns or the other way round."""
        launch = self.launch(source, target) if target.size else None
        if launch is not None:  # any strides are taken
            launch(source, source, self._no_bias, target)

    def record(self, image: tuple[int, ...], columns: tuple[int, ...], lines: int, line_bytes: int) -> Geometry:
        """The geometry; an image has `lines` lines to be computed, of `line_bytes` bytes of columns each."""
        p = self.problem
        per_job = max(1, min(lines, _JOB_BYTES // max(1, line_bytes)))
        jobs = -(-lines // per_job)
        pairs = {
            f"{name}_{axis}": value
            for name in ("stride", "padding", "dilation")
            for axis, value in zip("hw", getattr(p, name), strict=True)
        }
        return record(
            GEOMETRY, p.batch * jobs, 0, {}, channels=p.channels, height=p.size[0], width=p.size[1],
            kernel_h=p.kernel_size[0], kernel_w=p.kernel_size[1], out_height=p.windows[0], out_width=p.windows[1],
            per_job=per_job, jobs_per_image=jobs,
            image_batch=image[0], image_channel=image[1], image_row=image[2], image_column=image[3],
            column_batch=columns[0], column_channel=columns[1], column_tap=columns[2], column_step=columns[3], **pairs,
        )  # fmt: skip


class Unfold(_ColumnsKernel):
    """Image (N, C, H, W), any strides, to columns (N, C, R*S, L), contiguous along L."""

    def __init__(self, problem: ColumnsProblem, threads: int) -> None:
        super().__init__(problem, threads, _unfold(problem.itemsize, source_stamp()))

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        _, channels, taps, windows = self.problem.columns_shape
        return self.record(x, out, channels * taps, windows * self.item)


class Fold(_ColumnsKernel):
    """Columns (N, C, R*S, L), any strides, to the sum of their windows (N, C, H, W), contiguous along W."""

    def __init__(self, problem: ColumnsProblem, threads: int) -> None:
        super().__init__(problem, threads, _fold(problem.itemsize, source_stamp()))

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        taps, windows = p.columns_shape[2:]
        return self.record(out, x, p.channels * p.size[0], taps * windows * self.item // p.size[0])

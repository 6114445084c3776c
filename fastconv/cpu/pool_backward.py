"""Gradients of pooling: the kernels; their jobs are in `fastconv.cpu.windows_backward`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastconv.arrays import empty
from fastconv.cpu.kernel import Geometry, Kernel, Params, dense_strides, record
from fastconv.cpu.launch import lp_launcher, pool_launcher
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.windows_backward import (
    AVERAGE,
    GEOMETRY,
    POWERS,
    SQUARES,
    SUM,
    gather_pixels,
    gather_rows,
    scatter_maxima,
)
from fastconv.jit import source_stamp
from fastconv.problem import MemoryFormat, PoolProblem

_CHANNELS = 64  # of a job at least: pieces of a pixel that are much shorter are slow to walk
_JOB_BYTES = 64 << 10


def unsupported(problem: PoolProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "a gradient has no indices" if problem.return_indices else None


def space(problem: PoolProblem) -> list[Params]:
    """Nothing to choose."""
    return [{}]


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: memory traffic, and what is done for each window."""
    pool, windows = problem.pool, math.prod(problem.out_shape)
    if pool.mode == "max":
        return 500 + 0.1 * problem.bytes + 1.5 * windows
    if pool.mode == "lp" and pool.norm_type not in (1.0, 2.0):
        return 500 + 20 * problem.flops
    return 500 + 0.1 * problem.bytes + 0.05 * problem.flops


def make(problem: PoolProblem, params: Params, threads: int) -> PoolBackward:
    """Compile or load the kernel."""
    return (MaxBackward if problem.pool.mode == "max" else MeanBackward)(problem, params, threads)


class PoolBackward(Kernel):
    """The gradient of a pooling: what all modes share."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.format = problem.memory_format
        self.lane_axis = 1 if self.format == "channels_last" else 3

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        return self.problem.out_shape, self.problem.in_shape

    def reads(self, x: tuple[int, ...]) -> bool:
        return x[self.lane_axis] == 1

    def writes(self, out: tuple[int, ...]) -> bool:
        return out[self.lane_axis] == 1

    @abstractmethod
    def operands(self, grad: np.ndarray, out: np.ndarray, saved: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The second and third array of a job."""

    def run(self, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        """Compute `out`, the gradient of the input, from `grad`, that of the result; both (N, C, H, W).

        Any strides are taken; arrays whose lanes are not neighbours are copied. Safe to call from several threads
        at once.

        Parameters
        ----------
        saved : arrays
            What the forward pass had. For a maximum its int64 indices, of the shape of `grad`; for an Lp norm its
            result, of the shape of `grad`, and its input, of the shape of `out`; for an average nothing.
        """
        if not out.size:
            return
        launch = self.launch(grad, out)
        if launch is not None and all(map(_alike, saved, (grad, out))):
            second, third = self.operands(grad, out, saved)
            launch(grad, second, third, out)
            return
        dense, *others = (_dense(array, self.format) for array in (grad, *saved))
        result = empty(out.shape, out.dtype, self.format)
        self.run(dense, result, *others)
        np.copyto(out, result)

    def split(self, lines: int) -> tuple[int, int]:
        """Of the `lines` of an image, how many are one job's, and how many jobs that makes."""
        p = self.problem
        jobs = min(self.wanted_jobs(4), p.bytes // _JOB_BYTES + 1)
        per_job = -(-lines // min(lines, -(-jobs // max(1, p.batch))))
        return per_job, -(-lines // per_job)

    def fill(self, grad: tuple, out: tuple, jobs: int, slab: int, tables: dict, **values: int) -> Geometry:
        """The record of the fields that all modes have, and of those given."""
        p = self.problem
        return record(
            GEOMETRY, p.batch * jobs, slab, tables, jobs_per_image=jobs, channels=p.channels,
            height=p.in_size[0], width=p.in_size[1], out_height=p.out_size[0], out_width=p.out_size[1],
            grad_batch=grad[0], grad_channel=grad[1], grad_row=grad[2], grad_column=grad[3],
            out_batch=out[0], out_channel=out[1], out_row=out[2], out_column=out[3], **values,
        )  # fmt: skip


class MaxBackward(PoolBackward):
    """The gradient of a maximum."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function, self.launcher = scatter_maxima(self.item, source_stamp()), pool_launcher(problem.dtype)
        self._no_third = np.empty(0, problem.dtype)

    def writes(self, out: tuple[int, ...]) -> bool:
        # An index counts pixels, so they must be evenly spaced through the whole plane.
        return super().writes(out) and out[2] == self.problem.in_size[1] * out[3]

    def operands(self, grad: np.ndarray, out: np.ndarray, saved: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return saved[0], self._no_third

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        unit = _CHANNELS if self.format == "channels_last" else 1
        units, jobs = self.split(-(-p.channels // unit))
        return self.fill(x, out, jobs, 0, {}, per_job=unit * units, channels_last=self.format == "channels_last")


class MeanBackward(PoolBackward):
    """The gradient of an average or an Lp norm."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        pool, width = problem.pool, problem.in_size[1]
        whole = pool.kernel_size == problem.in_size and pool.padding == (0, 0)
        self.row_step = None  # any distance from row to row will do
        if whole and problem.memory_format == "contiguous":
            # A pooling of whole planes is one of rows as long as a plane, which takes fewer and longer loops.
            row = (1, math.prod(problem.in_size))
            problem = replace(problem, in_size=row, pool=replace(pool, kernel_size=row, stride=row))
            self.row_step = width
        super().__init__(problem, params, threads)
        norm = pool.norm_type
        mode = {1.0: SUM, 2.0: SQUARES}.get(norm, POWERS) if pool.mode == "lp" else AVERAGE
        compiled = gather_pixels if self.format == "channels_last" else gather_rows
        self.function, self.launcher = compiled(self.item, mode, source_stamp()), lp_launcher(problem.dtype)
        (rows, down), (columns, across) = _axis(problem, 0), _axis(problem, 1)
        power = np.array([norm - 1], problem.dtype)
        self.tables = {"rows": rows, "columns": columns, "down": down, "across": across, "power": power}

    def writes(self, out: tuple[int, ...]) -> bool:
        return super().writes(out) and self.row_step in (None, out[2])

    def operands(self, grad: np.ndarray, out: np.ndarray, saved: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return (saved[0], saved[1]) if saved else (grad, out)  # an average looks at neither

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p, pool = self.problem, self.problem.pool
        (height, width), kernel, stride, padding = p.in_size, pool.kernel_size[1], pool.stride[1], pool.padding[1]
        if self.format == "channels_last":
            per_job, jobs = self.split(height * width)
            return self.fill(x, out, jobs, 0, self.tables, per_job=per_job)
        per_job, jobs = self.split(p.channels * height)
        before = whole_lines(-(-kernel // stride) - 1)
        reach = (width - 1 + padding) // stride + 1  # windows that could start at a pixel or before
        line = before + whole_lines(max(p.out_size[1], reach))
        row = 3 * reach if stride == 2 else max(padding + width, (p.out_size[1] - 1) * stride + kernel)
        return self.fill(
            x, out, jobs, (line + whole_lines(row)) * self.item, self.tables, per_job=per_job, before=before, line=line,
            row=row, reach=reach, kernel_w=kernel, stride_w=stride, padding_w=padding,
        )  # fmt: skip


def _axis(problem: PoolProblem, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: which windows cover a pixel, and the share that a window gives to each.

    Returns
    -------
    windows : int64 array (size, 3)
        First window that covers the pixel, how many do, and whether these are others than the pixel before has.
    shares : array (windows,)
        1 / elements that count for the average; for a norm the factor by which it is scaled up at the edge.
    """
    pool, size, windows = problem.pool, problem.in_size[axis], problem.out_size[axis]
    kernel, stride, padding = pool.kernel_size[axis], pool.stride[axis], pool.padding[axis]
    pixel, start = np.arange(size), np.arange(windows) * stride - padding
    first = np.maximum(0, (pixel + padding - kernel) // stride + 1)
    count = np.maximum(0, np.minimum(windows, (pixel + padding) // stride + 1) - first)
    another = (np.diff(first, prepend=-1) != 0) | (np.diff(count, prepend=-1) != 0)
    counted = np.minimum(start + kernel, size + padding) - start
    if not pool.count_include_pad:
        counted = np.minimum(start + kernel, size) - np.maximum(start, 0)
    shares = (kernel if pool.mode == "lp" else 1) / counted
    return np.stack([first, count, another], axis=1).astype(np.int64), shares.astype(problem.dtype)


def _alike(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same strides, in elements."""
    return [s * other.itemsize for s in array.strides] == [s * array.itemsize for s in other.strides]


def _dense(array: np.ndarray, format: MemoryFormat) -> np.ndarray:
    """`array`, or a copy of it, that fills its memory in the order of the format."""
    if [s // array.itemsize for s in array.strides] == list(dense_strides(array.shape, format)):
        return array
    copy = empty(array.shape, array.dtype, format)
    np.copyto(copy, array)
    return copy

"""Gradients of pooling: the kernels; their jobs are in `fastconv.cpu.windows_backward`."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from functools import cached_property

import numpy as np

from fastconv.arrays import dense_strides, empty
from fastconv.cpu.elementwise import norm_share
from fastconv.cpu.kernel import Geometry, Kernel, Launch, Params, record
from fastconv.cpu.windows_backward import (
    AVERAGE,
    GEOMETRY,
    MAX,
    POWERS,
    SQUARES,
    gather_pixels,
    gather_rows,
    scatter_maxima,
)
from fastconv.jit import source_stamp
from fastconv.problem import MemoryFormat, PoolProblem

_CHANNELS = 64  # of a job at least: pieces of a pixel that are much shorter are slow to walk
_JOB_BYTES = 64 << 10
_MOST_PIXELS = 16  # of a window that is gathered


def unsupported(problem: PoolProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "a gradient has no indices" if problem.return_indices else None


def space(problem: PoolProblem) -> list[Params]:
    """Nothing to choose."""
    return [{}]


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: memory traffic, and what is done for each window or its pixels."""
    pool, memory = problem.pool, 500 + 0.04 * problem.bytes
    if pool.mode == "max" and not _worth_gathering(problem):
        return memory + 0.8 * math.prod(problem.out_shape)
    if pool.mode == "lp" and pool.norm_type not in (1.0, 2.0):
        return memory + 20 * (math.prod(problem.out_shape) + math.prod(problem.in_shape))
    return memory + 0.05 * problem.flops


def make(problem: PoolProblem, params: Params, threads: int) -> PoolBackward:
    """The kernel, to be compiled or loaded when it is first run."""
    if problem.pool.mode != "max":
        return MeanBackward(problem, params, threads)
    return (GatherMaxima if _worth_gathering(problem) else ScatterMaxima)(problem, params, threads)


def _worth_gathering(problem: PoolProblem) -> bool:
    """Whether looking for the pixel of an index among those of its window is faster than going there."""
    pool = problem.pool
    last = problem.memory_format == "channels_last"
    return last and pool.dilation == (1, 1) and math.prod(pool.kernel_size) <= _MOST_PIXELS


class PoolBackward(Kernel):
    """The gradient of a pooling: what all modes share."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.format = problem.memory_format
        self.lane_axis = 1 if self.format == "channels_last" else 3

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        return self.problem.out_shape, self.problem.in_shape

    @abstractmethod
    def start(self, launch: Launch, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        """Run the jobs on arrays that they can read and write as they are."""

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
        if launch is not None and all(_alike(array, self.like(grad, out)) for array in saved):
            self.start(launch, grad, out, *saved)
            return
        dense, *others = (_dense(array, self.format) for array in (grad, *saved))
        result = empty(out.shape, out.dtype, self.format)
        launch = self.launch(dense, result)
        assert launch is not None  # every kernel takes arrays that fill their memory
        self.start(launch, dense, result, *others)
        np.copyto(out, result)

    def like(self, grad: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Which of the two the arrays of the forward pass must be laid out as."""
        return grad

    def split(self, lines: int) -> tuple[int, int]:
        """Of the `lines` of an image, how many are one job's, and how many jobs that makes."""
        p = self.problem
        jobs = min(self.wanted_jobs(4), p.bytes // _JOB_BYTES + 1)
        per_job = -(-lines // min(lines, -(-jobs // max(1, p.batch))))
        return per_job, -(-lines // per_job)

    def fill(self, grad: tuple, out: tuple, jobs: int, tables: dict, **values: int) -> Geometry:
        """The record of the fields that all modes have, and of those given."""
        p = self.problem
        shared = {
            "jobs_per_image": jobs, "channels": p.channels, "height": p.in_size[0], "width": p.in_size[1],
            "out_height": p.out_size[0], "out_width": p.out_size[1],
            "grad_batch": grad[0], "grad_channel": grad[1], "grad_row": grad[2], "grad_column": grad[3],
            "out_batch": out[0], "out_channel": out[1], "out_row": out[2], "out_column": out[3],
        }  # fmt: skip
        return record(GEOMETRY, p.batch * jobs, 0, tables, **{**shared, **values})


class ScatterMaxima(PoolBackward):
    """The gradient of a maximum, wherever the indices point."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function = scatter_maxima(self.item, source_stamp())
        self._no_third = np.empty(0, problem.dtype)

    def writes(self, out: tuple[int, ...]) -> bool:
        # An index counts pixels, so they must be evenly spaced through the whole plane.
        return super().writes(out) and out[2] == self.problem.in_size[1] * out[3]

    def start(self, launch: Launch, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        launch(grad, saved[0], self._no_third, out)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        unit = _CHANNELS if self.format == "channels_last" else 1
        units, jobs = self.split(-(-p.channels // unit))
        rows, columns = p.out_size
        if x[2] == columns * x[3]:  # rows that follow each other are one
            rows, columns = 1, rows * columns
        return self.fill(
            x, out, jobs, {}, per_job=unit * units, channels_last=self.format == "channels_last",
            out_height=rows, out_width=columns,
        )  # fmt: skip


class GatherWindows(PoolBackward):
    """Each pixel from the windows that cover it."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int, mode: int) -> None:
        super().__init__(problem, params, threads)
        if self.format == "channels_last":
            self.function = gather_pixels(self.item, mode, source_stamp())
        else:
            kernel, stride = problem.pool.kernel_size[1], problem.pool.stride[1]
            window = (kernel, stride) if stride <= 2 else (0, 0)
            self.function = gather_rows(self.item, mode, *window, source_stamp())
        (rows, down), (columns, across) = _axis(problem, 0), _axis(problem, 1)
        power = np.array([problem.pool.norm_type - 1], problem.dtype)
        self.tables = {"rows": rows, "columns": columns, "down": down, "across": across, "power": power}

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p, pool = self.problem, self.problem.pool
        per_job, jobs = self.split(p.in_size[0] * (p.in_size[1] if self.format == "channels_last" else p.channels))
        return self.fill(
            x, out, jobs, self.tables, per_job=per_job,
            kernel_w=pool.kernel_size[1], stride_w=pool.stride[1], padding_w=pool.padding[1],
        )  # fmt: skip


class GatherMaxima(GatherWindows):
    """The gradient of a maximum, as long as every index points into its window."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads, MAX)

    @cached_property
    def anywhere(self) -> ScatterMaxima:
        """What does the work again if an index points elsewhere."""
        return ScatterMaxima(self.problem, self.params, self.threads)

    def start(self, launch: Launch, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        found = np.zeros(1, np.int64)
        launch(grad, saved[0], found.view(grad.dtype), out)
        if found[0] != grad.size:
            self.anywhere.run(grad, out, *saved)


class MeanBackward(GatherWindows):
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
        norm = pool.norm_type if pool.mode == "lp" else 1.0
        super().__init__(problem, params, threads, {1.0: AVERAGE, 2.0: SQUARES}.get(norm, POWERS))

    def writes(self, out: tuple[int, ...]) -> bool:
        return super().writes(out) and self.row_step in (None, out[2])

    def run(self, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        if saved:
            y, x = saved
            grad, saved = norm_share(grad, y, self.problem.pool.norm_type), (x,)
        super().run(grad, out, *saved)

    def like(self, grad: np.ndarray, out: np.ndarray) -> np.ndarray:
        return out

    def start(self, launch: Launch, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        launch(grad, grad, saved[0] if saved else out, out)  # no job looks at the second, nor an average at the third


def _axis(problem: PoolProblem, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: which windows cover a pixel, and the share that a window gives to each.

    Returns
    -------
    windows : int64 array (size, 2)
        First window that covers the pixel, and how many do.
    shares : array (windows,)
        1 / elements that count for the average; for a norm the factor by which it is scaled up at the edge.
    """
    pool, size, windows = problem.pool, problem.in_size[axis], problem.out_size[axis]
    kernel, stride, padding = pool.kernel_size[axis], pool.stride[axis], pool.padding[axis]
    pixel, start = np.arange(size), np.arange(windows) * stride - padding
    first = np.maximum(0, (pixel + padding - kernel) // stride + 1)
    count = np.maximum(0, np.minimum(windows, (pixel + padding) // stride + 1) - first)
    counted = np.minimum(start + kernel, size + padding) - start
    if not pool.count_include_pad:
        counted = np.minimum(start + kernel, size) - np.maximum(start, 0)
    shares = (kernel if pool.mode == "lp" else 1) / counted
    return np.stack([first, count], axis=1).astype(np.int64), shares.astype(problem.dtype)


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

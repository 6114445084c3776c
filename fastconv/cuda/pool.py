"""Pooling with a thread for each element of the result, as in `fastconv.cuda.reference`."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import DeviceKernel, Strides
from fastconv.cuda.elements import place
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.reference import THREADS, blocks_for, space
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer, types
from fastconv.cuda.window import Norm, Window, mode_of, reduction
from fastconv.problem import PoolProblem

__all__ = ["cost", "make", "space", "unsupported"]

_LAUNCH_NS = 5_000.0
_NS_PER_BYTE, _NS_PER_TAP = 0.0005, 0.001


class PoolGeometry(NamedTuple):
    """Number of images and maps, whether channels are neighbours, and strides in elements of input and output."""

    batch: int
    channels: int
    channels_last: int
    x_batch: int
    x_channel: int
    x_row: int
    x_column: int
    out_batch: int
    out_channel: int
    out_row: int
    out_column: int

    @classmethod
    def of(cls, problem: PoolProblem, x: Strides, out: Strides) -> PoolGeometry:
        """From a problem and the strides of the forward pooling's input and output, whichever a kernel writes."""
        return cls(problem.batch, problem.channels, int(problem.memory_format == "channels_last"), *x, *out)


class Steps(NamedTuple):
    """Strides in elements of one more array."""

    batch: int
    channel: int
    row: int
    column: int


def unsupported(problem: PoolProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "only the maximum has an index" if problem.return_indices and problem.pool.mode != "max" else None


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return _LAUNCH_NS + _NS_PER_BYTE * problem.bytes + _NS_PER_TAP * problem.flops


def make(problem: PoolProblem, params: Params, threads: int) -> ReferencePool:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return ReferencePool(problem)


@device
def at(steps, n, c, row, column):
    """Distance of an element from the first one."""
    return n * steps.batch + c * steps.channel + row * steps.row + column * steps.column


@device
def _pixel(source, row, column):
    """A value of a map, `source`: memory, its first element in it, and the steps to the next row and column."""
    x, first, x_row, x_column = source
    return x[first + row * x_row + column * x_column]


@cache
def _pool(dtype: str, mode: int, with_indices: bool) -> Kernel:
    real = getattr(types, dtype)
    reduced = reduction(mode, dtype, _pixel)

    def pool(x, indices, out, g, window, norm, steps):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.batch * g.channels * window.out_height * window.out_width:
            n, c, i, j = place(index, g.channels, window.out_height, window.out_width, g.channels_last)
            source = (x, n * g.x_batch + c * g.x_channel, g.x_row, g.x_column)
            value, where = reduced(source, i, j, window, norm)
            out[n * g.out_batch + c * g.out_channel + i * g.out_row + j * g.out_column] = value
            if with_indices:
                indices[at(steps, n, c, i, j)] = where
            index += step

    array = pointer(real)
    kinds = (
        array, pointer(int64), array, numbers(int64, PoolGeometry), numbers(int64, Window), numbers(real, Norm),
        numbers(int64, Steps),
    )  # fmt: skip
    return Kernel(pool, kinds, (mode, int(with_indices), dtype), threads=THREADS)


class ReferencePool(DeviceKernel):
    """Any pooling; `launch` gets the strides of x, of the indices if they are wanted, and of the result."""

    problem: PoolProblem

    def run(self, x: DeviceArray, out: DeviceArray, indices: DeviceArray | None = None) -> None:
        """Compute `out` from `x`, both (N, C, H, W) with the problem's sizes and dtype.

        Parameters
        ----------
        indices : int64 array of the shape of `out`, optional
            Needed if the problem returns indices. Gets ``h*W + w`` of each maximum.

        Raises
        ------
        ValueError
            If `indices` is missing, not wanted, or has another shape or dtype.
        """
        if indices is None and not self.problem.return_indices:
            self.start((x, out), (None,))
            return
        if indices is None:
            raise ValueError(f"{self.problem.descriptor} returns indices: give an int64 array of shape {out.shape}")
        if not self.problem.return_indices:
            raise ValueError(f"indices given, but {self.problem.descriptor} returns none; use return_indices=True")
        if (indices.dtype, indices.shape) != ("int64", out.shape):
            raise ValueError(f"indices must be int64 of shape {out.shape}, got {indices.dtype}, {indices.shape}")
        self.start((x, indices, out))

    def launch(self, *strides: Strides) -> Launch:
        p, x, out = self.problem, strides[0], strides[-1]
        steps = Steps(*strides[-2])  # of the indices, or of an array that stands for them
        values = (PoolGeometry.of(p, x, out), Window.of(p.pool, p.in_size), Norm.of(p.pool), steps)
        kernel = _pool(p.dtype, mode_of(p.pool), p.return_indices)
        return Launch(kernel, blocks_for(math.prod(p.out_shape)), values)

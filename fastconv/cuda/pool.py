"""Pooling with a thread for each element of the result, as in `fastconv.cuda.reference`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import DeviceKernel, Strides
from fastconv.cuda.elements import at, place
from fastconv.cuda.geometry import Steps
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.reference import THREADS, blocks_for, space
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer
from fastconv.cuda.window import Norm, Window, mode_of, reduction
from fastconv.problem import PoolProblem

__all__ = ["cost", "make", "space", "unsupported"]

_LAUNCH_NS = 5_000.0
_NS_PER_BYTE, _NS_PER_TAP = 0.0005, 0.001


class PoolGeometry(NamedTuple):
    """Number of images and maps, and whether channels are neighbours."""

    batch: int
    channels: int
    channels_last: int

    @classmethod
    def of(cls, problem: PoolProblem) -> PoolGeometry:
        """From a problem of either direction."""
        return cls(problem.batch, problem.channels, int(problem.memory_format == "channels_last"))


def unsupported(problem: PoolProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "only the maximum has an index" if problem.return_indices and problem.pool.mode != "max" else None


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return _LAUNCH_NS + _NS_PER_BYTE * problem.bytes + _NS_PER_TAP * problem.flops


def make(problem: PoolProblem, params: Params, threads: int) -> ReferencePool:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return ReferencePool(problem)


@cache
def _pixel(dtype: str) -> Any:
    _, _, read, _ = codec(dtype)

    @device
    def pixel(source, row, column):
        """A value of a map, `source`: memory, its first element in it, and the steps to the next row and column."""
        x, first, x_row, x_column = source
        return read(x, first + row * x_row + column * x_column)

    return pixel


@cache
def _pool(dtype: str, mode: int, with_indices: bool) -> Kernel:
    stored, real, _, write = codec(dtype)
    reduced = reduction(mode, str(real), _pixel(dtype))

    def pool(x, indices, out, g, window, norm, x_steps, index_steps, out_steps):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.batch * g.channels * window.out_height * window.out_width:
            n, c, i, j = place(index, g.channels, window.out_height, window.out_width, g.channels_last)
            source = (x, at(x_steps, n, c, 0, 0), x_steps.row, x_steps.column)
            value, where = reduced(source, i, j, window, norm)
            write(out, at(out_steps, n, c, i, j), value)
            if with_indices:
                indices[at(index_steps, n, c, i, j)] = where
            index += step

    array, steps = pointer(stored), numbers(int64, Steps)
    kinds = (
        array, pointer(int64), array, numbers(int64, PoolGeometry), numbers(int64, Window), numbers(real, Norm),
        steps, steps, steps,
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
        p = self.problem
        steps = (Steps(*strides[0]), Steps(*strides[-2]), Steps(*strides[-1]))  # without indices, x stands for them
        values = (PoolGeometry.of(p), Window.of(p.pool, p.in_size), Norm.of(p.pool), *steps)
        kernel = _pool(p.dtype, mode_of(p.pool), p.return_indices)
        return Launch(kernel, blocks_for(math.prod(p.out_shape)), values)

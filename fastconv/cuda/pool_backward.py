"""Gradients of pooling with a thread for each pixel, which adds up what the windows that cover it pass on.

Every sum is one thread's, in one order, so results are the same in every run.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import DeviceKernel, Strides
from fastconv.cuda.elements import at, place
from fastconv.cuda.geometry import Steps
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.pool import PoolGeometry, cost
from fastconv.cuda.reference import THREADS, blocks_for, space
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer
from fastconv.cuda.window import (
    AVERAGE,
    MAX,
    POWERS,
    SQUARES,
    Norm,
    Window,
    covered,
    first_window,
    last_window,
    mode_of,
)
from fastconv.problem import PoolProblem

__all__ = ["cost", "make", "space", "unsupported"]


def unsupported(problem: PoolProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "a gradient has no indices" if problem.return_indices else None


def make(problem: PoolProblem, params: Params, threads: int) -> ReferencePoolInput:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return ReferencePoolInput(problem)


@cache
def _norm_share(real: Any, mode: int) -> Any:

    @device
    def norm_share(share, y, norm):
        """What a norm y passes on to x**(p-1): ``share * area * y**(1-p)``, or nothing where it is 0."""
        if y == 0:
            return real(0)
        if mode == SQUARES:
            return share * (norm.area / y)
        return share * (norm.area * y ** (real(1) - norm.power))

    return norm_share


@cache
def _pool_input(dtype: str, mode: int) -> Kernel:
    stored, real, read, write = codec(dtype)
    norm_share = _norm_share(real, mode)

    def pool_input(grad, saved, x, out, g, w, norm, grad_steps, saved_steps, x_steps, out_steps):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.batch * g.channels * w.height * w.width:
            n, c, row, column = place(index, g.channels, w.height, w.width, g.channels_last)
            first_i = first_window(row, w.kernel_h, w.stride_h, w.top, w.dilation_h)
            first_j = first_window(column, w.kernel_w, w.stride_w, w.left, w.dilation_w)
            total = real(0)
            for i in range(first_i, last_window(row, w.stride_h, w.top, w.out_height)):
                rows = covered(i * w.stride_h - w.top, w.kernel_h, w.top, w.height, w.include_pad)
                for j in range(first_j, last_window(column, w.stride_w, w.left, w.out_width)):
                    share = read(grad, at(grad_steps, n, c, i, j))
                    if mode == MAX:
                        if saved[at(saved_steps, n, c, i, j)] == row * w.width + column:
                            total += share
                    else:
                        columns = covered(j * w.stride_w - w.left, w.kernel_w, w.left, w.width, w.include_pad)
                        share /= real(rows * columns)
                        if mode != AVERAGE:
                            share = norm_share(share, read(saved, at(saved_steps, n, c, i, j)), norm)
                        total += share
            if mode == SQUARES:
                total *= read(x, at(x_steps, n, c, row, column))
            elif mode == POWERS:
                total *= read(x, at(x_steps, n, c, row, column)) ** (norm.power - real(1))
            write(out, at(out_steps, n, c, row, column), total)
            index += step

    array, steps = pointer(stored), numbers(int64, Steps)
    kinds = (
        array, pointer(int64) if mode == MAX else array, array, array, numbers(int64, PoolGeometry),
        numbers(int64, Window), numbers(real, Norm), steps, steps, steps, steps,
    )  # fmt: skip
    return Kernel(pool_input, kinds, (mode, dtype), threads=THREADS)


class ReferencePoolInput(DeviceKernel):
    """The gradient of a pooling; `launch` gets the strides of the result's gradient, what was saved, and that written.

    A maximum passes on its gradient if its index is in its window, as all indices of the forward pass are.
    """

    problem: PoolProblem

    def run(self, grad: DeviceArray, out: DeviceArray, *saved: DeviceArray) -> None:
        """Compute `out`, the gradient of the input, from `grad`, that of the result; both (N, C, H, W).

        Parameters
        ----------
        saved : arrays
            What the forward pass had. For a maximum its int64 indices, of the shape of `grad`; for an Lp norm its
            result, of the shape of `grad`, and its input, of the shape of `out`; for an average nothing.
        """
        self.start((grad, *saved, out), (None,) * (2 - len(saved)))

    def launch(self, *strides: Strides) -> Launch:
        grad, *saved, out = strides
        p = self.problem
        first, second = [*saved, grad, grad][:2]  # what is not saved is not read
        steps = (Steps(*each) for each in (grad, first, second, out))
        values = (PoolGeometry.of(p), Window.of(p.pool, p.in_size), Norm.of(p.pool), *steps)
        return Launch(_pool_input(p.dtype, mode_of(p.pool)), blocks_for(math.prod(p.in_shape)), values)

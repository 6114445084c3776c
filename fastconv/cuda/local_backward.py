"""Gradients of a locally-connected convolution with a thread for each element, as in `fastconv.cuda.local`.

Every sum is one thread's, in one order, so results are the same in every run.
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import DeviceKernel, Strides
from fastconv.cuda.elements import output_at
from fastconv.cuda.geometry import ConvGeometry
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.local import PixelStrides, cost, unsupported
from fastconv.cuda.reference import THREADS, blocks_for, space
from fastconv.cuda.toolkit import cuda, int64, numbers, pointer, types
from fastconv.local_problem import LocalProblem

__all__ = ["cost", "make", "space", "unsupported"]


def make(problem: LocalProblem, params: Params, threads: int) -> LocalInput | LocalWeight:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return LocalInput(problem) if problem.direction == "backward_input" else LocalWeight(problem)


@cache
def _local_input(dtype: str) -> Kernel:
    real = getattr(types, dtype)

    def local_input(grad, weight, out, g, more):
        index, step = cuda.grid(1), cuda.gridsize(1)
        pixels = g.in_height * g.in_width
        while index < g.channels * g.batch * pixels:
            pixel, n, c = index % pixels, index // pixels % g.batch, index // pixels // g.batch
            row, column = pixel // g.in_width, pixel % g.in_width
            total = real(0)
            for r in range(g.kernel_h):
                i = output_at(row + g.top - r * g.dilation_h, g.stride_h, g.out_height)  # that met this tap here
                if i >= 0:
                    for s in range(g.kernel_w):
                        j = output_at(column + g.left - s * g.dilation_w, g.stride_w, g.out_width)
                        if j >= 0:
                            at = n * g.out_batch + i * g.out_row + j * g.out_column
                            tap = c * g.w_channel + r * g.w_row + s * g.w_column
                            w = tap + i * more.w_out_row + j * more.w_out_column
                            for k in range(g.filters):
                                total += grad[at + k * g.out_channel] * weight[w + k * g.w_filter]
            out[n * g.x_batch + c * g.x_channel + row * g.x_row + column * g.x_column] = total
            index += step

    array = pointer(real)
    kinds = (array, array, array, numbers(int64, ConvGeometry), numbers(int64, PixelStrides))
    return Kernel(local_input, kinds, (dtype,), threads=THREADS)


@cache
def _local_weight(dtype: str) -> Kernel:
    real = getattr(types, dtype)

    def local_weight(x, grad, out, g, more):
        index, step = cuda.grid(1), cuda.gridsize(1)
        pixels, taps = g.out_height * g.out_width, g.kernel_h * g.kernel_w
        while index < g.filters * g.channels * taps * pixels:
            pixel, tap, c, k = (
                index % pixels, index // pixels % taps, index // pixels // taps % g.channels,
                index // pixels // taps // g.channels,
            )  # fmt: skip
            i, j, r, s = pixel // g.out_width, pixel % g.out_width, tap // g.kernel_w, tap % g.kernel_w
            row = i * g.stride_h - g.top + r * g.dilation_h
            column = j * g.stride_w - g.left + s * g.dilation_w
            total = real(0)
            if 0 <= row < g.in_height and 0 <= column < g.in_width:
                at = c * g.x_channel + row * g.x_row + column * g.x_column
                d = k * g.out_channel + i * g.out_row + j * g.out_column
                for n in range(g.batch):
                    total += x[at + n * g.x_batch] * grad[d + n * g.out_batch]
            w = k * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column
            out[w + i * more.w_out_row + j * more.w_out_column] = total
            index += step

    array = pointer(real)
    kinds = (array, array, array, numbers(int64, ConvGeometry), numbers(int64, PixelStrides))
    return Kernel(local_weight, kinds, (dtype,), threads=THREADS)


class LocalInput(DeviceKernel):
    """The gradient of the input; `launch` gets the strides of the output's gradient, weights and result."""

    problem: LocalProblem

    def run(self, grad_output: DeviceArray, weight: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (N, C, H, W) from `grad_output` (N, K, OH, OW) and weights (K, C, R, S, OH, OW)."""
        self.start((grad_output, weight, out))

    def launch(self, *strides: Strides) -> Launch:
        grad, weight, out = strides
        p = self.problem
        values = (ConvGeometry.of(p.conv, out, grad, weight[:4]), PixelStrides(*weight[4:]))
        return Launch(_local_input(p.dtype), blocks_for(math.prod(p.in_shape)), values)


class LocalWeight(DeviceKernel):
    """The gradient of the weights; `launch` gets the strides of x, the output's gradient and the result."""

    problem: LocalProblem

    def run(self, x: DeviceArray, grad_output: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (K, C, R, S, OH, OW) from `x` (N, C, H, W) and `grad_output` (N, K, OH, OW)."""
        self.start((x, grad_output, out))

    def launch(self, *strides: Strides) -> Launch:
        x, grad, out = strides
        p = self.problem
        values = (ConvGeometry.of(p.conv, x, grad, out[:4]), PixelStrides(*out[4:]))
        return Launch(_local_weight(p.dtype), blocks_for(math.prod(p.weight_shape)), values)

"""Gradients of a convolution with a thread for each element of the result, as in `fastconv.cuda.reference`.

Every sum is one thread's, in one order, so results are the same in every run.
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import ConvKernel, Strides, WeightKernel
from fastconv.cuda.elements import first_tap, last_tap, output_at, place
from fastconv.cuda.geometry import ConvGeometry
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.reference import THREADS, blocks_for, cost, space
from fastconv.cuda.toolkit import cuda, int64, numbers, pointer
from fastconv.problem import ConvProblem

__all__ = ["cost", "make", "space", "unsupported"]


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return None


def make(problem: ConvProblem, params: Params, threads: int) -> ReferenceInput | ReferenceWeight:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return ReferenceInput(problem) if problem.direction == "backward_input" else ReferenceWeight(problem)


@cache
def _convolve_input(dtype: str) -> Kernel:
    stored, real, read, write = codec(dtype)

    def convolve_input(grad, weight, bias, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        channels = g.groups * g.channels
        while index < g.batch * channels * g.in_height * g.in_width:
            n, c, row, column = place(index, channels, g.in_height, g.in_width, g.channels_last)
            first_filter, channel = c // g.channels * g.filters, c % g.channels
            total = real(0)
            for r in range(g.kernel_h):
                i = output_at(row + g.top - r * g.dilation_h, g.stride_h, g.out_height)  # that met this tap here
                if i >= 0:
                    for s in range(g.kernel_w):
                        j = output_at(column + g.left - s * g.dilation_w, g.stride_w, g.out_width)
                        if j >= 0:
                            at = n * g.out_batch + first_filter * g.out_channel + i * g.out_row + j * g.out_column
                            w = first_filter * g.w_filter + channel * g.w_channel + r * g.w_row + s * g.w_column
                            for k in range(g.filters):
                                total += read(grad, at + k * g.out_channel) * read(weight, w + k * g.w_filter)
            if g.has_bias:
                total += read(bias, c)
            write(out, n * g.x_batch + c * g.x_channel + row * g.x_row + column * g.x_column, total)
            index += step

    array = pointer(stored)
    kinds = (array, array, array, array, numbers(int64, ConvGeometry))
    return Kernel(convolve_input, kinds, (dtype,), threads=THREADS)


@cache
def _convolve_weight(dtype: str) -> Kernel:
    stored, real, read, write = codec(dtype)

    def convolve_weight(x, grad, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.groups * g.filters * g.channels * g.kernel_h * g.kernel_w:
            s, rest = index % g.kernel_w, index // g.kernel_w
            r, rest = rest % g.kernel_h, rest // g.kernel_h
            c, k = rest % g.channels, rest // g.channels
            row, column = r * g.dilation_h - g.top, s * g.dilation_w - g.left  # of the first output's tap
            channel = k // g.filters * g.channels + c
            last_i = last_tap(row, g.stride_h, g.in_height, g.out_height)
            first_j, last_j = first_tap(column, g.stride_w), last_tap(column, g.stride_w, g.in_width, g.out_width)
            total = real(0)
            for n in range(g.batch):
                for i in range(first_tap(row, g.stride_h), last_i):
                    at = n * g.x_batch + channel * g.x_channel + (row + i * g.stride_h) * g.x_row
                    d = n * g.out_batch + k * g.out_channel + i * g.out_row
                    for j in range(first_j, last_j):
                        where = at + (column + j * g.stride_w) * g.x_column
                        total += read(x, where) * read(grad, d + j * g.out_column)
            write(out, k * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column, total)
            index += step

    array = pointer(stored)
    kinds = (array, array, array, numbers(int64, ConvGeometry))
    return Kernel(convolve_weight, kinds, (dtype,), threads=THREADS)


class ReferenceInput(ConvKernel):
    """The gradient of the input, or a transposed convolution."""

    def launch(self, *strides: Strides) -> Launch:
        grad, weight, out = strides
        p = self.problem
        values = (ConvGeometry.of(p, out, grad, weight),)
        return Launch(_convolve_input(p.dtype), blocks_for(math.prod(p.in_shape)), values)


class ReferenceWeight(WeightKernel):
    """The gradient of the weights."""

    def launch(self, *strides: Strides) -> Launch:
        x, grad, out = strides
        p = self.problem
        values = (ConvGeometry.of(p, x, grad, out),)
        return Launch(_convolve_weight(p.dtype), blocks_for(math.prod(p.weight_shape)), values)

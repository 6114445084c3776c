"""Gradient of a depthwise convolution's input in float32, or a depthwise transposed convolution.

As `fastconv.cuda.depthwise`, from the other side: a thread has a strip of the input's pixels and adds what each tap
took from them to an output, if the stride brought it there. No two threads write the same element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import depthwise
from fastconv.cuda.conv_kernel import Strides, check_reach
from fastconv.cuda.depthwise import THREADS, VECTOR, Depthwise, bias_at, unit_of
from fastconv.cuda.elements import output_at
from fastconv.cuda.geometry import ConvGeometry
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.ptx import load4, store4
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer
from fastconv.problem import ConvProblem

unsupported, cost = depthwise.unsupported, depthwise.cost


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a thread."""
    return [{"strip": strip} for strip in (4, 2, 1) if strip < 2 * problem.in_size[1] or strip == 1]


def make(problem: ConvProblem, params: Params, threads: int) -> DepthwiseInput:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return DepthwiseInput(problem, params)


@cache
def _by_vectors(strip: int) -> Kernel:
    """Four channels of each thread; filters and channels are the same, and neighbours in memory."""
    STRIP = strip

    def depthwise_input_vectors(grad, weight, bias, out, g):
        sums = cuda.local.array((STRIP, 4), float32)
        lanes, strips = int32(g.groups // 4), int32((g.in_width + STRIP - 1) // STRIP)
        index = int32(cuda.grid(1))
        if index < g.batch * g.in_height * strips * lanes:
            lane, strip, i, n = unit_of(index, lanes, strips, g.in_height, g.channels_last)
            c, j = int32(lane * 4), int32(strip * STRIP)
            b0, b1 = bias_at(bias, g, c), bias_at(bias, g, c + 1)
            b2, b3 = bias_at(bias, g, c + 2), bias_at(bias, g, c + 3)
            for p in range(STRIP):
                sums[p, 0], sums[p, 1], sums[p, 2], sums[p, 3] = b0, b1, b2, b3
            for r in range(g.kernel_h):
                row = output_at(int32(i + g.top - r * g.dilation_h), g.stride_h, g.out_height)
                if row >= 0:
                    first = int32(n * g.out_batch + row * g.out_row + c)
                    for s in range(g.kernel_w):
                        w0, w1, w2, w3 = load4(weight, int32(r * g.w_row + s * g.w_column + c))
                        for p in range(STRIP):
                            column = output_at(int32(j + p + g.left - s * g.dilation_w), g.stride_w, g.out_width)
                            if column >= 0:
                                v0, v1, v2, v3 = load4(grad, int32(first + column * g.out_column))
                                sums[p, 0] += v0 * w0
                                sums[p, 1] += v1 * w1
                                sums[p, 2] += v2 * w2
                                sums[p, 3] += v3 * w3
            where = int32(n * g.x_batch + i * g.x_row + j * g.x_column + c)
            for p in range(STRIP):
                if j + p < g.in_width:
                    values = (sums[p, 0], sums[p, 1], sums[p, 2], sums[p, 3])
                    store4(out, int32(where + p * g.x_column), values)

    return _kernel(depthwise_input_vectors, strip)


@cache
def _by_elements(strip: int) -> Kernel:
    """One channel of each thread, with any number of filters and any strides."""
    STRIP = strip

    def depthwise_input(grad, weight, bias, out, g):
        sums = cuda.local.array(STRIP, float32)
        strips = int32((g.in_width + STRIP - 1) // STRIP)
        index = int32(cuda.grid(1))
        if index < g.batch * g.in_height * strips * g.groups:
            c, strip, i, n = unit_of(index, g.groups, strips, g.in_height, g.channels_last)
            j = int32(strip * STRIP)
            for p in range(STRIP):
                sums[p] = bias_at(bias, g, c)
            for r in range(g.kernel_h):
                row = output_at(int32(i + g.top - r * g.dilation_h), g.stride_h, g.out_height)
                if row >= 0:
                    for s in range(g.kernel_w):
                        for k in range(c * g.filters, (c + 1) * g.filters):
                            first = int32(n * g.out_batch + k * g.out_channel + row * g.out_row)
                            tap = weight[int32(r * g.w_row + s * g.w_column + k)]
                            for p in range(STRIP):
                                column = output_at(int32(j + p + g.left - s * g.dilation_w), g.stride_w, g.out_width)
                                if column >= 0:
                                    sums[p] += grad[int32(first + column * g.out_column)] * tap
            where = int32(n * g.x_batch + c * g.x_channel + i * g.x_row + j * g.x_column)
            for p in range(STRIP):
                if j + p < g.in_width:
                    out[int32(where + p * g.x_column)] = sums[p]

    return _kernel(depthwise_input, strip)


def _kernel(function: Callable, strip: int) -> Kernel:
    array = pointer(float32)
    kinds = (array, array, array, array, numbers(int32, ConvGeometry))
    return Kernel(function, kinds, (strip,), threads=THREADS)


class DepthwiseInput(Depthwise):
    """Gradient of the input of filters that see one channel each; packs weights as the forward kernel does."""

    def _launch(self, grad: Strides, out: Strides, vectors: bool) -> Launch:
        p, columns = self.problem, self.packer.columns
        check_reach(p.out_shape, grad)
        check_reach(p.in_shape, out)
        lanes = p.in_channels // VECTOR if vectors else p.in_channels
        units = p.batch * p.in_size[0] * -(-p.in_size[1] // self.strip) * lanes
        weight = (1, 0, p.kernel_size[1] * columns, columns)
        kernel = (_by_vectors if vectors else _by_elements)(self.strip)
        return Launch(kernel, (-(-units // THREADS),), (ConvGeometry.of(p, out, grad, weight),))

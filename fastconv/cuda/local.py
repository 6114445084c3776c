"""Locally-connected convolution with a thread for each element of the result, as in `fastconv.cuda.reference`.

The weights are most of what moves, and each is used once for an image. So neighbouring threads take neighbouring
pixels in both memory formats, as contiguous weights lie, and the images of a filter follow each other, so that its
weights are still in cache for the next one.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda import reference
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import DeviceKernel, Strides
from fastconv.cuda.elements import first_tap, last_tap
from fastconv.cuda.geometry import ConvGeometry
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.reference import THREADS, blocks_for, space
from fastconv.cuda.toolkit import cuda, int64, numbers, pointer, types
from fastconv.local_problem import LocalProblem

__all__ = ["cost", "make", "space", "unsupported"]


class PixelStrides(NamedTuple):
    """Strides in elements that weights (K, C, R, S, OH, OW) and bias (K, OH, OW) have beyond those of a convolution."""

    w_out_row: int
    w_out_column: int
    bias_filter: int = 0
    bias_row: int = 0
    bias_column: int = 0


def unsupported(problem: LocalProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None: it takes every one."""
    return None


def cost(problem: LocalProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return reference.cost(problem.conv, params)


def make(problem: LocalProblem, params: Params, threads: int) -> Local:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Local(problem)


@cache
def _local(dtype: str) -> Kernel:
    real = getattr(types, dtype)

    def local(x, weight, bias, out, g, more):
        index, step = cuda.grid(1), cuda.gridsize(1)
        pixels = g.out_height * g.out_width
        while index < g.filters * g.batch * pixels:
            pixel, n, k = index % pixels, index // pixels % g.batch, index // pixels // g.batch
            i, j = pixel // g.out_width, pixel % g.out_width
            top, left = i * g.stride_h - g.top, j * g.stride_w - g.left
            total = real(0)
            for c in range(g.channels):
                at = n * g.x_batch + c * g.x_channel
                w = k * g.w_filter + c * g.w_channel + i * more.w_out_row + j * more.w_out_column
                for r in range(first_tap(top, g.dilation_h), last_tap(top, g.dilation_h, g.in_height, g.kernel_h)):
                    row, taps = at + (top + r * g.dilation_h) * g.x_row, w + r * g.w_row
                    for s in range(first_tap(left, g.dilation_w), last_tap(left, g.dilation_w, g.in_width, g.kernel_w)):
                        total += x[row + (left + s * g.dilation_w) * g.x_column] * weight[taps + s * g.w_column]
            if g.has_bias:
                total += bias[k * more.bias_filter + i * more.bias_row + j * more.bias_column]
            out[n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column] = total
            index += step

    array = pointer(real)
    kinds = (array, array, array, array, numbers(int64, ConvGeometry), numbers(int64, PixelStrides))
    return Kernel(local, kinds, (dtype,), threads=THREADS)


class Local(DeviceKernel):
    """The layer of one problem; `launch` gets the strides of x, weights, bias if there is one, and result."""

    problem: LocalProblem

    def run(self, x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray) -> None:
        """Compute `out` (N, K, OH, OW) from `x` (N, C, H, W), weights (K, C, R, S, OH, OW) and bias (K, OH, OW)."""
        if bias is None:
            self.start((x, weight, out), (None,))
        else:
            self.start((x, weight, bias, out))

    def launch(self, *strides: Strides) -> Launch:
        x, weight, *biases, out = strides
        p = self.problem
        more = PixelStrides(*weight[4:], *(step for bias in biases for step in bias))
        values = (ConvGeometry.of(p.conv, x, out, weight[:4]), more)
        return Launch(_local(p.dtype), blocks_for(math.prod(p.out_shape)), values)

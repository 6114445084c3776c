"""Convolution with a thread for each element of the result: plain loops, any strides, nothing beyond CUDA's basics.

It takes every problem, runs in Numba's simulator as it stands, and is what the other kernels of this package are
compared with on a GPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import ConvKernel, Strides
from fastconv.cuda.elements import activated, first_tap, last_tap, place
from fastconv.cuda.geometry import ConvGeometry, Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer
from fastconv.cuda.window import Norm, Window, mode_of, reduction
from fastconv.problem import ConvProblem

THREADS = 128
_NS_PER_FLOP = 0.002  # memory and index arithmetic hide all else
_LAUNCH_NS = 5_000.0


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return None


def space(problem: ConvProblem) -> list[Params]:
    """There is nothing to tune."""
    return [{}]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    flops = float(problem.flops)
    if problem.pool:  # each window computes its elements again
        flops *= math.prod(problem.pool.kernel_size) * math.prod(problem.out_size) / math.prod(problem.conv_size)
    return _LAUNCH_NS + _NS_PER_FLOP * flops


def make(problem: ConvProblem, params: Params, threads: int) -> ReferenceConv:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return ReferenceConv(problem)


@cache
def _element(dtype: str) -> Any:
    _, real, read, _ = codec(dtype)

    @device
    def element(source, i, j):
        """Element (i, j) of the map of filter k of image n; `source` is all else that it is computed from."""
        x, weight, bias, g, epilogue, n, k = source
        top, left = i * g.stride_h - g.top, j * g.stride_w - g.left
        image = n * g.x_batch + k // g.filters * g.channels * g.x_channel
        total = real(0)
        for r in range(first_tap(top, g.dilation_h), last_tap(top, g.dilation_h, g.in_height, g.kernel_h)):
            for s in range(first_tap(left, g.dilation_w), last_tap(left, g.dilation_w, g.in_width, g.kernel_w)):
                at = image + (top + r * g.dilation_h) * g.x_row + (left + s * g.dilation_w) * g.x_column
                w = k * g.w_filter + r * g.w_row + s * g.w_column
                for c in range(g.channels):
                    total += read(x, at + c * g.x_channel) * read(weight, w + c * g.w_channel)
        if g.has_bias:
            total += read(bias, k)
        return activated(total, epilogue)

    return element


@cache
def _convolve(dtype: str) -> Kernel:
    stored, real, _, write = codec(dtype)
    element = _element(dtype)

    def convolve(x, weight, bias, out, g, epilogue):
        index, step = cuda.grid(1), cuda.gridsize(1)
        filters = g.groups * g.filters
        while index < g.batch * filters * g.out_height * g.out_width:
            n, k, i, j = place(index, filters, g.out_height, g.out_width, g.channels_last)
            value = element((x, weight, bias, g, epilogue, n, k), i, j)
            write(out, n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column, value)
            index += step

    array = pointer(stored)
    kinds = (array, array, array, array, numbers(int64, ConvGeometry), numbers(real, Epilogue))
    return Kernel(convolve, kinds, (dtype,), threads=THREADS)


@cache
def _convolve_pooled(dtype: str, mode: int) -> Kernel:
    stored, real, _, write = codec(dtype)
    reduced = reduction(mode, str(real), _element(dtype))

    def convolve_pooled(x, weight, bias, out, g, epilogue, window, norm):
        index, step = cuda.grid(1), cuda.gridsize(1)
        filters = g.groups * g.filters
        while index < g.batch * filters * window.out_height * window.out_width:
            n, k, i, j = place(index, filters, window.out_height, window.out_width, g.channels_last)
            value, _ = reduced((x, weight, bias, g, epilogue, n, k), i, j, window, norm)
            write(out, n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column, value)
            index += step

    array, window = pointer(stored), numbers(int64, Window)
    kinds = (array, array, array, array, numbers(int64, ConvGeometry), numbers(real, Epilogue), window,
             numbers(real, Norm))  # fmt: skip
    return Kernel(convolve_pooled, kinds, (mode, dtype), threads=THREADS)


def blocks_for(elements: int) -> tuple[int]:
    """A grid with a thread for each element, or as many as are worth having: threads go on to further elements."""
    return (min(-(-elements // THREADS), 1 << 16),)


class ReferenceConv(ConvKernel):
    """The forward convolution of any problem; where it pools, a thread computes all elements of its window."""

    def launch(self, *strides: Strides) -> Launch:
        x, weight, out = strides
        p, pool = self.problem, self.problem.pool
        blocks = blocks_for(math.prod(p.out_shape))
        values = (ConvGeometry.of(p, x, out, weight), Epilogue.of(p.activation))
        if pool is None:
            return Launch(_convolve(p.dtype), blocks, values)
        windows = (Window.of(pool, p.conv_size), Norm.of(pool))
        return Launch(_convolve_pooled(p.dtype, mode_of(pool)), blocks, values + windows)

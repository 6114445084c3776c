"""Depthwise convolution in float32: filters of one channel each, a strip of pixels for each thread.

There is nothing to share between filters, so memory is the limit: a thread computes a few neighbouring pixels of a
row, of four channels by loads of 16 bytes where they are neighbours, and neighbouring threads find each other's taps
in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import ConvKernel, Packed, Strides, check_reach
from fastconv.cuda.elements import activated, first_tap, last_tap
from fastconv.cuda.geometry import ConvGeometry, Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.pack import FilterPacker
from fastconv.cuda.ptx import load4, store4
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer, uint32
from fastconv.problem import ConvProblem

THREADS = 128
VECTOR = 4  # channels of a thread
_LAUNCH_NS, _NS_PER_BYTE, _NS_PER_TAP = 5_000.0, 0.0005, 0.0002


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype != "float32":
        return f"it computes float32, not {problem.dtype}"
    if problem.weight_shape[1] != 1:
        return "its filters have more than one channel"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    return "it does not pool" if problem.pool else None


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a thread; a long strip reads weights less often, a short one makes more threads."""
    return [{"strip": strip} for strip in (4, 2, 1) if strip < 2 * problem.conv_size[1] or strip == 1]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: that of memory, or of the loads of taps from the cache."""
    outputs = math.prod(problem.out_shape)
    memory = _NS_PER_BYTE * problem.itemsize * (math.prod(problem.in_shape) + outputs)
    loads = _NS_PER_TAP * outputs * math.prod(problem.kernel_size) * (1 + 1 / params["strip"])
    return _LAUNCH_NS + max(memory, loads)


def make(problem: ConvProblem, params: Params, threads: int) -> Depthwise:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Depthwise(problem, params)


@device
def unit_of(index, lanes, strips, rows, channels_last):
    """Lane, strip, row and image of a unit of work: threads that follow each other read neighbours."""
    if channels_last:
        lane, rest = int32(index % lanes), int32(index // lanes)
        strip, rest = int32(rest % strips), int32(rest // strips)
        return lane, strip, int32(rest % rows), int32(rest // rows)
    strip, rest = int32(index % strips), int32(index // strips)
    row, rest = int32(rest % rows), int32(rest // rows)
    return int32(rest % lanes), strip, row, int32(rest // lanes)


@device
def bias_at(bias, g, k):
    """The bias of a filter; zero if there is none."""
    return bias[k] if g.has_bias else float32(0)


@cache
def _by_vectors(strip: int) -> Kernel:
    """Four channels of each thread; filters and channels are the same, and neighbours in memory."""
    STRIP = strip

    def depthwise_vectors(x, weight, bias, out, g, epilogue):
        sums = cuda.local.array((STRIP, 4), float32)
        lanes, strips = int32(g.groups // 4), int32((g.out_width + STRIP - 1) // STRIP)
        index = int32(cuda.grid(1))
        if index < g.batch * g.out_height * strips * lanes:
            lane, strip, i, n = unit_of(index, lanes, strips, g.out_height, g.channels_last)
            k, j = int32(lane * 4), int32(strip * STRIP)
            b0, b1, b2, b3 = (
                bias_at(bias, g, k),
                bias_at(bias, g, k + 1),
                bias_at(bias, g, k + 2),
                bias_at(bias, g, k + 3),
            )
            for p in range(STRIP):
                sums[p, 0], sums[p, 1], sums[p, 2], sums[p, 3] = b0, b1, b2, b3
            top, left = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            for r in range(first_tap(top, g.dilation_h), last_tap(top, g.dilation_h, g.in_height, g.kernel_h)):
                row = int32(n * g.x_batch + (top + r * g.dilation_h) * g.x_row + k)
                for s in range(g.kernel_w):
                    w0, w1, w2, w3 = load4(weight, int32(r * g.w_row + s * g.w_column + k))
                    for p in range(STRIP):
                        column = int32(left + s * g.dilation_w + p * g.stride_w)
                        if uint32(column) < uint32(g.in_width):
                            v0, v1, v2, v3 = load4(x, int32(row + column * g.x_column))
                            sums[p, 0] += v0 * w0
                            sums[p, 1] += v1 * w1
                            sums[p, 2] += v2 * w2
                            sums[p, 3] += v3 * w3
            where = int32(n * g.out_batch + i * g.out_row + j * g.out_column + k)
            for p in range(STRIP):
                if j + p < g.out_width:
                    t0, t1 = activated(sums[p, 0], epilogue), activated(sums[p, 1], epilogue)
                    t2, t3 = activated(sums[p, 2], epilogue), activated(sums[p, 3], epilogue)
                    store4(out, int32(where + p * g.out_column), (t0, t1, t2, t3))

    return _kernel(depthwise_vectors, strip)


@cache
def _by_elements(strip: int) -> Kernel:
    """One filter of each thread, any strides."""
    STRIP = strip

    def depthwise(x, weight, bias, out, g, epilogue):
        sums = cuda.local.array(STRIP, float32)
        lanes, strips = int32(g.groups * g.filters), int32((g.out_width + STRIP - 1) // STRIP)
        index = int32(cuda.grid(1))
        if index < g.batch * g.out_height * strips * lanes:
            k, strip, i, n = unit_of(index, lanes, strips, g.out_height, g.channels_last)
            j = int32(strip * STRIP)
            for p in range(STRIP):
                sums[p] = bias_at(bias, g, k)
            top, left = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            image = int32(n * g.x_batch + k // g.filters * g.x_channel)
            for r in range(first_tap(top, g.dilation_h), last_tap(top, g.dilation_h, g.in_height, g.kernel_h)):
                row = int32(image + (top + r * g.dilation_h) * g.x_row)
                for s in range(g.kernel_w):
                    tap = weight[int32(r * g.w_row + s * g.w_column + k)]
                    for p in range(STRIP):
                        column = int32(left + s * g.dilation_w + p * g.stride_w)
                        if uint32(column) < uint32(g.in_width):
                            sums[p] += x[int32(row + column * g.x_column)] * tap
            where = int32(n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column)
            for p in range(STRIP):
                if j + p < g.out_width:
                    out[int32(where + p * g.out_column)] = activated(sums[p], epilogue)

    return _kernel(depthwise, strip)


def _kernel(function: Callable, strip: int) -> Kernel:
    array = pointer(float32)
    kinds = (array, array, array, array, numbers(int32, ConvGeometry), numbers(float32, Epilogue))
    return Kernel(function, kinds, (strip,), threads=THREADS)


class Depthwise(ConvKernel):
    """Forward convolution of filters that see one channel each."""

    vector_arrays = slice(None)

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem)
        self.strip = params["strip"]
        # For packing all filters are one group of one channel.
        self.packer = FilterPacker(ConvProblem.create((1, 1, *problem.kernel_size), problem.weight_shape), VECTOR)
        self.workspace_bytes = problem.itemsize * self.packer.size if problem.raw else 0

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, 1, R, S) as (r, s, filter)."""
        return self.packer(weight), bias

    def launch(self, *strides: Strides) -> Launch:
        p, (x, _, out) = self.problem, strides
        steps = (x[0], x[2], x[3], out[0], out[2], out[3])
        vectors = p.in_channels == p.out_channels and p.in_channels % VECTOR == 0 and x[1] == out[1] == 1
        return self._launch(x, out, vectors and all(step % VECTOR == 0 for step in steps))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        x, _, out = strides
        return self._launch(x, out, False)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        check_reach(self.problem.in_shape, x)
        check_reach(self.problem.out_shape, out)
        p, columns = self.problem, self.packer.columns
        lanes = p.out_channels // VECTOR if vectors else p.out_channels
        units = p.batch * p.conv_size[0] * -(-p.conv_size[1] // self.strip) * lanes
        weight = (1, 0, p.kernel_size[1] * columns, columns)
        kernel = (_by_vectors if vectors else _by_elements)(self.strip)
        return Launch(kernel, (-(-units // THREADS),), (ConvGeometry.of(p, x, out, weight), Epilogue.of(p.activation)))

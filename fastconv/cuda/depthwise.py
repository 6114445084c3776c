"""Depthwise convolution: filters of one channel each, a strip of pixels for each thread.

There is nothing to share between filters, so memory is the limit: a thread computes a few neighbouring pixels of a
row, of four channels by one load where they are neighbours, from a window of each row that its taps share
(`fastconv.cuda.strips`). Neighbouring threads find each other's pixels in the cache. The gradient of the input is the
same along other walks, with the taps of a channel's filters. Elements of 16 bits are float32 in registers, and packed
weights, which are few, in memory too.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import ConvKernel, Packed, Strides, check_reach
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.pack import FilterPacker
from fastconv.cuda.strip_access import ONE, VECTOR, WIDTH, Access, access
from fastconv.cuda.strips import (
    Strip,
    StripGeometry,
    Walks,
    aligned,
    choices,
    forward,
    is_backward,
    loading,
    strip_of,
)
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer, uint32
from fastconv.problem import ConvProblem

THREADS = 128
_LAUNCH_NS, _NS_PER_BYTE, _NS_PER_LOAD = 3_000.0, 0.0003, 0.00006


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype == "float64":
        return "its sums are float32, not float64"
    if problem.weight_shape[1] != 1:
        return "its filters have more than one channel"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    return "it does not pool" if problem.pool else None


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a thread; a long strip loads less for each, a short one makes more threads."""
    return choices(problem, (4, 2, 1))


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return walk_ns(problem, params, forward(problem))


def walk_ns(problem: ConvProblem, params: Params, walks: Walks) -> float:
    """Time of memory and of the loads from the cache, which it partly hides, of one launch."""
    rows, columns = walks
    strip = Strip.of(params["strip"], columns)
    images = problem.batch * problem.out_channels
    memory = problem.itemsize * images * (rows.inputs * columns.inputs + rows.outputs * columns.outputs)
    windows = len(rows.taps) * -(-len(columns.taps) // strip.span) * (strip.columns + strip.span)
    loads = images * rows.outputs * -(-columns.outputs // strip.pixels) * windows
    return _LAUNCH_NS + _NS_PER_BYTE * memory + _NS_PER_LOAD * loads


def make(problem: ConvProblem, params: Params, threads: int) -> Depthwise:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return walking(problem, params, forward(problem))


def walking(problem: ConvProblem, params: Params, walks: Walks) -> Depthwise:
    """The kernel along walks, of the problem or of a phase of its input's gradient."""
    return Depthwise(problem, params, walks)


class Fans(NamedTuple):
    """Filters whose sums are one result, and filters that read the same channel; one of the two is 1."""

    joined: int
    shared: int


@cache
def compiled(strip: Strip, images: Access) -> Kernel:
    """The kernel of four neighbouring results that have a filter each, or of one, in every thread."""
    PIXELS, SPAN, STRIDE, COLUMNS, WIDTH = strip.pixels, strip.span, strip.stride, strip.columns, images.width
    read_bias, read_tap = codec(images.dtype).read, access(images.kind, "float32").read
    load, write = loading(strip, images), images.write

    def depthwise(x, weight, bias, out, g, fans, epilogue):
        sums, window = cuda.local.array((PIXELS, WIDTH), float32), cuda.local.array((COLUMNS, WIDTH), float32)
        tap = cuda.local.array((1, WIDTH), float32)
        index = int32(cuda.grid(1))
        if index < g.batch * g.out_height * g.strips * g.lanes:
            lane, strip, i, n = strip_of(index, g)
            first, j = int32(lane * WIDTH), int32(strip * PIXELS)
            for v in range(WIDTH):
                start = read_bias(bias, int32(first + v)) if g.has_bias else float32(0)
                for p in range(PIXELS):
                    sums[p, v] = start
            top, left = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            for f in range(fans.joined):
                k = int32(first * fans.joined + f)
                channel = int32(uint32(k) // uint32(fans.shared)) if WIDTH == 1 else k
                image = int32(n * g.x_batch + channel * g.x_channel)
                for r in range(g.taps_h):
                    row = int32(top + r * g.dilation_h)
                    if uint32(row) < uint32(g.in_height):
                        for s in range(0, g.taps_w, SPAN):
                            at, taps = int32(image + row * g.x_row), int32(g.w_first + r * g.w_row + s * g.w_column + k)
                            load(window, x, at, True, int32(left + s * g.dilation_w), g)
                            for t in range(SPAN):
                                read_tap(tap, 0, weight, int32(taps + t * g.w_column), 1)
                                for p in range(PIXELS):
                                    for v in range(WIDTH):
                                        sums[p, v] += window[p * STRIDE + t, v] * tap[0, v]
            where = int32(g.out_first + n * g.out_batch + first * g.out_channel + i * g.out_row + j * g.out_column)
            for p in range(PIXELS):
                if j + p < g.out_width:
                    write(out, int32(where + p * g.out_column), 1, sums, p, epilogue)

    array, taps, variant = pointer(images.stored), pointer(float32), (PIXELS, SPAN, STRIDE, images.kind, images.dtype)
    values = (numbers(int32, StripGeometry), numbers(int32, Fans), numbers(float32, Epilogue))
    return Kernel(depthwise, (array, taps, array, array, *values), variant, threads=THREADS)


class Depthwise(ConvKernel):
    """Filters that see one channel each, or the gradient of their input, along two walks."""

    vector_arrays = slice(None)

    def __init__(self, problem: ConvProblem, params: Params, walks: Walks) -> None:
        super().__init__(problem)
        self.walks, self.strip = walks, Strip.of(params["strip"], walks[1])
        # For packing all filters are one group of one channel.
        one = ConvProblem.create((1, 1, *problem.kernel_size), problem.weight_shape, dtype=problem.dtype, device="cuda")
        self.packer = FilterPacker(one, WIDTH)
        self.workspace_bytes = self.packer.workspace_bytes if is_backward(problem) or problem.raw else 0

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, 1, R, S) as (r, s, filter)."""
        return self.packer(weight), bias

    def launch(self, *strides: Strides) -> Launch:
        p, (x, _, out) = self.problem, strides
        vectors = p.in_channels == p.out_channels and p.in_channels % WIDTH == 0 and x[1] == out[1] == 1
        steps = (x[0], x[2], x[3], out[0], out[2], out[3])
        return self._launch(x, out, VECTOR if vectors and aligned(*steps) else ONE)

    def launch_unaligned(self, *strides: Strides) -> Launch:
        x, _, out = strides
        return self._launch(x, out, ONE)

    def _launch(self, x: Strides, out: Strides, kind: str) -> Launch:
        p, images = self.problem, access(kind, self.problem.dtype)
        filters = p.out_channels // p.groups
        shapes, fans = (p.in_shape, p.out_shape), Fans(1, filters)
        if is_backward(p):
            shapes, fans = (p.out_shape, p.in_shape), Fans(filters, 1)
        for shape, strides in zip(shapes, (x, out), strict=True):
            check_reach(shape, strides)
        packed = (p.kernel_size[1] * self.packer.columns, self.packer.columns)
        g = self.strip.geometry(p, self.walks, shapes[1][1] // images.width, x, out, packed)
        strips = g.batch * g.out_height * g.strips * g.lanes
        values = (g, fans, Epilogue.of(p.activation))
        return Launch(compiled(self.strip, images), (-(-strips // THREADS),), values)

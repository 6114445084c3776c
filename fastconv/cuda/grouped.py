"""Convolution of small groups: a strip of pixels of four filters for each thread.

Tiles of a product would be mostly empty. A thread multiplies what it loads of four channels by their weights for four
filters, both by one load; the lanes of a warp have neighbouring filters, of all groups side by side, whose weights the
strips of a block share in the cache. The gradient of the input is the same along other walks (`fastconv.cuda.strips`),
with filters and channels exchanged. Elements of 16 bits are float32 in registers, and packed weights in memory too.
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
from fastconv.cuda.strip_access import APART, VECTOR, WIDTH, Access, access
from fastconv.cuda.strips import (
    Strip,
    StripGeometry,
    Walks,
    aligned,
    choices,
    divided,
    forward,
    is_backward,
    loading,
)
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer, uint32
from fastconv.problem import ConvProblem

THREADS = 128
_MOST = 32  # channels or filters of a group
_LANES = (32, 16, 8)  # of a block
_NARROW = 3  # columns of taps whose windows are no limit for registers
_LAUNCH_NS, _NS_PER_BYTE, _NS_PER_MULTIPLY, _NS_PER_LOAD = 3_000.0, 0.0003, 0.00003, 0.00008


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype == "float64":
        return "its sums are float32, not float64"
    sizes = (problem.in_channels // problem.groups, problem.out_channels // problem.groups)
    if problem.groups == 1 or max(sizes) > _MOST or any(size % WIDTH for size in sizes):
        return f"its groups are not of multiples of {WIDTH} up to {_MOST} channels and filters"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 29:
        return "its indices have 32 bits, and an array has 2**29 elements or more"
    return "it does not pool" if problem.pool else None


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a thread; weights are loaded once for all of them, and registers are few."""
    return choices(problem, (8, 4, 2) if problem.kernel_size[1] <= _NARROW else (4, 2))


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return walk_ns(problem, params, forward(problem))


def walk_ns(problem: ConvProblem, params: Params, walks: Walks) -> float:
    """Time of memory, and of multiplications or the loads from the cache, whichever is longer, of one launch."""
    rows, columns = walks
    strip, (inner, results) = Strip.of(params["strip"], columns), _sizes(problem)
    pixels = rows.inputs * columns.inputs * inner + rows.outputs * columns.outputs * results
    memory = problem.itemsize * problem.batch * problem.groups * pixels
    strips = problem.batch * problem.groups * rows.outputs * -(-columns.outputs // strip.pixels)
    terms = len(rows.taps) * -(-len(columns.taps) // strip.span) * inner * results
    multiplies, loads = strip.pixels * strip.span, strip.columns / WIDTH + strip.span
    times = _NS_PER_MULTIPLY * multiplies, _NS_PER_LOAD * loads
    return _LAUNCH_NS + _NS_PER_BYTE * memory + max(times) * strips * terms


def make(problem: ConvProblem, params: Params, threads: int) -> Grouped:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return walking(problem, params, forward(problem))


def walking(problem: ConvProblem, params: Params, walks: Walks) -> Grouped:
    """The kernel along walks, of the problem or of a phase of its input's gradient."""
    return Grouped(problem, params, walks)


def _sizes(problem: ConvProblem) -> tuple[int, int]:
    """Channels that a group reads, and how many it computes."""
    channels, filters = problem.weight_shape[1], problem.out_channels // problem.groups
    return (filters, channels) if is_backward(problem) else (channels, filters)


class Groups(NamedTuple):
    """Of groups, and of blocks: these have neighbouring lanes of a few strips.

    `channels` are what a group reads, `fours` its lanes; `w_channel` is the step from weights of a channel to the next.
    """

    channels: int
    fours: int
    w_channel: int
    block_lanes: int
    block_strips: int
    strip_blocks: int


@device
def _strip_of(g, groups):
    """Lane, strip, row and image of this thread; an image that is not there where there is nothing to do."""
    lane_block, block = divided(cuda.blockIdx.x, groups.strip_blocks)
    number, lane = divided(cuda.threadIdx.x, groups.block_lanes)
    lane += int32(lane_block * groups.block_lanes)
    rest, strip = divided(int32(block * groups.block_strips + number), g.strips)
    n, i = divided(rest, g.out_height)
    return lane, strip, i, n if lane < g.lanes else g.batch


@cache
def compiled(strip: Strip, images: Access) -> Kernel:
    """The kernel for strips of four filters, neighbours in memory or not."""
    PIXELS, SPAN, STRIDE, COLUMNS = strip.pixels, strip.span, strip.stride, strip.columns
    read_bias, read_tap = codec(images.dtype).read, access(images.kind, "float32").read
    load, write = loading(strip, images), images.write

    @device
    def add_row(sums, window, tap, x, weight, g, groups, at, left, taps):
        for c in range(0, groups.channels, 4):
            for s in range(0, g.taps_w, SPAN):
                load(window, x, int32(at + c * g.x_channel), True, int32(left + s * g.dilation_w), g)
                for t in range(SPAN):
                    first = int32(taps + (s + t) * g.w_column + c * groups.w_channel)
                    for q in range(4):
                        read_tap(tap, 0, weight, int32(first + q * groups.w_channel), 1)
                        for p in range(PIXELS):
                            for v in range(4):
                                sums[p, v] += window[p * STRIDE + t, q] * tap[0, v]

    def grouped(x, weight, bias, out, g, groups, epilogue):
        sums, window = cuda.local.array((PIXELS, 4), float32), cuda.local.array((COLUMNS, 4), float32)
        tap = cuda.local.array((1, 4), float32)
        lane, strip, i, n = _strip_of(g, groups)
        if n < g.batch:
            k, j = int32(lane * 4), int32(strip * PIXELS)
            for v in range(4):
                start = read_bias(bias, int32(k + v)) if g.has_bias else float32(0)
                for p in range(PIXELS):
                    sums[p, v] = start
            top, left = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            group, _ = divided(lane, groups.fours)
            image = int32(n * g.x_batch + group * groups.channels * g.x_channel)
            for r in range(g.taps_h):
                row = int32(top + r * g.dilation_h)
                if uint32(row) < uint32(g.in_height):
                    taps = int32(g.w_first + r * g.w_row + k)
                    add_row(sums, window, tap, x, weight, g, groups, int32(image + row * g.x_row), left, taps)
            where = int32(g.out_first + n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column)
            for p in range(PIXELS):
                if j + p < g.out_width:
                    write(out, int32(where + p * g.out_column), g.out_channel, sums, p, epilogue)

    array, taps, variant = pointer(images.stored), pointer(float32), (PIXELS, SPAN, STRIDE, images.kind, images.dtype)
    values = (numbers(int32, StripGeometry), numbers(int32, Groups), numbers(float32, Epilogue))
    return Kernel(grouped, (array, taps, array, array, *values), variant, threads=THREADS)


class Grouped(ConvKernel):
    """Small groups, or the gradient of their input, along two walks."""

    vector_arrays = slice(None)

    def __init__(self, problem: ConvProblem, params: Params, walks: Walks) -> None:
        super().__init__(problem)
        self.walks, self.strip = walks, Strip.of(params["strip"], walks[1])
        self.packer = FilterPacker(problem, WIDTH, transposed=is_backward(problem), abreast=True)
        self.workspace_bytes = self.packer.workspace_bytes if is_backward(problem) or problem.raw else 0

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, C/groups, R, S) as (r, s, channel, filter), or (r, s, filter, channel), of all groups abreast."""
        return self.packer(weight), bias

    def launch(self, *strides: Strides) -> Launch:
        x, _, out = strides
        vectors = x[1] == out[1] == 1 and aligned(x[0], *x[2:], out[0], *out[2:])
        return self._launch(x, out, VECTOR if vectors else APART)

    def launch_unaligned(self, *strides: Strides) -> Launch:
        x, _, out = strides
        return self._launch(x, out, APART)

    def _launch(self, x: Strides, out: Strides, kind: str) -> Launch:
        p, strip, (inner, results) = self.problem, self.strip, _sizes(self.problem)
        shapes = (p.out_shape, p.in_shape) if is_backward(p) else (p.in_shape, p.out_shape)
        for shape, steps in zip(shapes, (x, out), strict=True):
            check_reach(shape, steps)
        wide = p.groups * results
        tap = inner * wide
        g = strip.geometry(p, self.walks, wide // WIDTH, x, out, (p.kernel_size[1] * tap, tap))
        lanes = min(_LANES, key=lambda lanes: -(-g.lanes // lanes) * lanes) if g.channels_last else 1
        strip_blocks = -(-g.batch * g.out_height * g.strips // (THREADS // lanes))
        groups = Groups(inner, results // WIDTH, wide, lanes, THREADS // lanes, strip_blocks)
        grid = (strip_blocks * -(-g.lanes // lanes),)
        return Launch(compiled(strip, access(kind, p.dtype)), grid, (g, groups, Epilogue.of(p.activation)))

"""Gradient of depthwise weights: sums over all pixels of the images, which are read about once.

A thread has one filter, or four that it loads at once, and walks over strips of pixels (`fastconv.cuda.strips`) with
the sums of a few taps in registers. The threads of a block have a few neighbouring lanes and share the strips of a
split; what they found is added in shared memory, and that of all splits by `fastconv.cuda.sum_splits`, always in the
same order.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.conv_kernel import Strides, check_reach
from fastconv.cuda.depthwise import unsupported
from fastconv.cuda.elements import divided
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.product_cost import PROCESSORS
from fastconv.cuda.strip_access import ONE, VECTOR, WIDTH, Access, access
from fastconv.cuda.strips import Strip, StripGeometry, aligned, forward, loading
from fastconv.cuda.sum_splits import SplitWeightKernel, needs_sum
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer, uint32
from fastconv.problem import ConvProblem

THREADS = 256
LANES = 8  # of a block, channels-last: with four channels each, 128 bytes of a pixel
BLOCKS = 2  # on a multiprocessor
_MOST_TAPS = 10  # sums of a thread, or one row of taps
_WAVES = (1, 2)
_AT_ONCE = PROCESSORS * BLOCKS
_LAUNCH_NS, _NS_PER_BYTE, _NS_PER_LOAD, _NS_PER_SPLIT = 3_000.0, 0.0003, 0.00006, 20.0

__all__ = ["cost", "make", "space", "unsupported"]


def _lanes(problem: ConvProblem) -> int:
    """Lanes of a block; contiguous, the neighbours in memory are pixels."""
    return LANES if problem.memory_format == "channels_last" else 1


def _strips(problem: ConvProblem, pixels: int) -> int:
    """Strips of all images."""
    return problem.batch * problem.conv_size[0] * -(-problem.conv_size[1] // pixels)


def _share(problem: ConvProblem, pixels: int, splits: int) -> int:
    """Strips of a split, as many for each thread of a block."""
    walkers = THREADS // _lanes(problem)
    return -(-_strips(problem, pixels) // (splits * walkers)) * walkers


def _tap_rows(problem: ConvProblem, strip: Strip) -> int:
    """Rows of taps whose sums a thread has."""
    return min(problem.kernel_size[0], _MOST_TAPS // strip.span)


def _blocks(problem: ConvProblem, strip: Strip, images: Access) -> tuple[int, int, int]:
    """Of lanes, of rows and of columns of taps; each of them reads all pixels of a split."""
    kernel_h, kernel_w = problem.kernel_size
    lanes = -(-problem.out_channels // (images.width * _lanes(problem)))
    return lanes, -(-kernel_h // _tap_rows(problem, strip)), kernel_w // strip.span


def _expected(problem: ConvProblem) -> Access:
    whole = problem.in_channels == problem.out_channels and problem.out_channels % WIDTH == 0
    return access(VECTOR if whole and problem.memory_format == "channels_last" else ONE, problem.dtype)


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a strip, and splits that fill the GPU once and twice, none of them empty."""
    found = []
    for pixels in (4, 2):
        strip, strips = _strip(problem, pixels), _strips(problem, pixels)
        blocks = math.prod(_blocks(problem, strip, _expected(problem)))
        shares = {_share(problem, pixels, max(1, waves * _AT_ONCE // blocks)) for waves in _WAVES}
        splits = {-(-strips // share) if share else 1 for share in shares}
        found += [{"strip": pixels, "splits": s} for s in sorted(splits)]
    return found


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: of memory and of the loads from the cache, in whole waves."""
    strip = _strip(problem, params["strip"])
    lanes, *taps = _blocks(problem, strip, _expected(problem))
    memory = problem.itemsize * (math.prod(problem.in_shape) + math.prod(problem.out_shape))
    windows = _tap_rows(problem, strip) * strip.columns + strip.pixels
    loads = _strips(problem, strip.pixels) * problem.out_channels * windows * math.prod(taps)
    waves = lanes * math.prod(taps) * params["splits"] / _AT_ONCE
    total = _LAUNCH_NS + (_NS_PER_BYTE * memory + _NS_PER_LOAD * loads) * math.ceil(waves) / waves
    return total + (_LAUNCH_NS + _NS_PER_SPLIT * params["splits"] if needs_sum(problem, params["splits"]) else 0)


def make(problem: ConvProblem, params: Params, threads: int) -> DepthwiseWeight:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return DepthwiseWeight(problem, params)


def _strip(problem: ConvProblem, pixels: int) -> Strip:
    return Strip.of(pixels, forward(problem)[1])


class Work(NamedTuple):
    """How blocks cut the sums: into lanes, columns of taps, rows of taps and splits, the first going on fastest.

    `strips` are those of all images, `share` those of a split. `shared` filters read the same channel. The sums of a
    tap go to ``split*w_split + filter*w_filter + r*w_row + s*w_column``.
    """

    strips: int
    share: int
    lane_blocks: int
    row_blocks: int
    column_blocks: int
    shared: int
    w_split: int
    w_filter: int


@cache
def compiled(strip: Strip, tap_rows: int, images: Access, lanes: int) -> Kernel:
    """The kernel for strips, rows of taps, filters of a thread and lanes of a block."""
    PIXELS, SPAN, STRIDE, COLUMNS, ROWS = strip.pixels, strip.span, strip.stride, strip.columns, tap_rows
    WIDTH, LANES, WALKERS = images.width, lanes, THREADS // lanes
    PITCH = THREADS + lanes  # banks of lanes follow each other
    TAPS = tap_rows * strip.span
    PLACES, SHARED = TAPS * WIDTH, TAPS * WIDTH * PITCH
    read, load = images.read, loading(strip, images)

    @device
    def add_strip(sums, grads, window, x, grad, g, unit, k, channel, first_r, first_s):
        rest, strip = divided(unit, g.strips)
        n, i = divided(rest, g.out_height)
        j = int32(strip * PIXELS)
        at = int32(n * g.out_batch + k * g.out_channel + i * g.out_row + j * g.out_column)
        for p in range(PIXELS):
            for v in range(WIDTH):
                grads[p, v] = float32(0)
            if j + p < g.out_width:
                read(grads, p, grad, int32(at + p * g.out_column), 1)
        top, left = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left + first_s * g.dilation_w)
        image = int32(n * g.x_batch + channel * g.x_channel)
        for r in range(ROWS):
            row = int32(top + (first_r + r) * g.dilation_h)
            load(window, x, int32(image + row * g.x_row), uint32(row) < uint32(g.in_height), left, g)
            for s in range(SPAN):
                for p in range(PIXELS):
                    for v in range(WIDTH):
                        sums[r * SPAN + s, v] += window[p * STRIDE + s, v] * grads[p, v]

    @device
    def add_walkers(shared, out, g, work, thread, split, first_lane, first_r, first_s):
        for index in range(thread, PLACES * LANES, THREADS):
            lane, place = int32(index % LANES), int32(index // LANES)
            tap, k = int32(place // WIDTH), int32((first_lane + lane) * WIDTH + place % WIDTH)
            r, s = int32(first_r + tap // SPAN), int32(first_s + tap % SPAN)
            if k < g.lanes * WIDTH and r < g.taps_h:
                total = float32(0)
                for walker in range(WALKERS):
                    total += shared[place * PITCH + walker * LANES + lane]
                out[int32(split * work.w_split + k * work.w_filter + r * g.w_row + s * g.w_column)] = total

    def depthwise_weight(x, grad, out, g, work):
        shared = cuda.shared.array(SHARED, float32)
        sums = cuda.local.array((TAPS, WIDTH), float32)
        grads, window = cuda.local.array((PIXELS, WIDTH), float32), cuda.local.array((COLUMNS, WIDTH), float32)
        thread = int32(cuda.threadIdx.x)
        rest, lane_block = divided(cuda.blockIdx.x, work.lane_blocks)
        rest, column_block = divided(rest, work.column_blocks)
        split, row_block = divided(rest, work.row_blocks)
        first_lane, first_r, first_s = int32(lane_block * LANES), int32(row_block * ROWS), int32(column_block * SPAN)
        for t in range(TAPS):
            for v in range(WIDTH):
                sums[t, v] = float32(0)
        k = int32((first_lane + thread % LANES) * WIDTH)
        if k < g.lanes * WIDTH:
            channel = int32(uint32(k) // uint32(work.shared)) if WIDTH == 1 else k
            unit, end = int32(split * work.share + thread // LANES), min(work.strips, int32((split + 1) * work.share))
            while unit < end:
                add_strip(sums, grads, window, x, grad, g, unit, k, channel, first_r, first_s)
                unit += int32(WALKERS)
        for t in range(TAPS):
            for v in range(WIDTH):
                shared[(t * WIDTH + v) * PITCH + thread] = sums[t, v]
        cuda.syncthreads()
        add_walkers(shared, out, g, work, thread, split, first_lane, first_r, first_s)

    array, variant = pointer(images.stored), (PIXELS, SPAN, STRIDE, ROWS, images.kind, images.dtype, LANES)
    kinds = (array, array, pointer(float32), numbers(int32, StripGeometry), numbers(int32, Work))
    return Kernel(depthwise_weight, kinds, variant, threads=THREADS, blocks=BLOCKS)


class DepthwiseWeight(SplitWeightKernel):
    """Gradient of the weights of filters that see one channel each."""

    vector_arrays = slice(2)

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem, params["splits"])
        self.strip = _strip(problem, params["strip"])

    def launch(self, *strides: Strides) -> Launch:
        x, grad, _ = strides
        vectors = _expected(self.problem).kind == VECTOR and x[1] == grad[1] == 1
        return self._launch(strides, VECTOR if vectors and aligned(x[0], *x[2:], grad[0], *grad[2:]) else ONE)

    def launch_unaligned(self, *strides: Strides) -> Launch:
        return self._launch(strides, ONE)

    def _launch(self, strides: tuple[Strides, ...], kind: str) -> Launch:
        p, strip, (x, grad, out) = self.problem, self.strip, strides
        images = access(kind, p.dtype)
        filters, channels, kernel_h, kernel_w = p.weight_shape
        check_reach(p.in_shape, x)
        check_reach(p.out_shape, grad)
        check_reach((self.splits * filters, channels, kernel_h, kernel_w), out)
        lane_blocks, row_blocks, column_blocks = blocks = _blocks(p, strip, images)
        work = Work(
            _strips(p, strip.pixels), _share(p, strip.pixels, self.splits), lane_blocks, row_blocks, column_blocks,
            filters // p.groups, filters * out[0], out[0],
        )  # fmt: skip
        g = strip.geometry(p, forward(p), filters // images.width, x, grad, (out[2], out[3]))
        kernel = compiled(strip, _tap_rows(p, strip), images, _lanes(p))
        return Launch(kernel, (math.prod(blocks) * self.splits,), (g, work))

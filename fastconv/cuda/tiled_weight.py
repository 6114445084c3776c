"""Gradient of the weights by implicit GEMM: filters times channels at taps, summed over the pixels of all images.

Slices of pixels come to shared memory by asynchronous copies, three under way while one is multiplied
(`fastconv.cuda.weight_slices`, `fastconv.cuda.gemm`). Weights are few and pixels many, so the sums are split over the
grid too: each split leaves its own sums, and a second kernel adds them in one order, so that results are the same in
every run.
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.gemm import DEPTH, PAD, STAGES, Tile, multiplication, place_of
from fastconv.cuda.kernel import MOST_BLOCKS, Kernel, Launch
from fastconv.cuda.product_cost import LAUNCH_NS, blocks_at_once, product_ns
from fastconv.cuda.ptx import commit, wait
from fastconv.cuda.store_tile import storing
from fastconv.cuda.sum_splits import SplitWeightKernel
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer
from fastconv.cuda.weight_slices import COLUMN_FIELDS, PIXEL_FIELDS, Copies, WeightGeometry, own_columns, slicing
from fastconv.cuda.weight_splits import matrix, share, tiles, useful_splits
from fastconv.problem import ConvProblem

TILES = [(128, 128), (128, 64), (64, 128), (64, 64), (64, 32)]
_NARROW = 256  # columns that narrow tiles may fill better
_ARRIVING = STAGES - 2
_BYTE_NS = 1 / 2_000  # sums of splits, written and read


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype != "float32":
        return f"it computes float32, not {problem.dtype}"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    return f"it has more than {MOST_BLOCKS} groups" if problem.groups > MOST_BLOCKS else None


def _tile(params: Params) -> Tile:
    return Tile(params["filters"], params["columns"], PAD)


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that filters and columns fill at least half, and splits that fill the GPU once and a few times."""
    filters, columns, _ = matrix(problem)
    found = []
    for m, n in TILES:
        narrow = n == min(TILES)[1]
        if (m >= 2 * filters and m > min(TILES)[0]) or (columns >= _NARROW if narrow else n >= 2 * columns):
            continue
        tile = Tile(m, n, PAD)
        splits = useful_splits(problem, tile, blocks_at_once(tile))
        found += [{"filters": m, "columns": n, "splits": count} for count in splits]
    return found


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: whole waves of blocks, and the sums that they leave."""
    filters, columns, _ = matrix(problem)
    splits = params["splits"]
    total = product_ns(_tile(params), filters, columns, share(problem, splits, DEPTH), problem.groups * splits)
    if splits == 1:
        return total
    return total + LAUNCH_NS + 2 * problem.itemsize * splits * math.prod(problem.weight_shape) * _BYTE_NS


def make(problem: ConvProblem, params: Params, threads: int) -> TiledWeight:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return TiledWeight(problem, params)


@cache
def compiled(tile: Tile, copies: Copies) -> Kernel:
    """The kernel for a tile and a way of copying."""
    THREADS, SLICE, RIGHT, ROWS, COLUMNS = tile.threads, tile.slice, tile.left_slice, tile.rows, tile.columns
    OWN_COLUMNS, PITCH, HALF = own_columns(tile, copies), tile.columns + PAD, tile.rows // 2
    start, copy, advance = slicing(tile, copies)
    place, multiply = place_of(tile), multiplication(tile)
    stash, _ = storing(tile)

    @device
    def write(shared, out, g, thread, group, split, first_filter, first_column):
        """Half of the tile: a thread writes a column of it, lanes neighbouring columns."""
        column = int32(first_column + thread % COLUMNS)
        if column < g.columns:
            tap, channel = int32(column // g.channels), int32(column % g.channels)
            r, s = int32(tap // g.kernel_w), int32(tap % g.kernel_w)
            where = int32(split * g.w_split + channel * g.w_channel + r * g.w_row + s * g.w_column)
            for row in range(thread // COLUMNS, HALF, THREADS // COLUMNS):
                k = int32(first_filter + row)
                if k < g.filters:
                    value = shared[row * PITCH + thread % COLUMNS]
                    out[int32(where + (group * g.filters + k) * g.w_filter)] = value

    def tiled_weight(x, grad, out, g):
        shared = cuda.shared.array(0, float32)
        sums = cuda.local.array((8, 8), float32)
        a, b = cuda.local.array(8, float32), cuda.local.array(8, float32)
        pixel, columns = cuda.local.array(PIXEL_FIELDS, int32), cuda.local.array((OWN_COLUMNS, COLUMN_FIELDS), int32)
        thread, group, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z), int32(cuda.blockIdx.x)
        first_column, rest = int32(block % g.column_tiles * COLUMNS), int32(block // g.column_tiles)
        first_filter, split = int32(rest % g.filter_tiles * ROWS), int32(rest // g.filter_tiles)
        for i in range(8):
            for j in range(8):
                sums[i, j] = float32(0)
        left_place, right_place, filters = start(g, thread, group, split, first_filter, first_column, pixel, columns)
        right_place += int32(RIGHT)
        pixels = int32(min(g.pixels, int32((split + 1) * g.share)) - split * g.share)
        left = int32((pixels + DEPTH - 1) // DEPTH)
        for stage in range(STAGES - 1):
            if stage < left:
                at = int32(stage * SLICE)
                copy(shared, int32(at + left_place), int32(at + right_place), grad, x, g, filters, pixel, columns)
                advance(g, pixel)
            commit()
        x_place, y_place = place(thread)
        ready, free = int32(0), int32((STAGES - 1) * SLICE)
        while left > 0:
            wait(_ARRIVING)
            cuda.syncthreads()  # the slice is there for all, and the one before it is no longer read
            if left >= STAGES:
                copy(shared, int32(free + left_place), int32(free + right_place), grad, x, g, filters, pixel, columns)
                advance(g, pixel)
            commit()
            multiply(shared, ready, x_place, y_place, a, b, sums)
            free = ready
            ready = int32(0) if ready == (STAGES - 1) * SLICE else int32(ready + SLICE)
            left = int32(left - 1)
        cuda.syncthreads()  # nobody reads slices any more
        stash(shared, sums, thread, 0)
        cuda.syncthreads()
        write(shared, out, g, thread, group, split, first_filter, first_column)
        cuda.syncthreads()
        stash(shared, sums, thread, 4)
        cuda.syncthreads()
        write(shared, out, g, thread, group, split, int32(first_filter + HALF), first_column)

    array = pointer(float32)
    variant = (tile.rows, tile.columns, *copies.words)
    kinds = (array, array, array, numbers(int32, WeightGeometry))
    return Kernel(tiled_weight, kinds, variant, threads=tile.threads, blocks=blocks_at_once(tile))


class TiledWeight(SplitWeightKernel):
    """Gradient of the weights by implicit GEMM."""

    vector_arrays = slice(2)

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem, params["splits"])
        self.tile = _tile(params)

    def launch(self, *strides: Strides) -> Launch:
        x, grad, _ = strides
        _, channels, _, _ = self.problem.weight_shape
        filters = self.problem.out_channels // self.problem.groups
        if x[1] != 1 or grad[1] != 1:
            return self._launch(strides, Copies(False))
        whole = [
            count % 4 == 0 and all(step % 4 == 0 for step in (steps[0], *steps[2:]))
            for count, steps in ((filters, grad), (channels, x))
        ]
        return self._launch(strides, Copies(True, *whole))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        return self._launch(strides, Copies(all(steps[1] == 1 for steps in strides[:2])))

    def _launch(self, strides: tuple[Strides, ...], copies: Copies) -> Launch:
        p, tile = self.problem, self.tile
        grid = (math.prod(tiles(p, tile)) * self.splits, 1, p.groups)
        geometry = WeightGeometry.of(p, tile, self.splits, *strides)
        return Launch(compiled(tile, copies), grid, (geometry,), tile.shared_bytes)

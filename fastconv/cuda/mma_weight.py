"""Gradient of the weights on tensor cores: float16 and bfloat16, and float32 rounded to TF32 where that is permitted.

As `fastconv.cuda.tiled_weight`, with the tile of `fastconv.cuda.mma_weight_tile`: slices come to shared memory by
copies of 16 bytes, which takes channels-last images; others, and channels or filters of a group that are no whole
units of 16 bytes, are copied first, and then the sums have more of them than the weights. Sums are float32 until those
of all splits are added.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma_weight_tf32, mma_weight_tile
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import Strides, WeightKernel
from fastconv.cuda.image_units import ImageUnits
from fastconv.cuda.kernel import MOST_BLOCKS, Kernel, Launch
from fastconv.cuda.mma import blocks_at_once, copy_ns, unsupported_elements
from fastconv.cuda.mma_tile import STAGES
from fastconv.cuda.mma_weight_tile import MmaWeightTile
from fastconv.cuda.product_cost import LAUNCH_NS, PROCESSORS
from fastconv.cuda.ptx import commit, wait
from fastconv.cuda.sum_splits import SplitSum
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer, uint32
from fastconv.cuda.units import join_of, joined
from fastconv.cuda.weight_slices import COLUMN_FIELDS, PIXEL_FIELDS, Copies, WeightGeometry, own_columns, slicing
from fastconv.cuda.weight_splits import matrix, share, tiles, useful_splits
from fastconv.problem import ITEMSIZE, ConvProblem

TILES = [(128, 128), (128, 64), (64, 128), (64, 64)]
_FRAGMENTS = {"float32": mma_weight_tf32, "float16": mma_weight_tile, "bfloat16": mma_weight_tile}
_NARROWEST = min(TILES)[0]
_ARRIVING = STAGES - 2
_FLOP_NS = {"float32": 1 / 200_000, "float16": 1 / 400_000, "bfloat16": 1 / 400_000}  # of a large GPU
_BYTE_NS = 1 / 2_000  # sums of splits, written and read


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if (reason := unsupported_elements(problem)) is not None:
        return reason
    p = filled(problem)
    if max(math.prod(shape) for shape in (p.in_shape, p.weight_shape, p.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array, with channels filled up, has 2**30 elements or more"
    return f"it has more than {MOST_BLOCKS} groups" if problem.groups > MOST_BLOCKS else None


def filled(problem: ConvProblem) -> ConvProblem:
    """The problem of images as the kernel reads them: groups with whole units of channels and of filters."""
    images, grads = _images(problem)
    units = joined(problem)
    return replace(units, in_channels=images.channels, out_channels=grads.channels, memory_format="channels_last")


def _images(problem: ConvProblem) -> tuple[ImageUnits, ImageUnits]:
    """What copies x and the output's gradient."""
    return ImageUnits(problem), ImageUnits(problem, problem.out_shape)


def tile_of(filters: int, columns: int, dtype: str) -> MmaWeightTile:
    """The tile of so many filters and columns; in a slice each of them has 64 bytes."""
    return MmaWeightTile(filters, columns, 64 // ITEMSIZE[dtype])


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that filters and columns fill at least half, and splits that fill the GPU once and a few times."""
    p = filled(problem)
    filters, columns, _ = matrix(p)
    found = []
    for m, n in TILES:
        if (m < 2 * filters or m == _NARROWEST) and (n < 2 * columns or n == _NARROWEST):
            tile = tile_of(m, n, p.dtype)
            splits = useful_splits(p, tile, blocks_at_once(tile))
            found += [{"filters": m, "columns": n, "splits": count} for count in splits]
    return found


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: whole waves of blocks, the sums that they leave, and copies."""
    p, splits = filled(problem), params["splits"]
    tile = tile_of(params["filters"], params["columns"], p.dtype)
    at_once = PROCESSORS * blocks_at_once(tile)
    blocks = math.prod(tiles(p, tile)) * p.groups * splits
    shared = 1 + 32 / tile.rows + 32 / tile.columns  # copies that fewer sums share
    work = tile.rows * tile.columns * 2 * share(p, splits, tile.depth) * shared
    product = -(-blocks // at_once) * at_once * work * _FLOP_NS[p.dtype]
    added = 2 * 4 * splits * math.prod(p.weight_shape) * _BYTE_NS
    return 2 * LAUNCH_NS + sum(map(copy_ns, _images(problem))) + product + added


def make(problem: ConvProblem, params: Params, threads: int) -> MmaWeight:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return MmaWeight(problem, params)


@cache
def compiled(tile: MmaWeightTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    copies, fragments = Copies(True, True, True, 16 // ITEMSIZE[dtype]), _FRAGMENTS[dtype]
    stored, SUMS, DEPTH, SLICE, RIGHT = codec(dtype).stored, tile.sums, tile.depth, tile.slice, tile.left_slice
    ROWS, COLUMNS, OWN_COLUMNS = tile.rows, tile.columns, own_columns(tile, copies)
    FRAGMENTS_A, FRAGMENTS_B, LAST = tile.warp_rows // 4, tile.warp_columns // 4, (STAGES - 1) * SLICE
    start, copy, advance = slicing(tile, copies)
    places, multiply = fragments.multiplication(tile, dtype)
    write = fragments.writing(tile)

    def mma_weight(x, grad, out, g):
        shared, sums = cuda.shared.array(0, stored), cuda.local.array(SUMS, float32)
        a, b = cuda.local.array(FRAGMENTS_A, uint32), cuda.local.array(FRAGMENTS_B, uint32)
        pixel, columns = cuda.local.array(PIXEL_FIELDS, int32), cuda.local.array((OWN_COLUMNS, COLUMN_FIELDS), int32)
        left, right = cuda.local.array(1, int32), cuda.local.array(1, int32)
        thread, group, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z), int32(cuda.blockIdx.x)
        first_column, rest = int32(block % g.column_tiles * COLUMNS), int32(block // g.column_tiles)
        first_filter, split = int32(rest % g.filter_tiles * ROWS), int32(rest // g.filter_tiles)
        for i in range(SUMS):
            sums[i] = float32(0)
        left_place, right_place, filters = start(g, thread, group, split, first_filter, first_column, pixel, columns)
        right_place += int32(RIGHT)
        slices = int32(min(g.pixels, int32((split + 1) * g.share)) - split * g.share)
        slices = int32((slices + DEPTH - 1) // DEPTH)
        for stage in range(STAGES - 1):
            if stage < slices:
                at = int32(stage * SLICE)
                copy(shared, int32(at + left_place), int32(at + right_place), grad, x, g, filters, pixel, columns)
                advance(g, pixel)
            commit()
        places(thread, left, right)
        ready, free = int32(0), int32(LAST)
        while slices > 0:
            wait(_ARRIVING)
            cuda.syncthreads()  # the slice is there for all, and the one before it is no longer read
            if slices >= STAGES:
                copy(shared, int32(free + left_place), int32(free + right_place), grad, x, g, filters, pixel, columns)
                advance(g, pixel)
            commit()
            multiply(shared, ready, left, right, a, b, sums)
            free = ready
            ready = int32(0) if ready == LAST else int32(ready + SLICE)
            slices = int32(slices - 1)
        write(out, sums, g, thread, group, split, first_filter, first_column)

    array = pointer(stored)
    kinds = (array, array, pointer(float32), numbers(int32, WeightGeometry))
    return Kernel(mma_weight, kinds, (ROWS, COLUMNS, dtype), threads=tile.threads, blocks=blocks_at_once(tile))


class MmaWeight(WeightKernel):
    """Gradient of the weights on tensor cores; `launch` gets the strides of x, gradient and the sums of all splits."""

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem)
        self.tile = tile_of(params["filters"], params["columns"], problem.dtype)
        self.splits, self.images = params["splits"], _images(problem)
        self.filled = filled(problem)
        join = join_of(problem)
        self._sum = SplitSum(problem, self.splits, self.filled, join.pixels if join else 1)
        copied = [images.size for images in self.images if images.expected]
        self.workspace_bytes = self._sum.workspace_bytes + problem.itemsize * sum(copied)
        names = [name for name, images in zip(("x", "gradient"), self.images, strict=True) if images.expected]
        self.layout_copies = f"{' and '.join(names)} to channels-last with whole units of 16 bytes" if names else "none"

    def run(self, x: DeviceArray, grad_output: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (K, C/groups, R, S) from x (N, C, H, W) and the gradient of the output (N, K, Ho, Wo)."""
        arrays = zip((x, grad_output), self.images, strict=True)
        read = [images(array) if images.needed(array) else array for array, images in arrays]
        partial = self._sum.scratch(x)
        self.start((*read, partial))
        self._sum.start((partial, out))

    def launch(self, *strides: Strides) -> Launch:
        p, tile = self.filled, self.tile
        geometry = WeightGeometry.of(p, tile, self.splits, *strides)
        grid = (math.prod(tiles(p, tile)) * self.splits, 1, p.groups)
        return Launch(compiled(tile, p.dtype), grid, (geometry,), tile.shared_bytes(p.dtype))

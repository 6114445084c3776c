"""Implicit GEMM on the tensor cores of Hopper GPUs, compute capability 9.0: 16-bit elements, and TF32.

As `fastconv.cuda.mma`, with the same slices in shared memory, of 64 bytes a row, whose permuted units are the "64-byte
swizzle" of wgmma instructions. These read both matrices from shared memory, two slices by each group of four, while
the warps copy what comes next; a warpgroup has 64 pixels of the tile. Of float32 elements, which they read as they
are, they ignore the bits that TF32 does not have; weights are rounded when they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.codec import codec
from fastconv.cuda.gather_units import TERM_FIELDS, gathering, own_pixels
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_tile import UNITS, MmaTile, unit_place
from fastconv.cuda.pack_units import width_of
from fastconv.cuda.ptx import commit, copy_async16, wait
from fastconv.cuda.ptx_hopper import (
    descriptor,
    fence_async,
    wgmma_bf16,
    wgmma_commit,
    wgmma_f16,
    wgmma_fence,
    wgmma_finish,
    wgmma_tf32,
    wgmma_wait,
)  # fmt: skip
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer, types, uint32
from fastconv.cuda.walk import WalkGeometry, tile_of_block
from fastconv.cuda.write_tile import finishing, writing
from fastconv.problem import ITEMSIZE, ConvProblem

# Pixels, filters, and stages of two slices in shared memory: with fewer of them a multiprocessor holds two blocks.
TILES = [(128, 256, 4), (128, 128, 3), (128, 128, 6), (128, 64, 4), (128, 64, 8)]
CAPABILITY = (9, 0)
SHARED_MEMORY = 226 << 10  # bytes that the blocks of a multiprocessor share
_FLOP_NS = {"float32": 1 / 200_000, "float16": 1 / 450_000, "bfloat16": 1 / 450_000}  # of an H100
_PRODUCTS = {"bfloat16": wgmma_bf16, "float16": wgmma_f16, "float32": wgmma_tf32}


@dataclass(frozen=True)
class WgmmaTile(MmaTile):
    """Sizes of a block's tile: 128 pixels, and 64, 128 or 256 filters.

    Parameters
    ----------
    stages : int
        One is multiplied while the others arrive.
    """

    stages: int

    @property
    def warps_across(self) -> int:
        """A warp has all columns of its rows."""
        return 1

    @property
    def warp_rows(self) -> int:
        """Rows of a warp's part."""
        return 16

    @property
    def warp_columns(self) -> int:
        """Columns of a warp's part."""
        return self.columns

    @property
    def threads(self) -> int:
        """Of a block: a warpgroup for 64 pixels."""
        return 2 * self.rows

    def shared_bytes(self, dtype: str) -> int:
        """Shared memory of a block: its stages of two slices, or in the end its results."""
        return max(2 * self.stages * 16 * UNITS * (self.rows + self.columns), 4 * self.rows * self.row_words(dtype))

    def blocks_at_once(self, dtype: str) -> int:
        """Blocks that a multiprocessor holds."""
        return min(2, SHARED_MEMORY // self.shared_bytes(dtype)) if self.columns < 256 else 1


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    width = width_of(problem)
    if problem.memory_format != "channels_last":
        return "it takes channels-last arrays only"
    if problem.weight_shape[1] % width or problem.out_channels // problem.groups % width:
        return f"a group's channels or filters are no multiple of {width}"
    return mma.unsupported(problem)


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's filters fill at least half."""
    filters = problem.out_channels // problem.groups
    narrowest = min(columns for _, columns, _ in TILES)
    return [{"pixels": m, "filters": n, "stages": s} for m, n, s in TILES if n < 2 * filters or n == narrowest]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on an H100."""
    tile = _tile(params)
    return mma.product_ns(problem, tile, tile.blocks_at_once(problem.dtype), _FLOP_NS[problem.dtype])


def make(problem: ConvProblem, params: Params, threads: int) -> Wgmma:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Wgmma(problem, params)


def _tile(params: Params) -> WgmmaTile:
    return WgmmaTile(params["pixels"], params["filters"], params["stages"])


@cache
def compiled(tile: WgmmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    stored, word = codec(dtype).stored, float32 if dtype == "float32" else uint32
    product, WIDTH = _PRODUCTS[dtype], 16 // ITEMSIZE[dtype]
    ROWS, COLUMNS, SUMS, OWN, THREADS = tile.rows, tile.columns, tile.sums, own_pixels(tile), tile.threads
    ROW = UNITS * WIDTH
    LEFT, RIGHT, STEP, COPIES = ROWS * ROW, COLUMNS * ROW, THREADS // UNITS, COLUMNS * UNITS // THREADS
    AHEAD, STAGE = tile.stages - 1, 2 * (LEFT + RIGHT)
    LAST, ARRIVING = AHEAD * STAGE, AHEAD - 1
    start, gather, advance = gathering(tile, WIDTH)
    finish, write = finishing(tile, dtype), writing(tile, dtype)

    @device
    def copy_weights(shared, at, weight, element, g, there):
        for i in range(COPIES):
            copy_async16(shared, int32(at + i * STEP * ROW), weight, int32(element + i * STEP * g.slices * ROW), there)

    @device
    def copy(shared, stage, x, weight, element, step, g, left_place, right_place, pixels, term):
        """Two slices; behind the last one come zeros."""
        there = step * 2 + 1 < g.slices
        gather(shared, int32(stage + left_place), x, g, pixels, term)
        copy_weights(shared, int32(stage + 2 * LEFT + right_place), weight, element, g, True)
        advance(g, term)
        gather(shared, int32(stage + LEFT + left_place), x, g, pixels, term)
        copy_weights(shared, int32(stage + 2 * LEFT + RIGHT + right_place), weight, int32(element + ROW), g, there)
        advance(g, term)

    @device
    def multiply(shared, stage, own_left, sums):
        left = descriptor(shared, int32(stage + own_left))
        right = descriptor(shared, int32(stage + 2 * LEFT))
        wgmma_fence()
        product(sums, COLUMNS, shared, left, right)
        product(sums, COLUMNS, shared, left + types.uint64(2), right + types.uint64(2))
        product(sums, COLUMNS, shared, left + types.uint64(LEFT // WIDTH), right + types.uint64(RIGHT // WIDTH))
        product(sums, COLUMNS, shared, left + types.uint64(LEFT // WIDTH + 2), right + types.uint64(RIGHT // WIDTH + 2))
        wgmma_commit()

    def wgmma(x, weight, bias, out, g, epilogue):
        shared, words = cuda.shared.array(0, stored), cuda.shared.array(0, word)
        sums = cuda.local.array(SUMS, float32)
        pixels, term = cuda.local.array((OWN, 2), int32), cuda.local.array(TERM_FIELDS, int32)
        rows, columns = cuda.local.array(OWN, int32), cuda.local.array(OWN, int32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        pixel_tile, filter_tile = tile_of_block(g)
        first_pixel, first_filter = int32(pixel_tile * ROWS), int32(filter_tile * COLUMNS)
        for i in range(SUMS):
            sums[i] = float32(0)
        left_place = start(g, thread, first_pixel, group, pixels, term, rows, columns)
        right_place = int32(unit_place(int32(thread // UNITS), int32(thread % UNITS)) * WIDTH)
        element = int32((group * g.padded_filters + first_filter + thread // UNITS) * g.slices)
        element = int32((element * UNITS + thread % UNITS) * WIDTH)
        own_left, steps = int32(thread // 128 * 64 * ROW), int32((g.slices + 1) // 2)
        for i in range(AHEAD):
            if i < steps:
                copy(shared, int32(i * STAGE), x, weight, element, int32(i), g, left_place, right_place, pixels, term)
            element += int32(2 * ROW)
            commit()
        step, ready, free = int32(0), int32(0), int32(LAST)
        while step < steps:
            wait(ARRIVING)
            fence_async()
            cuda.syncthreads()  # the stage is there for all, and the one that is free is no longer multiplied
            multiply(shared, ready, own_left, sums)
            if step + AHEAD < steps:
                ahead = int32(step + AHEAD)
                copy(shared, free, x, weight, element, ahead, g, left_place, right_place, pixels, term)
            element += int32(2 * ROW)
            commit()
            wgmma_wait(0)
            free = ready
            ready = int32(0) if ready == LAST else int32(ready + STAGE)
            step += int32(1)
        wgmma_finish(sums, SUMS)
        cuda.syncthreads()  # nobody multiplies any more
        finish(words, sums, bias, g, epilogue, thread, first_filter, group)
        cuda.syncthreads()
        write(words, shared, out, g, thread, first_pixel, first_filter, group)

    array = pointer(stored)
    kinds = (array, array, array, array, numbers(int32, WalkGeometry), numbers(float32, Epilogue))
    variant, blocks = (tile.rows, tile.columns, tile.stages, dtype), tile.blocks_at_once(dtype)
    return Kernel(wgmma, kinds, variant, threads=THREADS, blocks=blocks, features="a")


class Wgmma(mma.Mma):
    """Forward convolution by implicit GEMM on the tensor cores of Hopper GPUs."""

    def tile_of(self, params: Params) -> WgmmaTile:
        return _tile(params)

    def compiled(self) -> Kernel:
        return compiled(self.tile, self.problem.dtype)

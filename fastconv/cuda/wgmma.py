"""Implicit GEMM on the tensor cores of Hopper GPUs, compute capability 9.0: 16-bit elements, and TF32.

As `fastconv.cuda.mma`, with slices in shared memory of 128 bytes a row, whose permuted units are the "128-byte
swizzle" of wgmma instructions. Four of these read both matrices from there, a slice, while the warps copy what comes
next; a warpgroup has 64 pixels of the tile. Of float32 elements, which they read as they are, they ignore the bits
that TF32 does not have; weights are rounded when they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.gather import image_pixel
from fastconv.cuda.gather_units import TERM_FIELDS, gathering, own_pixels
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_kernel import Product, convolution
from fastconv.cuda.mma_tile import MmaTile, placing
from fastconv.cuda.ptx import commit, copy_async16, sync_warp, wait
from fastconv.cuda.ptx_bulk import barrier_expect, barrier_init, barrier_wait, copy_bulk
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
from fastconv.cuda.toolkit import cuda, device, float32, int32, types
from fastconv.problem import ITEMSIZE, ConvProblem

# Pixels, filters, and slices in shared memory: with fewer of them a multiprocessor holds two blocks.
TILES = [(128, 256, 4), (256, 128, 4), (128, 128, 3), (128, 128, 6), (128, 64, 4)]
CAPABILITY = (9, 0)
SHARED_MEMORY = 226 << 10  # bytes that the blocks of a multiprocessor share
_HALVES = mma.Rates(0.141, 0.00035, 0.007)
# Measured on an H200, but for copies, which were of half as long rows then.
_RATES = {"float32": mma.Rates(0.2, 0.0007, 0.0145), "float16": _HALVES, "bfloat16": _HALVES}
_PRODUCTS = {"bfloat16": wgmma_bf16, "float16": wgmma_f16, "float32": wgmma_tf32}


@dataclass(frozen=True)
class WgmmaTile(MmaTile):
    """Sizes of a block's tile: 128 or 256 pixels, and 64, 128 or 256 filters.

    Parameters
    ----------
    stages : int
        One is multiplied while the others arrive.
    bulk : int
        1 if one thread has whole slices of weights copied, else 0.
    """

    stages: int
    bulk: int

    @property
    def bulk_copies(self) -> bool:
        """Whether weights come a slice at a time, packed as they lie in shared memory."""
        return self.bulk == 1

    @property
    def slices_bytes(self) -> int:
        """Shared memory of all slices; behind it, each has a barrier of 8 bytes for `bulk`."""
        return self.stages * 16 * self.units * (self.rows + self.columns)

    @property
    def units(self) -> int:
        """Of 16 bytes in a row of a slice."""
        return 8

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
        """Shared memory of a block: its slices, or in the end its results."""
        return max(self.slices_bytes + 8 * self.stages * self.bulk, 4 * self.rows * self.row_words(dtype))

    def blocks_at_once(self, dtype: str) -> int:
        """Blocks that a multiprocessor holds."""
        return min(2, SHARED_MEMORY // self.shared_bytes(dtype)) if self.columns < 256 else 1


unsupported = mma.unsupported


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's filters fill at least half; bulk copies for the two that bring most weights at a time."""
    filters = problem.out_channels // problem.groups
    narrowest = min(columns for _, columns, _ in TILES)
    fitting = [tile for tile in TILES if tile[1] < 2 * filters or tile[1] == narrowest]
    found = [{"pixels": m, "filters": n, "stages": s, "bulk": 0} for m, n, s in fitting]
    return found + [{**params, "bulk": 1} for params in found[:2]]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on an H100."""
    return product_cost(problem, params, mma.pixels_of(problem))


def product_cost(problem: ConvProblem, params: Params, pixels: int, splits: int = 1) -> float:
    """`cost` of a product with so many rows, whose terms are split; bulk copies, not measured yet, come second."""
    tile = tile_of(params)
    blocks, rates = tile.blocks_at_once(problem.dtype), _RATES[problem.dtype]
    predicted = mma.product_ns(problem, pixels, tile, blocks, rates, splits)
    return predicted * (1.01 if tile.bulk else 1)


def make(problem: ConvProblem, params: Params, threads: int) -> Wgmma:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Wgmma(problem, params)


def tile_of(params: Params) -> WgmmaTile:
    """The tile with some parameters."""
    return WgmmaTile(params["pixels"], params["filters"], params["stages"], params["bulk"])


@cache
def accumulation(tile: WgmmaTile, dtype: str, pixel_of: Any = image_pixel) -> Any:
    """The device function that computes a thread's sums, as that of `fastconv.cuda.mma.accumulation`."""
    multiply_add, place, WIDTH, UNITS = _PRODUCTS[dtype], placing(tile.units), 16 // ITEMSIZE[dtype], tile.units
    ROWS, COLUMNS, SUMS, OWN, THREADS = tile.rows, tile.columns, tile.sums, own_pixels(tile), tile.threads
    ROW, STEP, COPIES = UNITS * WIDTH, THREADS // UNITS, COLUMNS * UNITS // THREADS
    LEFT, SLICE, AHEAD, ARRIVING = ROWS * ROW, (ROWS + COLUMNS) * ROW, tile.stages - 1, tile.stages - 2
    NEXT = COLUMNS * ROW if tile.bulk_copies else ROW
    start, gather, advance = gathering(tile, WIDTH, pixel_of)

    BULK, BARRIERS, SLICE_BYTES, STAGES = tile.bulk_copies, tile.slices_bytes // 8, 16 * UNITS * COLUMNS, tile.stages

    @device
    def first_weight(g, thread, group, first_filter):
        if BULK:
            return int32((group * g.padded_filters + first_filter) * g.slices * ROW)
        row = int32((group * g.padded_filters + first_filter + thread // UNITS) * g.slices)
        return int32((row * UNITS + thread % UNITS) * WIDTH)

    @device
    def copy_weights(shared, barriers, stage, weight, element, g, thread):
        if BULK:
            if thread == 0:
                barrier_expect(barriers, int32(BARRIERS + stage), int32(SLICE_BYTES))
                at = int32(stage * SLICE + LEFT)
                copy_bulk(shared, at, weight, element, int32(SLICE_BYTES), barriers, int32(BARRIERS + stage))
            sync_warp()  # products want the lanes together again
        else:
            at = int32(stage * SLICE + LEFT + place(int32(thread // UNITS), int32(thread % UNITS)) * WIDTH)
            for i in range(COPIES):
                source = int32(element + i * STEP * g.slices * ROW)
                copy_async16(shared, int32(at + i * STEP * ROW), weight, source, True)

    @device
    def start_barriers(barriers, thread):
        if thread == 0:
            for stage in range(STAGES):
                barrier_init(barriers, int32(BARRIERS + stage), int32(1))
            fence_async()
        cuda.syncthreads()

    @device
    def multiply(shared, slice, own_left, sums):
        left, right = descriptor(shared, int32(slice + own_left)), descriptor(shared, int32(slice + LEFT))
        wgmma_fence()
        multiply_add(sums, COLUMNS, shared, left, right)
        multiply_add(sums, COLUMNS, shared, left + types.uint64(2), right + types.uint64(2))
        multiply_add(sums, COLUMNS, shared, left + types.uint64(4), right + types.uint64(4))
        multiply_add(sums, COLUMNS, shared, left + types.uint64(6), right + types.uint64(6))
        wgmma_commit()

    @device
    def accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums):
        pixels, term = cuda.local.array((OWN, 2), int32), cuda.local.array(TERM_FIELDS, int32)
        rows, columns = cuda.local.array(OWN, int32), cuda.local.array(OWN, int32)
        for i in range(SUMS):
            sums[i] = float32(0)
        barriers = cuda.shared.array(0, types.uint64)
        if BULK:
            start_barriers(barriers, thread)
        first_slice = int32(split * g.share)
        slices = min(g.share, int32(g.slices - first_slice))
        left_place = start(g, thread, first, group, first_slice, pixels, term, rows, columns)
        element = int32(first_weight(g, thread, group, first_filter) + first_slice * NEXT)
        own_left = int32(thread // 128 * 64 * ROW)
        for i in range(AHEAD):
            if i < slices:
                gather(shared, int32(i * SLICE + left_place), x, g, pixels, term)
                copy_weights(shared, barriers, i, weight, element, g, thread)
                advance(g, term)
            element += int32(NEXT)
            commit()
        ahead, ready, free, parity = slices, int32(0), int32(AHEAD), int32(0)
        while ahead > 0:
            wait(ARRIVING)
            fence_async()
            cuda.syncthreads()  # the slice is there for all, and the one before it is no longer multiplied
            if BULK:
                barrier_wait(barriers, int32(BARRIERS + ready), parity)
            multiply(shared, int32(ready * SLICE), own_left, sums)
            if ahead > AHEAD:
                gather(shared, int32(free * SLICE + left_place), x, g, pixels, term)
                copy_weights(shared, barriers, free, weight, element, g, thread)
                advance(g, term)
            element += int32(NEXT)
            commit()
            wgmma_wait(0)
            free, ready = ready, int32(ready + 1)
            if ready == STAGES:
                ready, parity = int32(0), int32(1 - parity)
            ahead = int32(ahead - 1)
        wgmma_finish(sums, SUMS)
        cuda.syncthreads()  # nobody multiplies any more

    return accumulate


def product(tile: WgmmaTile, dtype: str, pixel_of: Any = image_pixel) -> Product:
    """What kernels do with a tile until they write it."""
    blocks = tile.blocks_at_once(dtype)
    return Product("wgmma", tile, dtype, accumulation(tile, dtype, pixel_of), blocks, features="a")


@cache
def compiled(tile: WgmmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    return convolution(product(tile, dtype))


class Wgmma(mma.Mma):
    """Forward convolution by implicit GEMM on the tensor cores of Hopper GPUs."""

    def tile_of(self, params: Params) -> WgmmaTile:
        return tile_of(params)

    def compiled(self) -> Kernel:
        return compiled(self.tile, self.problem.dtype)

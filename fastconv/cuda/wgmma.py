"""Implicit GEMM on the tensor cores of Hopper GPUs, compute capability 9.0: 16-bit elements, and TF32.

As `fastconv.cuda.mma`, with slices in shared memory of 128 bytes a row, whose permuted units are the "128-byte
swizzle" of wgmma instructions. Four of these read both matrices from there, a slice, while the warps copy what comes
next; a warpgroup has 64 pixels of the tile. Of float32 elements, which they read as they are, they ignore the bits
that TF32 does not have; weights are rounded when they are packed,
and come by units or in bulk (`fastconv.cuda.wgmma_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.gather import image_pixel
from fastconv.cuda.gather_units import TERM_FIELDS, gathering, own_pixels
from fastconv.cuda.mma_kernel import Product
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.ptx import commit, wait
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
from fastconv.cuda.wgmma_weights import by_units, in_bulk
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


unsupported, unsupported_product = mma.unsupported, mma.unsupported_product


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


def blocks_of(tile: WgmmaTile, dtype: str) -> int:
    """Blocks that a multiprocessor holds."""
    return tile.blocks_at_once(dtype)


def make(problem: ConvProblem, params: Params, threads: int) -> mma.Mma:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return mma.Mma(problem, tile_of(params), product)


def tile_of(params: Params) -> WgmmaTile:
    """The tile with some parameters."""
    return WgmmaTile(params["pixels"], params["filters"], params["stages"], params["bulk"])


@cache
def multiplication(tile: WgmmaTile, dtype: str) -> Any:
    """The device function ``multiply(shared, slice, own_left, sums)``: start the product of a slice, at an element.

    `own_left` is how far on in it the rows of the thread's warpgroup are.
    """
    multiply_add, COLUMNS, LEFT = _PRODUCTS[dtype], tile.columns, tile.rows * tile.units * (16 // ITEMSIZE[dtype])

    @device
    def multiply(shared, slice, own_left, sums):
        left, right = descriptor(shared, int32(slice + own_left)), descriptor(shared, int32(slice + LEFT))
        wgmma_fence()
        multiply_add(sums, COLUMNS, shared, left, right)
        multiply_add(sums, COLUMNS, shared, left + types.uint64(2), right + types.uint64(2))
        multiply_add(sums, COLUMNS, shared, left + types.uint64(4), right + types.uint64(4))
        multiply_add(sums, COLUMNS, shared, left + types.uint64(6), right + types.uint64(6))
        wgmma_commit()

    return multiply


@cache
def accumulation(tile: WgmmaTile, dtype: str, pixel_of: Any = image_pixel) -> Any:
    """The device function that computes a thread's sums, as that of `fastconv.cuda.mma.accumulation`."""
    WIDTH, SUMS, OWN, STAGES, AHEAD = 16 // ITEMSIZE[dtype], tile.sums, own_pixels(tile), tile.stages, tile.stages - 1
    ROW, SLICE, ARRIVING = tile.units * WIDTH, (tile.rows + tile.columns) * tile.units * WIDTH, AHEAD - 1
    start, gather, advance = gathering(tile, WIDTH, pixel_of)
    start_weights, first_weight, copy_weights, ready_weights, NEXT = (in_bulk if tile.bulk else by_units)(tile, WIDTH)
    multiply = multiplication(tile, dtype)

    @device
    def accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums):
        pixels, term = cuda.local.array((OWN, 2), int32), cuda.local.array(TERM_FIELDS, int32)
        rows, columns = cuda.local.array(OWN, int32), cuda.local.array(OWN, int32)
        for i in range(SUMS):
            sums[i] = float32(0)
        barriers = cuda.shared.array(0, types.uint64)
        start_weights(barriers, thread)
        first_slice = int32(split * g.share)
        slices = min(g.share, int32(g.slices - first_slice))
        left_place = start(g, thread, first, group, first_slice, pixels, term, rows, columns)
        element = first_weight(g, thread, group, first_filter, first_slice)
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
            ready_weights(barriers, ready, parity)
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

"""Implicit GEMM in float32 with bias, activation and pooling in one pass: the unpooled map is never in memory.

As `fastconv.cuda.tiled`, but the rows of a tile are patches of a map that hold whole windows
(`fastconv.cuda.patches`).
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import tiled
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.gather import own_pixels, own_terms
from fastconv.cuda.gemm import Tile
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.patches import Patches, fitting, patch_pixel, patches_in, pooling_of, unsupported_pooling
from fastconv.cuda.pool_tile import pooled_bytes, pooling
from fastconv.cuda.product_cost import blocks_at_once, product_ns
from fastconv.cuda.tiled import TILES, Tiled, accumulation, unsupported_product
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer
from fastconv.cuda.walk import WalkGeometry, tile_of_block
from fastconv.cuda.window import Norm, Window, mode_of
from fastconv.problem import ConvProblem


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return unsupported_pooling(problem, max(rows for rows, _ in TILES)) or unsupported_product(problem)


def space(problem: ConvProblem) -> list[Params]:
    """Those of `fastconv.cuda.tiled` that a window fits into, or one that is larger than its filters need."""
    return fitting(tiled.space(problem), problem) or fitting([{"pixels": 128, "filters": 64}], problem)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: with what neighbouring patches compute twice."""
    tile = Tile(params["pixels"], params["filters"])
    patches = patches_in(problem, tile.rows)
    filters, terms = problem.out_channels // problem.groups, math.prod(problem.weight_shape[1:])
    return product_ns(tile, patches.tiles * tile.rows, filters, terms, problem.groups)


def make(problem: ConvProblem, params: Params, threads: int) -> TiledPool:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return TiledPool(problem, params)


@cache
def compiled(tile: Tile, channels_last: bool, mode: int) -> Kernel:
    """The kernel for a tile, the memory format of x, and a mode of `fastconv.cuda.window`."""
    COLUMNS = tile.columns
    PIXELS, TERMS = own_pixels(tile, channels_last), own_terms(tile, channels_last)
    accumulate = accumulation(tile, channels_last, patch_pixel)
    stash, write = pooling(tile, mode)

    def tiled_pool(x, weight, bias, out, g, epilogue, patches, window, norm):
        shared = cuda.shared.array(0, float32)
        sums = cuda.local.array((8, 8), float32)
        a, b = cuda.local.array(8, float32), cuda.local.array(8, float32)
        pixels, terms = cuda.local.array((PIXELS, 2), int32), cuda.local.array((TERMS, 3), int32)
        rows, columns = cuda.local.array(PIXELS, int32), cuda.local.array(PIXELS, int32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        patch_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_patch, first_filter = int32(patch_tile * patches.per_tile), int32(filter_tile * COLUMNS)
        first = (patches, window, first_patch)
        accumulate(
            shared, x, weight, g, thread, first, group, first_filter, int32(0), sums, a, b, pixels, terms, rows, columns
        )
        stash(shared, bias, g, epilogue, sums, thread, 0, first_filter, group)
        cuda.syncthreads()
        write(shared, out, g, patches, window, norm, thread, first_patch, first_filter, group)
        cuda.syncthreads()
        second = int32(first_filter + COLUMNS // 2)
        stash(shared, bias, g, epilogue, sums, thread, 4, second, group)
        cuda.syncthreads()
        write(shared, out, g, patches, window, norm, thread, first_patch, second, group)

    array = pointer(float32)
    kinds = (
        array, array, array, array, numbers(int32, WalkGeometry), numbers(float32, Epilogue), numbers(int32, Patches),
        numbers(int32, Window), numbers(float32, Norm),
    )  # fmt: skip
    variant = (tile.rows, tile.columns, mode, "nhwc" if channels_last else "nchw")
    return Kernel(tiled_pool, kinds, variant, threads=tile.threads, blocks=blocks_at_once(tile))


class TiledPool(Tiled):
    """Forward convolution and pooling by implicit GEMM."""

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        assert p.pool is not None
        pooling = pooling_of(p, tile.rows)
        grid = (pooling[0].tiles * (self.packer.columns // tile.columns), 1, p.groups)
        values = (self.geometry(x, out, vectors), Epilogue.of(p.activation), *pooling)
        return Launch(compiled(tile, x[1] == 1, mode_of(p.pool)), grid, values, pooled_bytes(tile))

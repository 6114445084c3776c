"""Kernels of implicit GEMM on tensor cores: a block computes the sums of a tile of pixels and filters, then ends it.

Which instructions multiply is up to the function that computes the sums, of `fastconv.cuda.mma` or
`fastconv.cuda.wgmma`.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from fastconv.cuda.codec import codec
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer, uint32
from fastconv.cuda.walk import WalkGeometry, tile_of_block
from fastconv.cuda.write_tile import finishing, writing


def kernel(name: str, tile: MmaTile, dtype: str, accumulate: Any, blocks: int, features: str = "") -> Kernel:
    """A convolution.

    Parameters
    ----------
    name : str
    tile : MmaTile
    dtype : str
    accumulate : device function
        See `fastconv.cuda.mma.accumulation`.
    blocks : int
        Fewest that a multiprocessor must be able to hold.
    features : str, default ""
        As that of `fastconv.cuda.kernel.Kernel`.
    """
    stored, word = codec(dtype).stored, float32 if dtype == "float32" else uint32
    ROWS, COLUMNS, SUMS = tile.rows, tile.columns, tile.sums
    finish, write = finishing(tile, dtype), writing(tile, dtype)

    def product(x, weight, bias, out, g, epilogue):
        shared, words = cuda.shared.array(0, stored), cuda.shared.array(0, word)
        sums = cuda.local.array(SUMS, float32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        pixel_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_pixel, first_filter = int32(pixel_tile * ROWS), int32(filter_tile * COLUMNS)
        accumulate(shared, x, weight, g, thread, first_pixel, group, first_filter, sums)
        finish(words, sums, bias, g, epilogue, thread, first_filter, group)
        cuda.syncthreads()
        write(words, shared, out, g, thread, first_pixel, first_filter, group)

    array = pointer(stored)
    kinds = (array, array, array, array, numbers(int32, WalkGeometry), numbers(float32, Epilogue))
    variant = (name, *astuple(tile), dtype)
    return Kernel(product, kinds, variant, threads=tile.threads, blocks=blocks, features=features)

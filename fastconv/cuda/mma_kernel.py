"""Kernels of implicit GEMM on tensor cores: a block computes the sums of a tile, then writes it, or pools it first.

Which instructions multiply is up to the function that computes the sums (`fastconv.cuda.mma.accumulation`,
`fastconv.cuda.wgmma.accumulation`).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from fastconv.cuda.codec import codec
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.patches import Patches
from fastconv.cuda.pool_write import pooled_writing
from fastconv.cuda.toolkit import cuda, float32, int32, numbers, pointer, uint32
from fastconv.cuda.walk import WalkGeometry, tile_of_block
from fastconv.cuda.window import Norm, Window
from fastconv.cuda.write_tile import finishing, writing


@dataclass(frozen=True)
class Product:
    """How a tile's sums are computed.

    Parameters
    ----------
    name : str
        Of the kernels.
    tile : MmaTile
    dtype : str
    accumulate : device function
        ``accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums)``.
    blocks : int
        Fewest that a multiprocessor must be able to hold.
    features : str, default ""
        As that of `fastconv.cuda.kernel.Kernel`.
    """

    name: str
    tile: MmaTile
    dtype: str
    accumulate: Any
    blocks: int
    features: str = ""

    @property
    def word(self) -> Any:
        """The type of 4 bytes of results in shared memory."""
        return float32 if self.dtype == "float32" else uint32

    def kernel(self, function: Any, kinds: tuple = (), variant: tuple = (), result: str | None = None) -> Kernel:
        """The kernel whose function ends the product.

        `kinds` are those of further numbers; the result has the product's dtype if none is given.
        """
        array, out = pointer(codec(self.dtype).stored), pointer(codec(result or self.dtype).stored)
        kinds = (array, array, array, out, numbers(int32, WalkGeometry), numbers(float32, Epilogue), *kinds)
        variant = (self.name, *astuple(self.tile), self.dtype, *variant)
        return Kernel(
            function, kinds, variant, threads=self.tile.threads, blocks=self.blocks, features=self.features
        )  # fmt: skip


@cache
def convolution(product: Product) -> Kernel:
    """The kernel that writes sums with bias and activation."""
    tile, dtype, accumulate, word = product.tile, product.dtype, product.accumulate, product.word
    stored, ROWS, COLUMNS, SUMS = codec(dtype).stored, tile.rows, tile.columns, tile.sums
    finish, write = finishing(tile, dtype), writing(tile, dtype)

    def convolve(x, weight, bias, out, g, epilogue):
        shared, words = cuda.shared.array(0, stored), cuda.shared.array(0, word)
        sums = cuda.local.array(SUMS, float32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        pixel_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_pixel, first_filter = int32(pixel_tile * ROWS), int32(filter_tile * COLUMNS)
        accumulate(shared, x, weight, g, thread, first_pixel, group, first_filter, int32(0), sums)
        finish(words, sums, bias, g, epilogue, thread, first_filter, group)
        cuda.syncthreads()
        write(words, shared, out, int32(0), g, thread, first_pixel, first_filter, group)

    return product.kernel(convolve)


@cache
def split_convolution(product: Product) -> Kernel:
    """The kernel that writes the float32 sums of shares of the terms, one map behind the other, as they are."""
    tile, accumulate, stored = product.tile, product.accumulate, codec(product.dtype).stored
    ROWS, COLUMNS, SUMS = tile.rows, tile.columns, tile.sums
    finish, write = finishing(tile, "float32"), writing(tile, "float32")

    def convolve_split(x, weight, bias, out, g, epilogue):
        shared, words = cuda.shared.array(0, stored), cuda.shared.array(0, float32)
        sums = cuda.local.array(SUMS, float32)
        thread, split, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        pixel_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_pixel, first_filter = int32(pixel_tile * ROWS), int32(filter_tile * COLUMNS)
        accumulate(shared, x, weight, g, thread, first_pixel, group, first_filter, split, sums)
        finish(words, sums, bias, g, epilogue, thread, first_filter, group)
        cuda.syncthreads()
        begin = int32(split * g.pixels * g.out_column)
        write(words, words, out, begin, g, thread, first_pixel, first_filter, group)

    return product.kernel(convolve_split, result="float32")


@cache
def pooled_convolution(product: Product, mode: int) -> Kernel:
    """The kernel that pools them, in a mode of `fastconv.cuda.window`; rows of its tiles are patches of the map."""
    tile, dtype, accumulate, word = product.tile, product.dtype, product.accumulate, product.word
    stored, COLUMNS, SUMS = codec(dtype).stored, tile.columns, tile.sums
    finish = finishing(tile, dtype)
    write = pooled_writing(COLUMNS, tile.row_words(dtype), tile.threads, dtype, mode)

    def pool(x, weight, bias, out, g, epilogue, patches, window, norm):
        shared, words = cuda.shared.array(0, stored), cuda.shared.array(0, word)
        sums = cuda.local.array(SUMS, float32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        patch_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_patch, first_filter = int32(patch_tile * patches.per_tile), int32(filter_tile * COLUMNS)
        first = (patches, window, first_patch)
        accumulate(shared, x, weight, g, thread, first, group, first_filter, int32(0), sums)
        finish(words, sums, bias, g, epilogue, thread, first_filter, group)
        cuda.syncthreads()
        write(words, out, g, patches, window, norm, thread, first_patch, first_filter, group)

    return product.kernel(pool, (numbers(int32, Patches), numbers(int32, Window), numbers(float32, Norm)), (mode,))

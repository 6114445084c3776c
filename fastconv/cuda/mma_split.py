"""Implicit GEMM on tensor cores for few pixels of many channels, whose tiles alone would not fill a large GPU.

As `fastconv.cuda.mma`, with the terms of each sum split over several blocks; their float32 sums are added, in one
order, by a second kernel (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.mma_kernel import split_convolution
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.pack_units import FilterUnits
from fastconv.cuda.product_cost import CAUTION, multiprocessors
from fastconv.cuda.sum_maps import sum_ns
from fastconv.cuda.term_splits import TermSplit, Work, unsplit, with_splits
from fastconv.problem import ConvProblem

_LEAST_SLICES = 4  # of a split: fewer would be over before the copies come fast


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return mma.unsupported(problem) or unsplit(problem, space)


def space(problem: ConvProblem) -> list[Params]:
    """Tiles, with two splits of their terms and as many as fill the GPU once."""

    def work(params: Params) -> Work:
        tile = mma.tile_of(params)
        return work_of(problem, tile, mma.blocks_at_once(tile))

    return with_splits(mma.space(problem), work)


def work_of(problem: ConvProblem, tile: MmaTile, blocks: int) -> Work:
    """What there is to split, of a tile of which a multiprocessor holds so many blocks."""
    slices = FilterUnits(problem, tile.columns, units=tile.units).slices
    return Work(mma.tiles_of(problem, tile), multiprocessors() * blocks, slices, _LEAST_SLICES)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    product = mma.product_cost(problem, params, mma.pixels_of(problem), params["splits"])
    return CAUTION * (product + sum_ns(problem, params["splits"]))


def make(problem: ConvProblem, params: Params, threads: int) -> MmaSplit:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return MmaSplit(problem, params)


@cache
def compiled(tile: MmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    return split_convolution(mma.product(tile, dtype))


class MmaSplit(TermSplit, mma.Mma):
    """Forward convolution on tensor cores whose terms are split."""

    def launch(self, *strides: Strides) -> Launch:
        x, _, maps = strides
        return self._launch(x, maps, True)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        tiles, _, groups = self.grid(-(-mma.pixels_of(p) // tile.rows))
        values = (self.split(self.geometry(x, out, vectors)), Epilogue.of(None))
        return Launch(self.compiled(), (tiles, self.splits, groups), values, tile.shared_bytes("float32"))

    def compiled(self) -> Kernel:
        return compiled(self.tile, self.problem.dtype)

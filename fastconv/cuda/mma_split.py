"""Implicit GEMM on tensor cores for few pixels of many channels, whose tiles alone would not fill a large GPU.

As `fastconv.cuda.mma` and `fastconv.cuda.wgmma`, with the terms of each sum split over several blocks; their float32
sums are added, in one order, by a second kernel (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

from types import ModuleType

from fastconv.algorithms import Params
from fastconv.cuda import mma, wgmma
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Launch
from fastconv.cuda.mma_kernel import split_convolution
from fastconv.cuda.pack_units import FilterUnits
from fastconv.cuda.product_cost import CAUTION, multiprocessors
from fastconv.cuda.sum_maps import sum_ns
from fastconv.cuda.term_splits import TermSplit, Work, unsplit, with_splits
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

_LEAST_SLICES = 4  # of a split: fewer would be over before the copies come fast


class BySplits:
    """A registered algorithm (see `fastconv.algorithms`) made of `fastconv.cuda.mma` or `fastconv.cuda.wgmma`."""

    def __init__(self, whole: ModuleType) -> None:
        self.whole = whole
        self.CAPABILITY: Pair | None = getattr(whole, "CAPABILITY", None)

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why it cannot compute `problem`, or None if it can."""
        return self.whole.unsupported(problem) or unsplit(problem, self.space)

    def space(self, problem: ConvProblem) -> list[Params]:
        """Tiles without bulk copies, with two splits of their terms and as many as fill the GPU once."""

        def work(params: Params) -> Work:
            tile = self.whole.tile_of(params)
            slices = FilterUnits(problem, tile.columns, units=tile.units).slices
            at_once = multiprocessors() * self.whole.blocks_of(tile, problem.dtype)
            return Work(mma.tiles_of(problem, tile), at_once, slices, _LEAST_SLICES)

        return with_splits([params for params in self.whole.space(problem) if not params.get("bulk")], work)

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted time in nanoseconds on a large GPU."""
        product = self.whole.product_cost(problem, params, mma.pixels_of(problem), params["splits"])
        return CAUTION * (product + sum_ns(problem, params["splits"]))

    def make(self, problem: ConvProblem, params: Params, threads: int) -> MmaSplit:
        """The kernel of a problem; `threads` are of the CPU and change nothing."""
        return MmaSplit(problem, params["splits"], self.whole.tile_of(params), self.whole.product)


class MmaSplit(TermSplit, mma.Mma):
    """Forward convolution on tensor cores whose terms are split."""

    def launch(self, *strides: Strides) -> Launch:
        x, _, maps = strides
        return self._launch(x, maps, True)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        tiles, _, groups = self.grid(-(-mma.pixels_of(p) // tile.rows))
        kernel, g = split_convolution(self.product(tile, p.dtype)), self.split(self.geometry(x, out, vectors))
        return Launch(kernel, (tiles, self.splits, groups), (g, Epilogue.of(None)), tile.shared_bytes("float32"))


by_mma, by_wgmma = BySplits(mma), BySplits(wgmma)

"""As `fastconv.cuda.mma_split`, on the tensor cores of Hopper GPUs (`fastconv.cuda.wgmma`)."""

from __future__ import annotations

from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma, mma_split, wgmma
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_kernel import split_convolution
from fastconv.cuda.product_cost import CAUTION
from fastconv.cuda.sum_maps import sum_ns
from fastconv.cuda.term_splits import Work, unsplit, with_splits
from fastconv.cuda.wgmma import CAPABILITY, WgmmaTile
from fastconv.problem import ConvProblem

__all__ = ["CAPABILITY", "cost", "make", "space", "unsupported"]


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return wgmma.unsupported(problem) or unsplit(problem, space)


def space(problem: ConvProblem) -> list[Params]:
    """Those of `fastconv.cuda.wgmma` without bulk copies whose terms can be split."""

    def work(params: Params) -> Work:
        tile = wgmma.tile_of(params)
        return mma_split.work_of(problem, tile, tile.blocks_at_once(problem.dtype))

    return with_splits([params for params in wgmma.space(problem) if not params["bulk"]], work)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on an H100."""
    product = wgmma.product_cost(problem, params, mma.pixels_of(problem), params["splits"])
    return CAUTION * (product + sum_ns(problem, params["splits"]))


def make(problem: ConvProblem, params: Params, threads: int) -> WgmmaSplit:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return WgmmaSplit(problem, params)


@cache
def compiled(tile: WgmmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    return split_convolution(wgmma.product(tile, dtype))


class WgmmaSplit(mma_split.MmaSplit):
    """Forward convolution on the tensor cores of Hopper GPUs whose terms are split."""

    def tile_of(self, params: Params) -> WgmmaTile:
        return wgmma.tile_of(params)

    def compiled(self) -> Kernel:
        return compiled(self.tile, self.problem.dtype)

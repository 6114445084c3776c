"""`fastconv.cuda.mma_pool` on the tensor cores of Hopper GPUs, compute capability 9.0, as `fastconv.cuda.wgmma`."""

from __future__ import annotations

from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma_pool, wgmma
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.mma_kernel import pooled_convolution
from fastconv.cuda.patches import fitting, patch_pixel
from fastconv.cuda.product_cost import CAUTION
from fastconv.cuda.wgmma import CAPABILITY, WgmmaTile
from fastconv.cuda.window import mode_of
from fastconv.problem import ConvProblem

__all__ = ["CAPABILITY", "cost", "make", "space", "unsupported"]

unsupported = mma_pool.unsupported


def space(problem: ConvProblem) -> list[Params]:
    """Those of `fastconv.cuda.wgmma` that a window fits into."""
    return fitting(wgmma.space(problem), problem)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on an H100: with what neighbouring patches compute twice."""
    product = wgmma.product_cost(problem, params, mma_pool.rows_of(problem, params))
    return CAUTION * (product + mma_pool.pooling_ns(problem))


def make(problem: ConvProblem, params: Params, threads: int) -> WgmmaPool:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return WgmmaPool(problem, params)


@cache
def compiled(tile: WgmmaTile, dtype: str, mode: int) -> Kernel:
    """The kernel for a tile, a dtype, and a mode of `fastconv.cuda.window`."""
    return pooled_convolution(wgmma.product(tile, dtype, patch_pixel), mode)


class WgmmaPool(mma_pool.MmaPool):
    """Forward convolution and pooling by implicit GEMM on the tensor cores of Hopper GPUs."""

    def tile_of(self, params: Params) -> WgmmaTile:
        return wgmma.tile_of(params)

    def compiled(self) -> Kernel:
        assert self.problem.pool is not None
        return compiled(self.tile, self.problem.dtype, mode_of(self.problem.pool))

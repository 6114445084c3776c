"""Implicit GEMM on tensor cores with bias, activation and pooling in one pass: the unpooled map is never in memory.

As `fastconv.cuda.mma`, but the rows of a tile are patches of a map that hold whole windows (`fastconv.cuda.patches`).
What is pooled has the type of the result, as if the unpooled map had been written.
"""

from __future__ import annotations

import math
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.mma_kernel import pooled_convolution
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.patches import fitting, patch_pixel, patches_in, pooling_of, unsupported_pooling
from fastconv.cuda.product_cost import CAUTION
from fastconv.cuda.window import mode_of
from fastconv.problem import ConvProblem

_TAP_NS = 0.0002  # about six instructions, on all lanes of a large GPU


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return unsupported_pooling(problem, max(rows for rows, _ in mma.TILES)) or mma.unsupported_product(problem)


def space(problem: ConvProblem) -> list[Params]:
    """Those of `fastconv.cuda.mma` that a window fits into."""
    return fitting(mma.space(problem), problem)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: with what neighbouring patches compute twice."""
    return CAUTION * (mma.product_cost(problem, params, rows_of(problem, params)) + pooling_ns(problem))


def pooling_ns(problem: ConvProblem) -> float:
    """That of reducing windows: some instructions for each element of each window."""
    assert problem.pool is not None
    return math.prod(problem.out_shape) * math.prod(problem.pool.kernel_size) * _TAP_NS


def rows_of(problem: ConvProblem, params: Params) -> int:
    """Rows of the product, with those of tiles that no patch fills."""
    rows = params["pixels"]
    return rows * patches_in(problem, rows).tiles


def make(problem: ConvProblem, params: Params, threads: int) -> MmaPool:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return MmaPool(problem, params)


@cache
def compiled(tile: MmaTile, dtype: str, mode: int) -> Kernel:
    """The kernel for a tile, a dtype, and a mode of `fastconv.cuda.window`."""
    return pooled_convolution(mma.product(tile, dtype, patch_pixel), mode)


class MmaPool(mma.Mma):
    """Forward convolution and pooling by implicit GEMM on tensor cores."""

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        pooling = pooling_of(p, tile.rows)
        values = (self.geometry(x, out, vectors), Epilogue.of(p.activation), *pooling)
        return Launch(self.compiled(), self.grid(pooling[0].tiles), values, tile.shared_bytes(p.dtype))

    def compiled(self) -> Kernel:
        assert self.problem.pool is not None
        return compiled(self.tile, self.problem.dtype, mode_of(self.problem.pool))

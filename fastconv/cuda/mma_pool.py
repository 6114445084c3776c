"""Implicit GEMM on tensor cores with bias, activation and pooling in one pass: the unpooled map is never in memory.

As `fastconv.cuda.mma` and `fastconv.cuda.wgmma`, but the rows of a tile are patches of a map that hold whole windows
(`fastconv.cuda.patches`). What is pooled has the type of the result, as if the unpooled map had been written.
"""

from __future__ import annotations

import math
from types import ModuleType

from fastconv.algorithms import Params
from fastconv.cuda import mma, wgmma
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Launch
from fastconv.cuda.mma_kernel import pooled_convolution
from fastconv.cuda.patches import fitting, patch_pixel, patches_in, pooling_of, unsupported_pooling
from fastconv.cuda.product_cost import CAUTION
from fastconv.cuda.window import mode_of
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

_TAP_NS = 0.0002  # about six instructions, on all lanes of a large GPU


class Pooled:
    """A registered algorithm (see `fastconv.algorithms`) made of `fastconv.cuda.mma` or `fastconv.cuda.wgmma`."""

    def __init__(self, unpooled: ModuleType) -> None:
        self.unpooled = unpooled
        self.CAPABILITY: Pair | None = getattr(unpooled, "CAPABILITY", None)

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why it cannot compute `problem`, or None if it can."""
        rows = max((params["pixels"] for params in self.unpooled.space(problem)), default=0)
        return unsupported_pooling(problem, rows) or self.unpooled.unsupported_product(problem)

    def space(self, problem: ConvProblem) -> list[Params]:
        """Tiles that a window fits into."""
        return fitting(self.unpooled.space(problem), problem)

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted time in nanoseconds on a large GPU: with what neighbouring patches compute twice."""
        assert problem.pool is not None
        rows = params["pixels"] * patches_in(problem, params["pixels"]).tiles
        reduced = math.prod(problem.out_shape) * math.prod(problem.pool.kernel_size)
        return CAUTION * (self.unpooled.product_cost(problem, params, rows) + reduced * _TAP_NS)

    def make(self, problem: ConvProblem, params: Params, threads: int) -> MmaPool:
        """The kernel of a problem; `threads` are of the CPU and change nothing."""
        return MmaPool(problem, self.unpooled.tile_of(params), self.unpooled.product)


class MmaPool(mma.Mma):
    """Forward convolution and pooling by implicit GEMM on tensor cores."""

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        assert p.pool is not None
        kernel = pooled_convolution(self.product(tile, p.dtype, patch_pixel), mode_of(p.pool))
        pooling = pooling_of(p, tile.rows)
        values = (self.geometry(x, out, vectors), Epilogue.of(p.activation), *pooling)
        return Launch(kernel, self.grid(pooling[0].tiles), values, tile.shared_bytes(p.dtype))


by_mma, by_wgmma = Pooled(mma), Pooled(wgmma)

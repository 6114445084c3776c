"""Implicit GEMM in float32 for few pixels of many channels, whose tiles alone would not fill a large GPU.

As `fastconv.cuda.tiled`, with the terms of each sum split over several blocks; their sums are added, in one order, by
a second kernel (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

import math

from fastconv.algorithms import Params
from fastconv.cuda import tiled
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import Packed, Strides
from fastconv.cuda.gemm import DEPTH, Tile
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Launch
from fastconv.cuda.product_cost import PROCESSORS, blocks_at_once, product_ns
from fastconv.cuda.sum_maps import MapSum, sum_ns
from fastconv.cuda.term_splits import Work, unsplit, with_splits
from fastconv.problem import ConvProblem

_LEAST_SLICES = 16  # of a split: fewer would be over before the copies come fast


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return tiled.unsupported(problem) or unsplit(problem, space)


def space(problem: ConvProblem) -> list[Params]:
    """Tiles, with two splits of their terms and as many as fill the GPU once."""
    pixels, filters, terms = _sizes(problem)

    def work(params: Params) -> Work:
        tile = _tile(params)
        tiles = -(-pixels // tile.rows) * -(-filters // tile.columns) * problem.groups
        return Work(tiles, PROCESSORS * blocks_at_once(tile), -(-terms // DEPTH), _LEAST_SLICES)

    return with_splits(problem, tiled.space(problem), work)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    (pixels, filters, terms), splits = _sizes(problem), params["splits"]
    product = product_ns(_tile(params), pixels, filters, -(-terms // splits), problem.groups * splits)
    return product + sum_ns(problem, splits)


def _sizes(problem: ConvProblem) -> tuple[int, int, int]:
    """Of a group: pixels, filters and terms of a sum."""
    pixels = problem.batch * math.prod(problem.conv_size)
    return pixels, problem.out_channels // problem.groups, math.prod(problem.weight_shape[1:])


def _tile(params: Params) -> Tile:
    return Tile(params["pixels"], params["filters"])


def make(problem: ConvProblem, params: Params, threads: int) -> TiledSplit:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return TiledSplit(problem, params)


class TiledSplit(tiled.Tiled):
    """Forward convolution by implicit GEMM whose terms are split."""

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem, params)
        self.splits, self._sum = params["splits"], MapSum(problem, params["splits"])
        self.maps_bytes = 4 * self._sum.size
        self.workspace_bytes += self.maps_bytes

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`, by way of the maps of all splits."""
        weight, bias = packed
        maps = self._sum.scratch(x)
        super().run(x, (weight, None), maps)
        self._sum.start((maps, out), (bias,))

    def launch(self, *strides: Strides) -> Launch:
        x, _, maps = strides
        p, tile, g = self.problem, self.tile, self.geometry(x, maps, True)
        g = g._replace(has_bias=0, share=-(-g.slices // self.splits))
        grid = (self.tiles, self.splits, p.groups)
        return Launch(tiled.compiled(tile, x[1] == 1), grid, (g, Epilogue.of(None)), tile.shared_bytes)

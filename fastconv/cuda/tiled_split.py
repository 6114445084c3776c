"""Implicit GEMM in float32 for few pixels of many channels, whose tiles alone would not fill a large GPU.

As `fastconv.cuda.tiled`, with the terms of each sum split over several blocks; their sums are added, in one order, by
a second kernel (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

import math

from fastconv.algorithms import Params
from fastconv.cuda import tiled
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.gemm import DEPTH, Tile
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Launch
from fastconv.cuda.product_cost import CAUTION, blocks_at_once, multiprocessors, product_ns
from fastconv.cuda.sum_maps import sum_ns
from fastconv.cuda.term_splits import TermSplit, Work, unsplit, with_splits
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
        return Work(tiles, multiprocessors() * blocks_at_once(tile), -(-terms // DEPTH), _LEAST_SLICES)

    return with_splits(tiled.space(problem), work)


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    (pixels, filters, terms), splits = _sizes(problem), params["splits"]
    product = product_ns(_tile(params), pixels, filters, -(-terms // splits), problem.groups * splits)
    return CAUTION * (product + sum_ns(problem, splits))


def _sizes(problem: ConvProblem) -> tuple[int, int, int]:
    """Of a group: pixels, filters and terms of a sum."""
    pixels = problem.batch * math.prod(problem.conv_size)
    return pixels, problem.out_channels // problem.groups, math.prod(problem.weight_shape[1:])


def _tile(params: Params) -> Tile:
    return Tile(params["pixels"], params["filters"])


def make(problem: ConvProblem, params: Params, threads: int) -> TiledSplit:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return TiledSplit(problem, params["splits"], params)


class TiledSplit(TermSplit, tiled.Tiled):
    """Forward convolution by implicit GEMM whose terms are split."""

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        values = (self.split(self.geometry(x, out, vectors)), Epilogue.of(None))
        return Launch(tiled.compiled(tile, x[1] == 1), (self.tiles, self.splits, p.groups), values, tile.shared_bytes)

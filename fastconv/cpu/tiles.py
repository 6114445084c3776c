"""The menu of register tiles, which of them suit a problem, and what one step of a tile costs."""

from __future__ import annotations

import math

from fastconv.cpu.host import host
from fastconv.problem import ConvProblem

Tile = tuple[int, int]

# (rows, vectors) by number of vector registers: accumulators, one column of vectors and a broadcast fit.
_WIDE = {
    32: [(6, 4), (4, 4), (7, 2), (7, 3), (14, 2), (5, 4)],
    16: [(6, 2), (4, 2), (3, 3), (5, 2)],
}
_ONE_VECTOR = {32: [(14, 1), (8, 1)], 16: [(12, 1), (6, 1)]}
_FEW_ROWS = {32: [(1, 8), (2, 8), (3, 6)], 16: [(1, 8), (2, 4), (3, 3)]}

FMA_NS = 0.28  # a vector multiply-add at 3.6 GHz; only ratios of costs matter


def filter_vector_tiles(problem: ConvProblem) -> list[Tile]:
    """Tiles whose rows are pixels and whose vectors are filters."""
    return channel_vector_tiles(problem.out_channels // problem.groups, math.prod(problem.conv_size), problem.itemsize)


def channel_vector_tiles(channels: int, pixels: int, itemsize: int) -> list[Tile]:
    """Tiles whose rows are some of `pixels` and whose vectors are some of `channels`."""
    vectors = -(-channels // host().lanes(itemsize))
    registers = host().registers
    if pixels < 4:
        return _FEW_ROWS[registers]
    return [tile for tile in _WIDE[registers] if tile[1] <= vectors] or _ONE_VECTOR[registers]


def pixel_vector_tiles(problem: ConvProblem) -> list[Tile]:
    """Tiles whose rows are filters and whose vectors are pixels."""
    filters, registers = problem.out_channels // problem.groups, host().registers
    if filters < 4:
        return [tile for tile in _FEW_ROWS[registers] if tile[0] <= filters]
    return [tile for tile in _WIDE[registers] if tile[0] <= filters] or [_WIDE[registers][1]]


def step_ns(rows: int, vectors: int, apart: bool = True) -> float:
    """Time of one step of the contraction: multiply-adds, unless loads or their latency bind.

    `apart` says that each row of the tile is read from a cache line of its own; L1 has ways for 8.
    """
    accumulators, loads = rows * vectors, rows + vectors
    crowded = 1.12 if apart and rows > 8 else 1.0
    return FMA_NS * crowded * max(accumulators, loads / 2, 4)


def per_tile_ns(rows: int, vectors: int) -> float:
    """Time to start and to store one tile."""
    return FMA_NS * (10 + 3 * rows * vectors)

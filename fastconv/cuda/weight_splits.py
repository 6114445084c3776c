"""Sizes of a weight gradient as a product of matrices, and how its pixels are shared by the blocks of a grid."""

from __future__ import annotations

import math
from typing import Any

from fastconv.cuda.product_cost import multiprocessors
from fastconv.problem import ConvProblem

_FEWEST_SLICES = 16  # of a split: it takes three to begin
_WAVES = (1, 2, 4)  # of blocks on the whole GPU


def matrix(problem: ConvProblem) -> tuple[int, int, int]:
    """Rows and columns of a group's gradient, and the pixels that they are summed over."""
    columns = math.prod(problem.weight_shape[1:])
    return problem.out_channels // problem.groups, columns, problem.batch * math.prod(problem.conv_size)


def tiles(problem: ConvProblem, tile: Any) -> tuple[int, int]:
    """How many tiles cover the filters and the columns of a group."""
    filters, columns, _ = matrix(problem)
    return -(-filters // tile.rows), -(-columns // tile.columns)


def share(problem: ConvProblem, splits: int, depth: int) -> int:
    """Pixels of a split, whole slices of them."""
    return -(-matrix(problem)[2] // (depth * splits)) * depth


def useful_splits(problem: ConvProblem, tile: Any, at_once: int) -> list[int]:
    """Splits that fill a GPU once and a few times, none of them empty; a multiprocessor holds `at_once` blocks."""
    blocks, pixels = math.prod(tiles(problem, tile)) * problem.groups, matrix(problem)[2]
    most = pixels // (tile.depth * _FEWEST_SLICES)
    wanted = (min(most, waves * multiprocessors() * at_once // blocks) for waves in _WAVES)
    shares = {share(problem, max(1, splits), tile.depth) for splits in wanted}
    return sorted({-(-pixels // pixels_of_one) if pixels_of_one else 1 for pixels_of_one in shares}, reverse=True)

"""Into how many shares the terms of a convolution's sums are split, where tiles alone would leave a large GPU idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.sum_maps import WIDTH, MapSum
from fastconv.problem import ConvProblem

_MOST = 1 << 30  # elements of the maps of all splits


class Work(NamedTuple):
    """Tiles of a problem, how many blocks a large GPU holds at once, and slices: all, and the least of a split."""

    tiles: int
    at_once: int
    slices: int
    least: int


def with_splits(problem: ConvProblem, tiles: list[Params], work: Callable[[Params], Work]) -> list[Params]:
    """Parameters of tiles, each with two splits and with as many as fill the GPU once; none is empty."""
    found = []
    for params in tiles:
        todo = work(params)
        most = min(todo.at_once // max(1, todo.tiles), todo.slices // todo.least)
        shares = {-(-todo.slices // splits) for splits in (2, most) if 2 <= splits <= most}
        counts = sorted(-(-todo.slices // share) for share in shares)
        found += [{**params, "splits": splits} for splits in counts if MapSum(problem, splits).size < _MOST]
    return found


def unsplit(problem: ConvProblem, space: Callable[[ConvProblem], list[Params]]) -> str | None:
    """Why the terms of a problem cannot or need not be split, or None."""
    if problem.out_channels // problem.groups % WIDTH:
        return f"the filters of its groups are no multiple of {WIDTH}"
    return None if space(problem) else "its tiles fill a large GPU, or its terms are few"

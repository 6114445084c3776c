"""The terms of a convolution's sums split over several blocks, where tiles alone would leave a large GPU idle.

Blocks leave float32 maps, a second kernel adds them in one order (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import Packed
from fastconv.cuda.sum_maps import WIDTH, MapSum
from fastconv.problem import ConvProblem


class Work(NamedTuple):
    """Tiles of a problem, how many blocks the GPU holds at once, and slices: all, and the least of a split."""

    tiles: int
    at_once: int
    slices: int
    least: int


def with_splits(tiles: list[Params], work: Callable[[Params], Work]) -> list[Params]:
    """Parameters of tiles, each with two splits and with as many as fill the GPU once; none is empty."""
    found = []
    for params in tiles:
        todo = work(params)
        most = min(todo.at_once // max(1, todo.tiles), todo.slices // todo.least)
        counts = sorted({shared(todo.slices, splits) for splits in (2, most) if 2 <= splits <= most})
        found += [{**params, "splits": splits} for splits in counts]
    return found


def shared(slices: int, splits: int) -> int:
    """How many splits, at most so many, have a share of the slices that is no less than that of the others but one."""
    share = -(-slices // splits)
    return -(-slices // share) if slices else 1


def unsplit(problem: ConvProblem, space: Callable[[ConvProblem], list[Params]]) -> str | None:
    """Why the terms of a problem cannot or need not be split, or None."""
    if problem.out_channels // problem.groups % WIDTH:
        return f"the filters of its groups are no multiple of {WIDTH}"
    return None if space(problem) else "its tiles fill a large GPU, or its terms are few"


class TermSplit:
    """What makes a forward kernel, the next base class, one whose terms are split.

    Parameters
    ----------
    problem : ConvProblem
    splits : int
    *rest
        What the forward kernel takes besides the problem.
    """

    packer: Any
    workspace_bytes: int

    def __init__(self, problem: ConvProblem, splits: int, *rest: Any) -> None:
        super().__init__(problem, *rest)  # type: ignore[call-arg]
        self.splits = shared(self.packer.slices, splits)
        self._sum = MapSum(problem, self.splits)
        self.maps_bytes = 4 * self._sum.size
        self.workspace_bytes += self.maps_bytes

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`, by way of the maps of all splits."""
        weight, bias = packed
        maps = self._sum.scratch(x)
        super().run(x, (weight, None), maps)  # type: ignore[misc]
        self._sum.start((maps, out), (bias,))

    def split(self, g: Any) -> Any:
        """A `WalkGeometry` for one split, which leaves the bias to the second kernel."""
        return g._replace(has_bias=0, share=-(-g.slices // self.splits))

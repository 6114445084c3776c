"""Implicit GEMM on tensor cores for few pixels of many channels, whose tiles alone would not fill a large GPU.

As `fastconv.cuda.mma`, with the terms of each sum split over several blocks; their float32 sums are added, in one
order, by a second kernel (`fastconv.cuda.sum_maps`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import Packed, Strides
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.mma_kernel import split_convolution
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.pack_units import FilterUnits
from fastconv.cuda.sum_maps import WIDTH, MapSum
from fastconv.problem import ConvProblem

_LEAST_SLICES = 4  # of a split: fewer would be over before the copies come fast
_BYTE_NS = 1 / 2_000  # of maps that are written and read, mostly in the L2 cache


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return mma.unsupported(problem) or unsplit(problem, space)


def unsplit(problem: ConvProblem, space: Callable[[ConvProblem], list[Params]]) -> str | None:
    """Why the terms of a problem cannot or need not be split, or None."""
    if problem.out_channels // problem.groups % WIDTH:
        return f"the filters of its groups are no multiple of {WIDTH}"
    return None if space(problem) else "its tiles fill a large GPU, or its terms are few"


def space(problem: ConvProblem) -> list[Params]:
    """Tiles, with two splits of their terms and as many as fill the GPU once."""
    return with_splits(problem, mma.space(problem), _sizes)


def _sizes(params: Params) -> tuple[MmaTile, int]:
    tile = mma.tile_of(params)
    return tile, mma.blocks_at_once(tile)


def with_splits(
    problem: ConvProblem, tiles: list[Params], sizes: Callable[[Params], tuple[MmaTile, int]]
) -> list[Params]:
    """Parameters of tiles with each number of splits that is useful; `sizes` has a tile and its blocks at once."""
    found = []
    for params in tiles:
        tile, blocks = sizes(params)
        slices = FilterUnits(problem, tile.columns, units=tile.units).slices
        most = min(mma.PROCESSORS * blocks // max(1, mma.tiles_of(problem, tile)), slices // _LEAST_SLICES)
        shares = {-(-slices // splits) for splits in (2, most) if 2 <= splits <= most}
        counts = sorted(-(-slices // share) for share in shares)
        found += [{**params, "splits": s} for s in counts if MapSum(problem, s).size < 1 << 30]
    return found


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return mma.product_cost(problem, params, mma.pixels_of(problem), params["splits"]) + sum_ns(problem, params)


def sum_ns(problem: ConvProblem, params: Params) -> float:
    """That of writing and adding the maps."""
    return mma.LAUNCH_NS + 2 * 4 * MapSum(problem, params["splits"]).size * _BYTE_NS


def make(problem: ConvProblem, params: Params, threads: int) -> MmaSplit:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return MmaSplit(problem, params)


@cache
def compiled(tile: MmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    return split_convolution(mma.product(tile, dtype))


class MmaSplit(mma.Mma):
    """Forward convolution on tensor cores whose terms are split."""

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem, params)
        self.splits, self._sum = params["splits"], MapSum(problem, params["splits"])
        self.workspace_bytes += 4 * self._sum.size

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`, by way of the maps of all splits."""
        partial = self._sum.scratch(x)
        super().run(x, (packed[0], None), partial)
        self._sum.start((partial, out), (packed[1],))

    def launch(self, *strides: Strides) -> Launch:
        x, _, maps = strides
        return self._launch(x, maps, True)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        g = self.geometry(x, out, vectors)
        g = g._replace(has_bias=0, share=-(-g.slices // self.splits))
        tiles, _, groups = self.grid(-(-mma.pixels_of(p) // tile.rows))
        values = (g, Epilogue.of(None))
        return Launch(self.compiled(), (tiles, self.splits, groups), values, tile.shared_bytes("float32"))

    def compiled(self) -> Kernel:
        return compiled(self.tile, self.problem.dtype)

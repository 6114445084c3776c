"""How an implicit GEMM that pools cuts maps: the rows of a tile are patches, which hold whole windows.

Patches of neighbouring windows compute what they share again (nothing for 2 x 2 with stride 2).
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.elements import divided
from fastconv.cuda.toolkit import device, int32
from fastconv.cuda.window import Norm, Window
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair


class Patches(NamedTuple):
    """How maps are cut: each patch of height x width pixels holds windows_h x windows_w whole windows.

    A tile has `per_tile` patches of the `total` of all images; an image has down x across of them.
    """

    total: int
    per_tile: int
    height: int
    width: int
    windows_h: int
    windows_w: int
    down: int
    across: int

    @property
    def tiles(self) -> int:
        """Tiles of pixels that hold all patches."""
        return -(-self.total // self.per_tile)


def unsupported_pooling(problem: ConvProblem, rows: int) -> str | None:
    """Why a problem's maps cannot be pooled in tiles with so many rows, or None if they can."""
    if problem.pool is None:
        return "there is no pooling"
    if window_pixels(problem.pool) > rows:
        return f"a window spans more than the {rows} pixels of a tile"
    if problem.batch * math.prod(problem.conv_size) >= 1 << 30:
        return "its indices have 32 bits, and the maps before pooling have 2**30 pixels or more"
    return None


def fitting(space: list[Params], problem: ConvProblem) -> list[Params]:
    """Parameters of tiles that a window of a problem fits into."""
    assert problem.pool is not None
    pixels = window_pixels(problem.pool)
    return [params for params in space if params["pixels"] >= pixels]


def window_pixels(pool: Pool) -> int:
    """Pixels that a window spans, with those that its dilation skips: rows of a tile that it needs."""
    height, width = _span(pool, 0, 1), _span(pool, 1, 1)
    return height * width


def _span(pool: Pool, axis: int, windows: int) -> int:
    """Pixels along an axis that neighbouring windows span."""
    return (windows - 1) * pool.stride[axis] + (pool.kernel_size[axis] - 1) * pool.dilation[axis] + 1


@cache
def patches_of(pool: Pool, size: Pair, batch: int, rows: int) -> Patches:
    """The patches of maps of a height and width that fill fewest tiles; the widest ones, as neighbours load faster.

    Parameters
    ----------
    pool : Pool
        A window fits into a tile: `window_pixels` <= rows.
    size : (int, int)
        Of the convolution's result.
    batch : int
    rows : int
        Of a tile.
    """
    out_height, out_width = pool.output_size(size)
    best = None
    for windows_w in range(out_width, 0, -1):
        width, across = _span(pool, 1, windows_w), -(-out_width // windows_w)
        for windows_h in range(1, out_height + 1):
            height, down = _span(pool, 0, windows_h), -(-out_height // windows_h)
            if height * width > rows:
                break
            per_tile = rows // (height * width)
            found = Patches(batch * down * across, per_tile, height, width, windows_h, windows_w, down, across)
            if best is None or found.tiles < best.tiles:
                best = found
    assert best is not None
    return best


def patches_in(problem: ConvProblem, rows: int) -> Patches:
    """`patches_of` the maps that a problem pools."""
    assert problem.pool is not None
    return patches_of(problem.pool, problem.conv_size, problem.batch, rows)


def pooling_of(problem: ConvProblem, rows: int) -> tuple[Patches, Window, Norm]:
    """What kernels that pool take by value, for tiles with so many rows."""
    assert problem.pool is not None
    return patches_in(problem, rows), Window.of(problem.pool, problem.conv_size), Norm.of(problem.pool)


@device
def first_of_patch(patches, number):
    """Image of a patch, and row and column of its first window, by the patch's number."""
    rest, across = divided(number, patches.across)
    n, down = divided(rest, patches.down)
    return n, int32(down * patches.windows_h), int32(across * patches.windows_w)


@device
def patch_pixel(g, first, row):
    """`fastconv.cuda.gather.image_pixel` of a tile of patches; `first` is (patches, window, number of the first)."""
    patches, window, first_patch = first
    area = int32(patches.height * patches.width)
    patch, pixel = divided(row, area)
    n, i, j = first_of_patch(patches, int32(first_patch + patch))
    down, across = divided(pixel, patches.width)
    i = int32(i * window.stride_h - window.top + down)
    j = int32(j * window.stride_w - window.left + across)
    there = patch < patches.per_tile and first_patch + patch < patches.total
    return n, i, j, there and 0 <= i < g.out_height and 0 <= j < g.out_width

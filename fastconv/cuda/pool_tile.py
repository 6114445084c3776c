"""Pooling at the end of an implicit GEMM: the tile's rows are patches of a map, which hold whole windows.

Patches of neighbouring windows compute what they share again (nothing for 2 x 2 with stride 2). Half of the tile's
columns at a time goes through shared memory, with bias and activation; threads then reduce windows, four filters at
a time, and only the pooled map is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.elements import activated4, divided
from fastconv.cuda.gemm import PAD, Tile, place_of
from fastconv.cuda.ptx import shared_load4, shared_store4, store4
from fastconv.cuda.store_tile import bias_of
from fastconv.cuda.toolkit import device, int32
from fastconv.cuda.window import reduction4
from fastconv.pooling import Pool
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


def pooled_bytes(tile: Tile) -> int:
    """Shared memory of a block that pools: its slices, or in the end all pixels of half of its filters."""
    return max(tile.shared_bytes, 4 * tile.rows * (tile.columns // 2 + PAD))


@cache
def pooling(tile: Tile, mode: int) -> Any:
    """Device functions for a tile and a mode of `fastconv.cuda.window`.

    ``stash(shared, bias, g, epilogue, sums, thread, first, first_filter, group)`` finishes sums[:, first:first + 4] of
    all threads and puts them, half of the tile's columns beginning at first_filter, into shared memory.
    ``write(shared, out, g, patches, window, norm, thread, first_patch, first_filter, group)`` pools and stores them.
    """
    HALF_ROWS, HALF, PITCH, THREADS = tile.rows // 2, tile.columns // 2, tile.columns // 2 + PAD, tile.threads
    LANES = HALF // 4
    place = place_of(tile)

    @device
    def stash_row(shared, at, epilogue, sums, i, first, biases):
        t0, t1 = sums[i, first] + biases[0], sums[i, first + 1] + biases[1]
        t2, t3 = sums[i, first + 2] + biases[2], sums[i, first + 3] + biases[3]
        shared_store4(shared, at, activated4((t0, t1, t2, t3), epilogue))

    @device
    def stash(shared, bias, g, epilogue, sums, thread, first, first_filter, group):
        x, y = place(thread)
        k, at = int32(first_filter + x * 4), int32(y * 4 * PITCH + x * 4)
        b0, b1 = bias_of(bias, g, group, k), bias_of(bias, g, group, k + 1)
        b2, b3 = bias_of(bias, g, group, k + 2), bias_of(bias, g, group, k + 3)
        biases = (b0, b1, b2, b3)
        # A loop would stay one, with sums in local memory.
        stash_row(shared, at, epilogue, sums, 0, first, biases)
        stash_row(shared, int32(at + PITCH), epilogue, sums, 1, first, biases)
        stash_row(shared, int32(at + 2 * PITCH), epilogue, sums, 2, first, biases)
        stash_row(shared, int32(at + 3 * PITCH), epilogue, sums, 3, first, biases)
        stash_row(shared, int32(at + HALF_ROWS * PITCH), epilogue, sums, 4, first, biases)
        stash_row(shared, int32(at + (HALF_ROWS + 1) * PITCH), epilogue, sums, 5, first, biases)
        stash_row(shared, int32(at + (HALF_ROWS + 2) * PITCH), epilogue, sums, 6, first, biases)
        stash_row(shared, int32(at + (HALF_ROWS + 3) * PITCH), epilogue, sums, 7, first, biases)

    @device
    def values_at(source, row, column):
        """Four filters at a pixel of the map; `source` says where the patch begins in shared memory and in the map."""
        shared, at, top, left, width = source
        return shared_load4(shared, int32(at + ((row - top) * width + column - left) * PITCH))

    reduced = reduction4(mode, "float32", values_at)

    @device
    def store(out, where, k, g, values):
        if g.vectors:
            store4(out, where, values)
        else:
            out[where] = values[0]
            if k + 1 < g.filters:
                out[where + g.out_channel] = values[1]
            if k + 2 < g.filters:
                out[where + 2 * g.out_channel] = values[2]
            if k + 3 < g.filters:
                out[where + 3 * g.out_channel] = values[3]

    @device
    def write(shared, out, g, patches, window, norm, thread, first_patch, first_filter, group):
        of_patch = int32(patches.windows_h * patches.windows_w)
        windows = int32(min(patches.per_tile, patches.total - first_patch) * of_patch)
        for unit in range(thread, windows * LANES, THREADS):
            # Neighbouring threads write neighbours: filters of a window, or windows of a filter.
            number, lane = divided(unit, LANES)
            if g.out_channel != 1:
                lane, number = divided(unit, windows)
            patch, number = divided(number, of_patch)
            n, first_i, first_j = first_of_patch(patches, int32(first_patch + patch))
            down, across = divided(number, patches.windows_w)
            k, i, j = int32(first_filter + lane * 4), int32(first_i + down), int32(first_j + across)
            if k < g.filters and i < window.out_height and j < window.out_width:
                at = int32(patch * patches.height * patches.width * PITCH + lane * 4)
                top, left = first_i * window.stride_h - window.top, first_j * window.stride_w - window.left
                values = reduced((shared, at, top, left, patches.width), i, j, window, norm)
                where = g.out_first + n * g.out_batch + i * g.out_row + j * g.out_column
                store(out, int32(where + (group * g.filters + k) * g.out_channel), k, g, values)

    return stash, write

"""The end of an implicit GEMM: a block's sums get bias and activation and are written, neighbours by neighbours.

Half of the tile at a time goes through shared memory, for a thread's sums lie apart in the result: channels-last, a
thread then writes four filters of a pixel by one store of 16 bytes, else lanes write neighbouring pixels of a filter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.elements import activated, activated4
from fastconv.cuda.gemm import PAD, Tile, place_of
from fastconv.cuda.ptx import shared_load4, shared_store4, store4
from fastconv.cuda.toolkit import device, float32, int32
from fastconv.cuda.walk import pixel_place


@device
def bias_of(bias, g, group, k):
    """The bias of a filter of a group; zero if there is none."""
    return bias[int32(group * g.filters + k)] if g.has_bias and k < g.filters else float32(0)


@cache
def storing(tile: Tile) -> Any:
    """Device functions: ``stash(shared, sums, thread, first)`` puts sums[first:first + 4] of all threads, half of the
    tile, into shared memory; ``write(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group)``
    finishes and stores that half.
    """
    HALF, COLUMNS, PITCH, THREADS = tile.rows // 2, tile.columns, tile.columns + PAD, tile.threads
    LANES, COLUMN_STEP = COLUMNS // 4, max(1, tile.threads // (tile.rows // 2))
    place = place_of(tile)

    @device
    def stash_row(shared, at, sums, i):
        shared_store4(shared, at, (sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]))
        shared_store4(shared, int32(at + COLUMNS // 2), (sums[i, 4], sums[i, 5], sums[i, 6], sums[i, 7]))

    @device
    def stash(shared, sums, thread, first):
        x, y = place(thread)
        at = int32(y * 4 * PITCH + x * 4)
        # A loop would stay one, with sums in local memory.
        stash_row(shared, at, sums, first)
        stash_row(shared, int32(at + PITCH), sums, first + 1)
        stash_row(shared, int32(at + 2 * PITCH), sums, first + 2)
        stash_row(shared, int32(at + 3 * PITCH), sums, first + 3)

    @device
    def write_channels_last(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group):
        lane = int32(thread % LANES * 4)
        k = int32(first_filter + lane)
        b0, b1 = bias_of(bias, g, group, k), bias_of(bias, g, group, k + 1)
        b2, b3 = bias_of(bias, g, group, k + 2), bias_of(bias, g, group, k + 3)
        for row in range(thread // LANES, HALF, THREADS // LANES):
            m = int32(first_pixel + row)
            if m < g.pixels and k < g.filters:
                t0, t1, t2, t3 = shared_load4(shared, int32(row * PITCH + lane))
                t0, t1, t2, t3 = activated4((t0 + b0, t1 + b1, t2 + b2, t3 + b3), epilogue)
                where = int32(begin + pixel_place(g, m) + group * g.filters + k)
                if g.vectors:
                    store4(out, where, (t0, t1, t2, t3))
                else:
                    out[where] = t0
                    if k + 1 < g.filters:
                        out[where + 1] = t1
                    if k + 2 < g.filters:
                        out[where + 2] = t2
                    if k + 3 < g.filters:
                        out[where + 3] = t3

    @device
    def write_planes(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group):
        for row in range(thread % HALF, HALF, THREADS):
            m = int32(first_pixel + row)
            if m < g.pixels:
                where = int32(begin + pixel_place(g, m))
                for column in range(thread // HALF, COLUMNS, COLUMN_STEP):
                    k = int32(first_filter + column)
                    if k < g.filters:
                        value = shared[row * PITCH + column] + bias_of(bias, g, group, k)
                        out[int32(where + (group * g.filters + k) * g.out_channel)] = activated(value, epilogue)

    @device
    def write(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group):
        if g.out_channel == 1:
            write_channels_last(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group)
        else:
            write_planes(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group)

    return stash, write

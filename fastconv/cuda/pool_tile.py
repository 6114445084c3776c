"""Pooling at the end of an implicit GEMM in float32: sums that windows are reduced of (`fastconv.cuda.pool_write`).

Half of the tile's columns at a time goes through shared memory, with bias and activation.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.elements import activated4
from fastconv.cuda.gemm import PAD, Tile, place_of
from fastconv.cuda.pool_write import pooled_writing
from fastconv.cuda.ptx import shared_store4
from fastconv.cuda.store_tile import bias_of
from fastconv.cuda.toolkit import device, int32


def pooled_bytes(tile: Tile) -> int:
    """Shared memory of a block that pools: its slices, or in the end all pixels of half of its filters."""
    return max(tile.shared_bytes, 4 * tile.rows * (tile.columns // 2 + PAD))


@cache
def pooling(tile: Tile, mode: int) -> Any:
    """Device functions for a tile and a mode of `fastconv.cuda.window`.

    ``stash(shared, bias, g, epilogue, sums, thread, first, first_filter, group)`` finishes sums[:, first:first + 4] of
    all threads and puts them, half of the tile's columns beginning at first_filter, into shared memory. The other is
    that of `fastconv.cuda.pool_write.pooled_writing`, which pools and stores them.
    """
    HALF_ROWS, PITCH, place = tile.rows // 2, tile.columns // 2 + PAD, place_of(tile)

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

    return stash, pooled_writing(tile.columns // 2, PITCH, tile.threads, "float32", mode)

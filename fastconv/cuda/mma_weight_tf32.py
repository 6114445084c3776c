"""Fragments of a weight gradient's slices for TF32, which no instruction transposes: plain loads of 16 bytes.

Lane l, with g = l // 4 and m = l % 4, loads filters 4g to 4g + 3 of 32, or channels, of pixels m and m + 4. So they are
not the neighbours that `fastconv.cuda.ptx.mma_tf32` has in mind: filter 4g + e is row g of the first fragment (e = 0,
1) or of the second, in its upper half (e = 0, 2) or in its lower one, and channel 4g + e is column g of fragment e.
That changes only where sums are written. Eight lanes that load at once have two g and four m, whose rows, 8 words
longer than a multiple of 128 bytes, meet all banks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.mma_tile import Multiplication, products
from fastconv.cuda.mma_weight_tile import MmaWeightTile, two_steps
from fastconv.cuda.ptx import shared_load4, store4, to_tf32
from fastconv.cuda.toolkit import device, int32

_BLOCK = 32  # filters, or channels, that the lanes of a load have


@cache
def _loading(tile: MmaWeightTile) -> Any:
    """The device function ``load(shared, left, right, a, b)``: all fragments of a step, rounded."""
    DOWN, ACROSS = tile.warp_rows // _BLOCK, tile.warp_columns // _BLOCK
    LEFT_HALF, RIGHT_HALF = 4 * tile.left_pitch, 4 * tile.right_pitch  # four pixels

    @device
    def load_rows(shared, at, a, first):
        v0, v1, v2, v3 = shared_load4(shared, at)
        a[first], a[first + 1], a[first + 4], a[first + 5] = to_tf32(v0), to_tf32(v1), to_tf32(v2), to_tf32(v3)

    @device
    def load_columns(shared, at, b, first):
        v0, v1, v2, v3 = shared_load4(shared, at)
        b[first], b[first + 2], b[first + 4], b[first + 6] = to_tf32(v0), to_tf32(v1), to_tf32(v2), to_tf32(v3)

    @device
    def load(shared, left, right, a, b):
        for i in range(DOWN):
            load_rows(shared, int32(left + i * _BLOCK), a, i * 8)
            load_rows(shared, int32(left + i * _BLOCK + LEFT_HALF), a, i * 8 + 2)
        for j in range(ACROSS):
            load_columns(shared, int32(right + j * _BLOCK), b, j * 8)
            load_columns(shared, int32(right + j * _BLOCK + RIGHT_HALF), b, j * 8 + 1)

    return load


@cache
def multiplication(tile: MmaWeightTile, dtype: str) -> Multiplication:
    """As `fastconv.cuda.mma_weight_tile.multiplication`."""
    WARP_ROWS, WARP_COLUMNS, RIGHT = tile.warp_rows, tile.warp_columns, tile.left_slice
    LEFT_PITCH, RIGHT_PITCH = tile.left_pitch, tile.right_pitch
    load, add_products = _loading(tile), products(tile, dtype)

    @device
    def add_step(shared, left, right, a, b, sums):
        load(shared, left, right, a, b)
        add_products(a, b, sums)

    @device
    def places(thread, left, right):
        lane, warp = int32(thread % 32), int32(thread // 32)
        row, column = int32(warp // 2 * WARP_ROWS), int32(warp % 2 * WARP_COLUMNS)
        left[0] = int32(lane % 4 * LEFT_PITCH + row + lane // 4 * 4)
        right[0] = int32(RIGHT + lane % 4 * RIGHT_PITCH + column + lane // 4 * 4)

    return Multiplication(places, two_steps(tile, add_step))


@cache
def writing(tile: MmaWeightTile) -> Any:
    """As `fastconv.cuda.mma_weight_tile.writing`; a lane has eight neighbouring columns of 32."""
    WARP_ROWS, WARP_COLUMNS = tile.warp_rows, tile.warp_columns
    DOWN, ACROSS, FRAGMENTS = tile.warp_rows // _BLOCK, tile.warp_columns // _BLOCK, tile.warp_columns // 8

    @device
    def write4(out, sums, at, first, column, g):
        if column < g.columns:  # a multiple of 4, as all strides are
            store4(out, at, (sums[first], sums[first + 4], sums[first + 8], sums[first + 12]))

    @device
    def write_row(out, sums, at, first, column, g):
        for j in range(ACROSS):
            write4(out, sums, int32(at + j * 32), first + j * 16, int32(column + j * 32), g)
            write4(out, sums, int32(at + j * 32 + 4), first + j * 16 + 1, int32(column + j * 32 + 4), g)

    @device
    def write(out, sums, g, thread, group, split, first_filter, first_column):
        lane, warp = int32(thread % 32), int32(thread // 32)
        k = int32(first_filter + warp // 2 * WARP_ROWS + lane // 4 * 4)
        column = int32(first_column + warp % 2 * WARP_COLUMNS + lane % 4 * 8)
        at = int32(split * g.w_split + (group * g.filters + k) * g.w_filter + column)
        for i in range(DOWN):
            for e in range(4):
                if k + i * 32 + e < g.filters:
                    first = (i * 2 + e // 2) * FRAGMENTS * 4 + e % 2 * 2
                    write_row(out, sums, int32(at + (i * 32 + e) * g.w_filter), first, column, g)

    return write

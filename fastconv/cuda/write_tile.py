"""The end of an implicit GEMM on tensor cores: sums get bias and activation and are written, neighbours by neighbours.

A lane's sums lie apart in the result. So they go through shared memory, all of a tile at once, in the type of the
result: channels-last, a thread then writes 16 bytes of a pixel by one store, else lanes write neighbouring pixels of a
filter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.codec import codec
from fastconv.cuda.elements import activated
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.ptx import pack_bf16, pack_f16, shared_load4, store4, store_words
from fastconv.cuda.toolkit import device, float32, int32
from fastconv.cuda.walk import pixel_place

_ROWS = 16  # of a fragment of sums: a lane has two columns of rows l // 4 and l // 4 + 8 of each 8 columns
_MOST_COLUMNS = 64  # of a fragment that is finished in one go


@cache
def finishing(tile: MmaTile, dtype: str) -> Any:
    """The device function ``finish(words, sums, bias, g, epilogue, thread, first_filter, group)``.

    It adds the bias to a thread's sums, applies the activation, and puts them into shared memory, `words` of 4 bytes:
    a row for each pixel of the tile, of `MmaTile.row_words` words.
    """
    PITCH, HALVES, COLUMNS = tile.row_words(dtype), dtype != "float32", min(_MOST_COLUMNS, tile.warp_columns)
    PIECES, PIECES_ACROSS = tile.sums * 32 // (_ROWS * COLUMNS), tile.warp_columns // COLUMNS
    WARPS_ACROSS, WARP_ROWS, WARP_COLUMNS = tile.warps_across, tile.warp_rows, tile.warp_columns
    SUMS, FRAGMENTS = COLUMNS // 2, COLUMNS // 8
    _, _, read, _ = codec(dtype)
    pack = pack_bf16 if dtype == "bfloat16" else pack_f16

    @device
    def bias_of(bias, g, group, k):
        return read(bias, int32(group * g.filters + k)) if k < g.filters else float32(0)

    @device
    def put(words, at, low, high):
        if HALVES:
            words[at] = pack(low, high)
        else:
            words[at], words[at + 1] = low, high

    @device
    def finish_piece(words, sums, bias, g, epilogue, row, column, first_filter, group, piece):
        row = int32(row + piece // PIECES_ACROSS * _ROWS)
        column = int32(column + piece % PIECES_ACROSS * COLUMNS)
        first = piece * SUMS
        if g.has_bias:
            for j in range(FRAGMENTS):
                k = int32(first_filter + column + j * 8)
                b0, b1 = bias_of(bias, g, group, k), bias_of(bias, g, group, int32(k + 1))
                sums[first + j * 4] += b0
                sums[first + j * 4 + 1] += b1
                sums[first + j * 4 + 2] += b0
                sums[first + j * 4 + 3] += b1
        if epilogue.active:
            for t in range(SUMS):
                sums[first + t] = activated(sums[first + t], epilogue)
        at = int32(row * PITCH + (column // 2 if HALVES else column))
        for j in range(FRAGMENTS):
            here = int32(at + (j * 4 if HALVES else j * 8))
            put(words, here, sums[first + j * 4], sums[first + j * 4 + 1])
            put(words, int32(here + 8 * PITCH), sums[first + j * 4 + 2], sums[first + j * 4 + 3])

    @device
    def finish(words, sums, bias, g, epilogue, thread, first_filter, group):
        lane, warp = int32(thread % 32), int32(thread // 32)
        row = int32(warp // WARPS_ACROSS * WARP_ROWS + lane // 4)
        column = int32(warp % WARPS_ACROSS * WARP_COLUMNS + lane % 4 * 2)
        # A loop over pieces would stay one, with sums in local memory.
        finish_piece(words, sums, bias, g, epilogue, row, column, first_filter, group, 0)
        if PIECES > 1:
            finish_piece(words, sums, bias, g, epilogue, row, column, first_filter, group, 1)
        if PIECES > 2:
            finish_piece(words, sums, bias, g, epilogue, row, column, first_filter, group, 2)
            finish_piece(words, sums, bias, g, epilogue, row, column, first_filter, group, 3)

    return finish


@cache
def writing(tile: MmaTile, dtype: str) -> Any:
    """The device function ``write(words, elements, out, begin, g, thread, first_pixel, first_filter, group)``.

    From an element of `out` on, it stores what `finishing` put into shared memory, which `words` and `elements` see by
    4 bytes and by elements: 16 bytes at a time where `WalkGeometry.vectors` says that they are aligned.
    """
    ROWS, COLUMNS, THREADS, PITCH = tile.rows, tile.columns, tile.threads, tile.row_words(dtype)
    HALVES = dtype != "float32"
    WIDTH = 8 if HALVES else 4  # filters in 16 bytes
    LANES, ELEMENTS = COLUMNS // WIDTH, PITCH * WIDTH // 4
    store = store_words if HALVES else store4

    @device
    def write_vectors(words, out, begin, g, thread, first_pixel, first_filter, group):
        lane = int32(thread % LANES)
        k = int32(first_filter + lane * WIDTH)
        if k < g.filters:
            for row in range(thread // LANES, ROWS, THREADS // LANES):
                m = int32(first_pixel + row)
                if m < g.pixels:
                    where = int32(begin + pixel_place(g, m) + group * g.filters + k)
                    store(out, where, shared_load4(words, int32(row * PITCH + lane * 4)))

    @device
    def write_elements(elements, out, begin, g, thread, first_pixel, first_filter, group):
        row = int32(thread % ROWS)
        m = int32(first_pixel + row)
        if m < g.pixels:
            where = int32(begin + pixel_place(g, m))
            for column in range(thread // ROWS, COLUMNS, THREADS // ROWS):
                k = int32(first_filter + column)
                if k < g.filters:
                    out[int32(where + (group * g.filters + k) * g.out_channel)] = elements[row * ELEMENTS + column]

    @device
    def write(words, elements, out, begin, g, thread, first_pixel, first_filter, group):
        if g.vectors:
            write_vectors(words, out, begin, g, thread, first_pixel, first_filter, group)
        else:
            write_elements(elements, out, begin, g, thread, first_pixel, first_filter, group)

    return write

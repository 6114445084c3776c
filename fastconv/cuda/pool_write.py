"""The end of an implicit GEMM that pools: windows are reduced in shared memory, and only the pooled map is written."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.codec import codec
from fastconv.cuda.elements import divided
from fastconv.cuda.patches import first_of_patch
from fastconv.cuda.ptx import from_bf16, from_f16, pack_bf16, pack_f16, shared_load4, store4, store_words
from fastconv.cuda.toolkit import device, int32, uint32
from fastconv.cuda.window import folding4, folding8, vector_reduction


@cache
def _floats(mode: int) -> Any:
    """Four filters in 16 bytes: ``values_of(words)``, how they are reduced, and ``store(out, where, k, g, values)``."""

    @device
    def values_of(words):
        return words

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

    return values_of, folding4(mode, "float32"), store


@cache
def _halves(mode: int, dtype: str) -> Any:
    """Those of eight filters of 16 bits; values are the low halves of the words and the high ones."""
    unpack, pack = (from_bf16, pack_bf16) if dtype == "bfloat16" else (from_f16, pack_f16)
    write = codec(dtype).write

    @device
    def high(word):
        return unpack(word >> uint32(16))

    @device
    def values_of(words):
        w0, w1, w2, w3 = words
        return (unpack(w0), unpack(w1), unpack(w2), unpack(w3)), (high(w0), high(w1), high(w2), high(w3))

    @device
    def store_pair(out, where, k, g, low, high):
        if k < g.filters:
            write(out, int32(where), low)
        if k + 1 < g.filters:
            write(out, int32(where + g.out_channel), high)

    @device
    def store(out, where, k, g, values):
        low, high = values
        if g.vectors:
            words = pack(low[0], high[0]), pack(low[1], high[1]), pack(low[2], high[2]), pack(low[3], high[3])
            store_words(out, where, words)
        else:
            store_pair(out, where, k, g, low[0], high[0])
            store_pair(out, where + 2 * g.out_channel, k + 2, g, low[1], high[1])
            store_pair(out, where + 4 * g.out_channel, k + 4, g, low[2], high[2])
            store_pair(out, where + 6 * g.out_channel, k + 6, g, low[3], high[3])

    return values_of, folding8(mode, "float32"), store


@cache
def pooled_writing(columns: int, pitch: int, threads: int, dtype: str, mode: int) -> Any:
    """The device function ``write(words, out, g, patches, window, norm, thread, first_patch, first_filter, group)``.

    It pools a tile of patches in shared memory and stores the result: 16 bytes at a time where `WalkGeometry.vectors`
    says that they are aligned.

    Parameters
    ----------
    columns : int
        Filters that are in shared memory.
    pitch : int
        Words of 4 bytes from a pixel to the next one.
    threads : int
        Of a block.
    dtype : str
        Of the elements there and of the result.
    mode : int
        See `fastconv.cuda.window`.
    """
    PITCH, THREADS, WIDTH = pitch, threads, 4 if dtype == "float32" else 8
    LANES = columns // WIDTH
    values_of, folding, store = _floats(mode) if dtype == "float32" else _halves(mode, dtype)

    @device
    def values_at(source, row, column):
        """Filters at a pixel of the map; `source` says where the patch begins in shared memory and in the map."""
        words, at, top, left, width = source
        return values_of(shared_load4(words, int32(at + ((row - top) * width + column - left) * PITCH)))

    reduced = vector_reduction(folding, values_at)

    @device
    def write(words, out, g, patches, window, norm, thread, first_patch, first_filter, group):
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
            k, i, j = int32(first_filter + lane * WIDTH), int32(first_i + down), int32(first_j + across)
            if k < g.filters and i < window.out_height and j < window.out_width:
                at = int32(patch * patches.height * patches.width * PITCH + lane * 4)
                top, left = first_i * window.stride_h - window.top, first_j * window.stride_w - window.left
                values = reduced((words, at, top, left, patches.width), i, j, window, norm)
                where = g.out_first + n * g.out_batch + i * g.out_row + j * g.out_column
                store(out, int32(where + (group * g.filters + k) * g.out_channel), k, g, values)

    return write

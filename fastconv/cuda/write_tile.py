"""A block's sums on their way out: from shared memory, with bias and activation, to the result in any type."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.codec import codec
from fastconv.cuda.elements import activated
from fastconv.cuda.ptx import pack_bf16, pack_f16, shared_load4, store4, store_words
from fastconv.cuda.store_tile import pixel_place
from fastconv.cuda.toolkit import device, float32, int32


@cache
def writing(rows: int, columns: int, pitch: int, threads: int, dtype: str) -> Any:
    """The device function ``write(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group)``.

    It finishes and stores `rows` pixels of `columns` sums, float32, `pitch` apart in shared memory. Channels-last, a
    thread writes 16 bytes of a pixel by one store where `WalkGeometry.vectors` says that they are aligned; else lanes
    write neighbouring pixels of a filter.
    """
    ROWS, COLUMNS, PITCH, THREADS = rows, columns, pitch, threads
    WIDTH = 4 if dtype == "float32" else 8  # filters in 16 bytes
    LANES, HALVES = COLUMNS // WIDTH, WIDTH == 8
    _, _, read, write_one = codec(dtype)
    pack = pack_bf16 if dtype == "bfloat16" else pack_f16

    @device
    def bias_of(bias, g, group, k):
        return read(bias, int32(group * g.filters + k)) if g.has_bias and k < g.filters else float32(0)

    @device
    def finished(shared, bias, g, epilogue, group, at, k):
        """Four sums of a pixel, from filter k on."""
        t0, t1, t2, t3 = shared_load4(shared, at)
        t0 = activated(t0 + bias_of(bias, g, group, k), epilogue)
        t1 = activated(t1 + bias_of(bias, g, group, int32(k + 1)), epilogue)
        t2 = activated(t2 + bias_of(bias, g, group, int32(k + 2)), epilogue)
        t3 = activated(t3 + bias_of(bias, g, group, int32(k + 3)), epilogue)
        return t0, t1, t2, t3

    @device
    def write_vectors(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group):
        lane = int32(thread % LANES * WIDTH)
        k = int32(first_filter + lane)
        for row in range(thread // LANES, ROWS, THREADS // LANES):
            m = int32(first_pixel + row)
            if m < g.pixels and k < g.filters:
                at, where = int32(row * PITCH + lane), int32(pixel_place(g, m) + group * g.filters + k)
                t0, t1, t2, t3 = finished(shared, bias, g, epilogue, group, at, k)
                if HALVES:
                    t4, t5, t6, t7 = finished(shared, bias, g, epilogue, group, int32(at + 4), int32(k + 4))
                    store_words(out, where, (pack(t0, t1), pack(t2, t3), pack(t4, t5), pack(t6, t7)))
                else:
                    store4(out, where, (t0, t1, t2, t3))

    @device
    def write_elements(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group):
        row = int32(thread % ROWS)
        m = int32(first_pixel + row)
        if m < g.pixels:
            where = pixel_place(g, m)
            for column in range(thread // ROWS, COLUMNS, THREADS // ROWS):
                k = int32(first_filter + column)
                if k < g.filters:
                    value = activated(shared[row * PITCH + column] + bias_of(bias, g, group, k), epilogue)
                    write_one(out, int32(where + (group * g.filters + k) * g.out_channel), value)

    @device
    def write(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group):
        if g.vectors:
            write_vectors(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group)
        else:
            write_elements(shared, out, bias, g, epilogue, thread, first_pixel, first_filter, group)

    return write

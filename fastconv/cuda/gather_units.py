"""The left matrix of an implicit GEMM on tensor cores: found in a channels-last image, by units of 16 bytes.

As `fastconv.cuda.gather`, with neighbouring channels of a pixel for an element: the `WalkGeometry` counts channels
and steps in units, and a slice has rows of pixels. Terms are ordered by blocks of channels, then by tap, then by
channel: where a block is a slice, the taps of neighbouring pixels, which are the same pixels, follow each other and
are found in the L1 cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.elements import divided
from fastconv.cuda.gather import ELEMENT, INSIDE, image_pixel
from fastconv.cuda.mma_tile import MmaTile, placing
from fastconv.cuda.ptx import copy_async16_cached, kept
from fastconv.cuda.toolkit import device, int32, uint32

_COLUMN_BIT = 16

# Of a thread's term: channel, row and column of its tap, and the end of its block of channels.
CHANNEL, ROW, COLUMN, BLOCK_END = range(4)
TERM_FIELDS = 4


def own_pixels(tile: MmaTile) -> int:
    """Pixels of which a thread copies a unit of every slice."""
    return tile.rows * tile.units // tile.threads


def block_units(channels: int, units: int) -> int:
    """Units of a block of terms, of a group's: those of a slice's row, or all where they fill no whole rows."""
    return units if channels % units == 0 else channels


@cache
def gathering(tile: MmaTile, width: int, pixel_of: Any = image_pixel) -> Any:
    """Three device functions as those of `fastconv.cuda.gather.gathering`, for units of `width` elements.

    ``start(g, thread, first, group, first_slice, pixels, term, rows, columns)`` takes the slice that is copied first.
    """
    UNITS, OWN, STEP, WIDTH = tile.units, own_pixels(tile), tile.threads // tile.units, width
    PITCH, place = STEP * UNITS * WIDTH, placing(tile.units)

    @device
    def block_of(g):
        return int32(UNITS) if g.channels % UNITS == 0 else int32(g.channels)

    @device
    def start_term(g, first_slice, unit, term):
        block, number, passed = block_of(g), unit, int32(0)
        if first_slice > 0:
            blocks, number = divided(int32(first_slice * UNITS + unit), int32(block * g.taps_h * g.taps_w))
            passed = int32(blocks * block)
            if passed >= g.channels:  # behind all terms
                number, passed = int32(block * g.taps_h * g.taps_w), int32(g.channels - block)
        tap, channel = divided(number, block)
        row, term[COLUMN] = divided(tap, g.taps_w)
        term[ROW], term[CHANNEL], term[BLOCK_END] = min(row, g.taps_h), int32(passed + channel), int32(passed + block)

    @device
    def start(g, thread, first, group, first_slice, pixels, term, rows, columns):
        pixel, unit = int32(thread // UNITS), int32(thread % UNITS)
        for p in range(OWN):
            n, i, j, there = pixel_of(g, first, int32(pixel + p * STEP))
            rows[p], columns[p] = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            unit_of_tap = n * g.x_batch + group * g.channels * g.x_channel + rows[p] * g.x_row + columns[p] * g.x_column
            pixels[p, ELEMENT], pixels[p, INSIDE] = kept(int32(unit_of_tap)), int32(0)
            if not there:
                rows[p] = int32(-(1 << 30))  # no row of taps is inside
        for r in range(g.taps_h):
            for p in range(OWN):
                row = int32(rows[p] + r * g.dilation_h)
                pixels[p, INSIDE] |= int32(1 << r) if uint32(row) < uint32(g.in_height) else int32(0)
        for s in range(g.taps_w):
            for p in range(OWN):
                column = int32(columns[p] + s * g.dilation_w)
                pixels[p, INSIDE] |= int32(1 << (_COLUMN_BIT + s)) if uint32(column) < uint32(g.in_width) else int32(0)
        start_term(g, first_slice, unit, term)
        return int32(place(pixel, unit) * WIDTH)

    @device
    def copy(shared, at, x, g, pixels, term):
        row, column = term[ROW], term[COLUMN]
        tap = int32(row * g.tap_row + column * g.tap_column + term[CHANNEL] * g.x_channel)
        tap += g.tail if int32(column + 1) == g.taps_w else int32(0)
        bits = int32((int32(1) << row) | (int32(1 << _COLUMN_BIT) << column))
        for p in range(OWN):
            inside = int32(pixels[p, INSIDE] & bits) == bits
            copy_async16_cached(shared, int32(at + p * PITCH), x, int32(pixels[p, ELEMENT] + tap) * WIDTH, inside)

    @device
    def advance(g, term):
        block = block_of(g)
        term[CHANNEL] += int32(UNITS)
        while term[CHANNEL] >= term[BLOCK_END]:
            term[CHANNEL] -= block
            term[COLUMN] += int32(1)
            if term[COLUMN] == g.taps_w:
                term[COLUMN] = int32(0)
                if term[ROW] < g.taps_h:  # behind the last row nothing is inside
                    term[ROW] += int32(1)
                if term[ROW] == g.taps_h and term[BLOCK_END] < g.channels:
                    term[ROW] = int32(0)
                    term[CHANNEL] += block
                    term[BLOCK_END] += block

    return start, copy, advance

"""The left matrix of an implicit GEMM: found in the image, slice by slice, and copied to shared memory.

A row of the matrix is an output pixel, a term is a channel at a tap; terms are ordered by tap, then by channel. Each
thread copies the same few pixels and, in every slice, the terms DEPTH further on, so where they lie takes a few
additions and no division.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.cuda.elements import divided
from fastconv.cuda.gemm import DEPTH, PAD, Tile
from fastconv.cuda.ptx import copy_async4, kept
from fastconv.cuda.toolkit import device, int32, uint32
from fastconv.cuda.walk import pixel_at

MOST_TAPS = 15  # along an axis: bits of a pixel say which of them are inside of the image
_COLUMN_BIT = 16

# Of a pixel: the element that its first tap reads, and those bits. Of a term: channel, and row and column of its tap.
ELEMENT, INSIDE = 0, 1
CHANNEL, ROW, COLUMN = 0, 1, 2


@cache
def own_pixels(tile: Tile, channels_last: bool) -> int:
    """Pixels that a thread copies: it copies the same terms of each."""
    copies = tile.rows * DEPTH // tile.threads
    return copies if channels_last else max(1, tile.rows // tile.threads)


@cache
def own_terms(tile: Tile, channels_last: bool) -> int:
    """Terms that a thread copies of a slice."""
    return tile.rows * DEPTH // tile.threads // own_pixels(tile, channels_last)


@device
def image_pixel(g, first, row):
    """Image, row and column of the pixel of a tile's row, and whether it is there; `first` is that of the tile."""
    m = int32(first + row)
    n, i, j = pixel_at(g, m)
    return n, i, j, m < g.pixels


@cache
def gathering(tile: Tile, channels_last: bool, pixel_of: Any = image_pixel) -> Any:
    """Three device functions for a tile and a memory format, and where its rows are, as `image_pixel` says.

    ``start(g, thread, first, group, first_slice, pixels, terms, rows, columns)`` begins with a slice, and gives the
    first place that a thread writes, ``copy(shared, at, x, g, pixels, terms)`` copies to there and on,
    ``advance(g, terms)`` goes on to the next slice.

    `pixels`, `terms`, and `rows` and `columns`, which only `start` needs, are local int32 arrays (`own_pixels`, 2),
    (`own_terms`, 3) and (`own_pixels`,). Neighbouring threads copy neighbours in memory: the channels of a pixel, or
    pixels of a channel.
    """
    OWN_PIXELS, OWN_TERMS = own_pixels(tile, channels_last), own_terms(tile, channels_last)
    PIXEL_STEP, TERM_STEP, PITCH = tile.rows // OWN_PIXELS, DEPTH // OWN_TERMS, tile.rows + PAD
    CHANNELS_LAST = channels_last

    @device
    def own(thread):
        """First pixel and first term of a thread."""
        if CHANNELS_LAST:
            return int32(thread // DEPTH), int32(thread % DEPTH)
        return int32(thread % PIXEL_STEP), int32(thread // PIXEL_STEP)

    @device
    def start(g, thread, first, group, first_slice, pixels, terms, rows, columns):
        pixel, term = own(thread)
        for p in range(OWN_PIXELS):
            n, i, j, there = pixel_of(g, first, int32(pixel + p * PIXEL_STEP))
            rows[p], columns[p] = int32(i * g.stride_h - g.top), int32(j * g.stride_w - g.left)
            group_first = group * g.channels * g.x_channel
            element = n * g.x_batch + group_first + rows[p] * g.x_row + columns[p] * g.x_column
            pixels[p, ELEMENT] = kept(int32(element))
            pixels[p, INSIDE] = int32(0)
            if not there:
                rows[p] = int32(-(1 << 30))  # no row of taps is inside
        for r in range(g.taps_h):  # pixels in the inner loop, which is unrolled, so that they stay in registers
            for p in range(OWN_PIXELS):
                row = int32(rows[p] + r * g.dilation_h)
                pixels[p, INSIDE] |= int32(1 << r) if uint32(row) < uint32(g.in_height) else int32(0)
        for s in range(g.taps_w):
            for p in range(OWN_PIXELS):
                column = int32(columns[p] + s * g.dilation_w)
                pixels[p, INSIDE] |= int32(1 << (_COLUMN_BIT + s)) if uint32(column) < uint32(g.in_width) else int32(0)
        for t in range(OWN_TERMS):
            c = int32(first_slice * DEPTH + term + t * TERM_STEP)
            tap, terms[t, CHANNEL] = divided(c, g.channels)
            terms[t, ROW], terms[t, COLUMN] = divided(tap, g.taps_w)
        return int32(term * PITCH + pixel)

    @device
    def copy(shared, at, x, g, pixels, terms):
        for t in range(OWN_TERMS):
            row, column = terms[t, ROW], terms[t, COLUMN]
            tap = int32(row * g.tap_row + column * g.tap_column + terms[t, CHANNEL] * g.x_channel)
            bits = int32((int32(1) << row) | (int32(1 << _COLUMN_BIT) << column))  # behind the last row: never inside
            for p in range(OWN_PIXELS):
                place = int32(at + (t * TERM_STEP * PITCH + p * PIXEL_STEP))
                copy_async4(shared, place, x, int32(pixels[p, ELEMENT] + tap), int32(pixels[p, INSIDE] & bits) == bits)

    @device
    def advance(g, terms):
        for t in range(OWN_TERMS):
            terms[t, CHANNEL] += int32(DEPTH)
            while terms[t, CHANNEL] >= g.channels:
                terms[t, CHANNEL] -= g.channels
                terms[t, COLUMN] += int32(1)
                if terms[t, COLUMN] == g.taps_w:
                    terms[t, COLUMN] = int32(0)
                    terms[t, ROW] += int32(1)

    return start, copy, advance

"""How the sums of an implicit GEMM walk over images, as numbers that its kernels take by value."""

from __future__ import annotations

from typing import NamedTuple

from fastconv.cuda.toolkit import device, int32, uint64

_BITS = 30  # of what is divided: arrays have less than 2**30 elements


class Divisor(NamedTuple):
    """Division by a number that a launch knows, as a multiplication: Granlund and Montgomery, "Division by Invariant
    Integers using Multiplication", 1994. Exact for dividends below 2**30.
    """

    factor: int
    shift: int

    @classmethod
    def of(cls, number: int) -> Divisor:
        """That of a number from 1 to 2**30."""
        bits = (number - 1).bit_length()
        return cls((1 << _BITS + bits) // number + 1, _BITS + bits)


@device
def quotient(number, factor, shift):
    """A number divided by that of a `Divisor`."""
    return int32((uint64(number) * uint64(factor)) >> uint64(shift))


class WalkGeometry(NamedTuple):
    """How sums walk over images, in elements: pixel (i, j) and tap (r, s) read (i*stride_h - top + r*dilation_h, ...).

    `tap_row` and `tap_column` are a tap's steps in memory.
    `pixels` counts those of all images; channels and filters are those of a group. Results go to ``out_first +
    n*out_batch + i*out_row + j*out_column + filter*out_channel``. A block of threads has one of `filter_tiles` tiles
    of filters, next to each other, for the same pixels. What follows `vectors` follows from the rest: `out_pitch` is
    the step from pixel to pixel if all are evenly apart, else 0, then come divisors. The last tap of a row reads `tail`
    further on (`fastconv.cuda.units`). Of the slices of all terms, a block multiplies a `share`.
    """

    pixels: int
    groups: int
    channels: int
    filters: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    taps_h: int
    taps_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    tap_row: int
    tap_column: int
    x_batch: int
    x_channel: int
    x_row: int
    x_column: int
    out_first: int
    out_batch: int
    out_channel: int
    out_row: int
    out_column: int
    padded_filters: int
    filter_tiles: int
    slices: int
    has_bias: int
    vectors: int
    out_pitch: int
    width_factor: int
    width_shift: int
    height_factor: int
    height_shift: int
    tiles_factor: int
    tiles_shift: int
    tail: int
    share: int

    @classmethod
    def of(cls, *numbers: int, tail: int = 0, share: int | None = None) -> WalkGeometry:
        """From all fields up to `vectors`; the share is all slices if not given."""
        missing: tuple[int, ...] = (0,) * (len(cls._fields) - len(numbers))
        g = cls(*(numbers + missing))
        even = g.out_row == g.out_width * g.out_column and g.out_batch == g.out_height * g.out_row
        divisors = (Divisor.of(number) for number in (g.out_width, g.out_height, g.filter_tiles))
        rest = tuple(number for divisor in divisors for number in divisor)
        return cls(*(*numbers, g.out_column if even else 0, *rest, tail, g.slices if share is None else share))


@device
def tile_of_block(g, block):
    """The tile of pixels and the tile of filters of a block: those that run together read the same pixels."""
    pixel_tile = quotient(block, g.tiles_factor, g.tiles_shift)
    return pixel_tile, int32(block - pixel_tile * g.filter_tiles)


@device
def pixel_at(g, m):
    """Image, row and column of a pixel of the result, from its number among those of all images."""
    rest = quotient(m, g.width_factor, g.width_shift)
    n = quotient(rest, g.height_factor, g.height_shift)
    return n, int32(rest - n * g.out_height), int32(m - rest * g.out_width)


@device
def pixel_place(g, m):
    """Where a pixel's results begin, from its number among those of all images."""
    if g.out_pitch:
        return int32(g.out_first + m * g.out_pitch)
    n, i, j = pixel_at(g, m)
    return int32(g.out_first + n * g.out_batch + i * g.out_row + j * g.out_column)

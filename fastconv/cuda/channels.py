"""How kernels go over the pixels of each channel of images (N, C, H, W), in any memory format.

A block takes a *piece*: some neighbouring channels, its lanes, and a range of their pixels, counted over all images.
Channels-last images have many lanes, so that neighbouring threads read neighbouring channels; others have one, so
that they read neighbouring pixels. Pieces depend on shape and strides alone, and sums over pieces are taken in a
fixed order, so results are the same in every run and on every GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from fastconv.cuda.toolkit import device

THREADS = 128
_STEPS = 32  # pixels of a thread: they pay for finding the first one, and for adding up the threads
_MOST_LANES = THREADS // 4  # a warp on a GPU
_MERGED_LANES = 4  # float64 numbers of a sector of memory, the least that is read of it


class Pieces(NamedTuple):
    """Sizes of images, and how they are cut; `next_*` is what lies between a thread's pixels, in each axis."""

    channels: int
    height: int
    width: int
    pixels: int  # of a channel, in all images
    lanes: int
    rows: int  # pixels of each lane at a time: one for each thread
    tiles: int  # of so many channels
    per_tile: int  # pieces
    length: int  # pixels of a piece; the last one may be shorter
    next_image: int
    next_row: int
    next_column: int

    @classmethod
    @lru_cache(maxsize=512)
    def of(cls, shape: tuple[int, ...], strides: tuple[int, ...]) -> Pieces:
        """The pieces of an array."""
        batch, channels, height, width = shape
        nearest = min((step for size, step in zip(shape, strides, strict=True) if size > 1), default=0)
        lanes = min(_MOST_LANES, _power_of_two(channels)) if channels > 1 and strides[1] == nearest else 1
        pixels, rows = batch * height * width, THREADS // lanes
        length = rows * _STEPS
        steps = (rows // max(1, width * height), rows // max(1, width) % max(1, height), rows % max(1, width))
        return cls(
            channels, height, width, pixels, lanes, rows, -(-channels // lanes), -(-pixels // length), length, *steps
        )  # fmt: skip

    @property
    def blocks(self) -> int:
        """With a piece each."""
        return self.tiles * self.per_tile

    @property
    def merging(self) -> Pieces:
        """The same with few lanes, for blocks that merge the pieces of some channels."""
        lanes = min(_MERGED_LANES, _power_of_two(self.channels))
        return self._replace(lanes=lanes, rows=THREADS // lanes, tiles=-(-self.channels // lanes))


def _power_of_two(least: int) -> int:
    return 1 << math.ceil(math.log2(max(1, least)))


@device
def piece_of_thread(thread, block, g):
    """Of a thread: its channel, its piece, its first pixel and one behind its last; no pixels if no such channel."""
    channel, piece = block % g.tiles * g.lanes + thread % g.lanes, block // g.tiles
    first = piece * g.length + thread // g.lanes
    last = min((piece + 1) * g.length, g.pixels) if channel < g.channels else 0
    return channel, piece, first, last


@device
def place(pixel, g):
    """Image, row and column of a pixel."""
    return pixel // (g.width * g.height), pixel // g.width % g.height, pixel % g.width


@device
def next_place(n, i, j, g):
    """That of the thread's next pixel; no division."""
    n, i, j = n + g.next_image, i + g.next_row, j + g.next_column
    if j >= g.width:
        i, j = i + 1, j - g.width
    if i >= g.height:
        n, i = n + 1, i - g.height
    return n, i, j


@device
def pixels_of_piece(piece, g):
    """How many pixels a piece has."""
    return min(g.length, g.pixels - piece * g.length)

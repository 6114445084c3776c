"""The register tile of a product of matrices in float32: 8 x 8 sums for each thread, slices in shared memory.

A block multiplies a slice of ROWS x DEPTH with one of DEPTH x COLUMNS. In shared memory both lie by terms: all rows,
then all columns, of one term are neighbours. A thread's sums are of two times four neighbouring rows and columns half
a tile apart, so that the lanes of a warp read different banks, and all of it with loads of 16 bytes. This is the
scheme of CUTLASS's SIMT kernels (https://github.com/NVIDIA/cutlass, media/docs/efficient_gemm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.cuda.ptx import shared_load4
from fastconv.cuda.toolkit import device, int32

DEPTH = 8  # terms of a slice
PAD = 4  # elements after the rows of a term: the 4-byte writes of a warp, four rows of eight terms, meet all 32 banks
STAGES = 4  # slices in shared memory: one is multiplied while three arrive


@dataclass(frozen=True)
class Tile:
    """Sizes of a block's tile.

    Parameters
    ----------
    rows, columns : int
        Multiples of 16, with 32 to 256 threads.
    right_pad : int, default 0
        Elements after the columns of a term, `PAD` where lanes write different terms.
    """

    rows: int
    columns: int
    right_pad: int = 0

    @property
    def threads(self) -> int:
        """Of a block: each has 64 sums."""
        return self.rows * self.columns // 64

    @property
    def depth(self) -> int:
        """Terms of a slice."""
        return DEPTH

    @property
    def left_pitch(self) -> int:
        """Elements from the rows of a term to those of the next one."""
        return self.rows + PAD

    @property
    def right_pitch(self) -> int:
        """Elements from the columns of a term to those of the next one."""
        return self.columns + self.right_pad

    @property
    def left_slice(self) -> int:
        """Elements of a slice of the left matrix in shared memory."""
        return DEPTH * self.left_pitch

    @property
    def slice(self) -> int:
        """Elements of a slice of both."""
        return self.left_slice + DEPTH * self.right_pitch

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: its slices, or in the end half of its sums."""
        return 4 * max(STAGES * self.slice, self.rows // 2 * (self.columns + PAD))

    @property
    def lanes(self) -> tuple[int, int]:
        """Threads of a warp along columns and along rows."""
        across = min(8, self.columns // 8)
        return across, 32 // across


@cache
def place_of(tile: Tile) -> Any:
    """The device function ``place(thread) -> x, y``: which sums a thread has, by columns and by rows."""
    ACROSS, DOWN = tile.lanes
    WARPS_ACROSS = tile.columns // 8 // ACROSS

    @device
    def place(thread):
        lane, warp = int32(thread % 32), int32(thread // 32)
        x = int32(lane % ACROSS + warp % WARPS_ACROSS * ACROSS)
        return x, int32(lane // ACROSS + warp // WARPS_ACROSS * DOWN)

    return place


@cache
def multiplication(tile: Tile) -> Any:
    """The device function ``multiply(shared, at, x, y, sums)``: add the product of the slices at an element."""
    PITCH, HALF_ROWS, HALF_COLUMNS = tile.left_pitch, tile.rows // 2, tile.columns // 2
    RIGHT, RIGHT_PITCH = tile.left_slice, tile.right_pitch

    @device
    def add_term(shared, left, right, a, b, sums):
        a[0], a[1], a[2], a[3] = shared_load4(shared, left)
        a[4], a[5], a[6], a[7] = shared_load4(shared, int32(left + HALF_ROWS))
        b[0], b[1], b[2], b[3] = shared_load4(shared, right)
        b[4], b[5], b[6], b[7] = shared_load4(shared, int32(right + HALF_COLUMNS))
        for i in range(8):
            for j in range(8):
                sums[i, j] += a[i] * b[j]

    @device
    def multiply(shared, at, x, y, a, b, sums):
        left, right = int32(at + y * 4), int32(at + RIGHT + x * 4)
        # A loop over terms would stay one, with sums in local memory.
        add_term(shared, left, right, a, b, sums)
        add_term(shared, int32(left + PITCH), int32(right + RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 2 * PITCH), int32(right + 2 * RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 3 * PITCH), int32(right + 3 * RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 4 * PITCH), int32(right + 4 * RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 5 * PITCH), int32(right + 5 * RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 6 * PITCH), int32(right + 6 * RIGHT_PITCH), a, b, sums)
        add_term(shared, int32(left + 7 * PITCH), int32(right + 7 * RIGHT_PITCH), a, b, sums)

    return multiply

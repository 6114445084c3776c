"""The tile of a weight gradient on tensor cores: fragments of slices that lie by pixels, and sums that are written.

A row of a slice has the filters of a pixel, or the channels that taps read there, as both images have them: neighbours
in memory. ldmatrix transposes elements of 16 bits on the way to registers; for float32, fragments are those of
`fastconv.cuda.mma_weight_tf32`. Rows of 16-bit elements are 16 bytes longer than a multiple of 128, so that the eight
rows that ldmatrix reads at once meet all banks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.cuda.mma_tile import STAGES, MmaTile, Multiplication, step
from fastconv.cuda.ptx import load_matrices_transposed
from fastconv.cuda.toolkit import device, int32
from fastconv.problem import ITEMSIZE

_PAD = 8  # elements after a row


@dataclass(frozen=True)
class MmaWeightTile(MmaTile):
    """Sizes of a block's tile: filters, and channels at taps; each 64 or 128.

    Parameters
    ----------
    depth : int
        Pixels of a slice, two steps of an mma instruction: 32, or 16 of float32.
    """

    depth: int

    @property
    def left_pitch(self) -> int:
        """Elements from the filters of a pixel to those of the next one."""
        return self.rows + _PAD

    @property
    def right_pitch(self) -> int:
        """Elements from the channels of a pixel to those of the next one."""
        return self.columns + _PAD

    @property
    def left_slice(self) -> int:
        """Elements of a slice of the left matrix in shared memory."""
        return self.depth * self.left_pitch

    @property
    def slice(self) -> int:
        """Elements of a slice of both."""
        return self.left_slice + self.depth * self.right_pitch

    def shared_bytes(self, dtype: str) -> int:
        """Shared memory of a block: its slices."""
        return ITEMSIZE[dtype] * STAGES * self.slice


@cache
def two_steps(tile: MmaWeightTile, add_step: Any) -> Any:
    """The device function `multiply` of a `Multiplication`, from one that adds the products of a step."""
    LEFT_STEP, RIGHT_STEP = tile.depth // 2 * tile.left_pitch, tile.depth // 2 * tile.right_pitch

    @device
    def multiply(shared, at, left, right, a, b, sums):
        x, y = int32(at + left[0]), int32(at + right[0])
        # A loop over steps would stay one, with sums in local memory.
        add_step(shared, x, y, a, b, sums)
        add_step(shared, int32(x + LEFT_STEP), int32(y + RIGHT_STEP), a, b, sums)

    return multiply


@cache
def multiplication(tile: MmaWeightTile, dtype: str) -> Multiplication:
    """That of a tile; `left` and `right` have one place each, that of the first step."""
    WARP_ROWS, WARP_COLUMNS, RIGHT = tile.warp_rows, tile.warp_columns, tile.left_slice
    LEFT_PITCH, RIGHT_PITCH = tile.left_pitch, tile.right_pitch

    @device
    def places(thread, left, right):
        lane, warp = int32(thread % 32), int32(thread // 32)
        row, column = int32(warp // 2 * WARP_ROWS), int32(warp % 2 * WARP_COLUMNS)
        left[0] = int32((lane % 8 + lane // 16 * 8) * LEFT_PITCH + row + lane // 8 % 2 * 8)
        right[0] = int32(RIGHT + lane % 16 * RIGHT_PITCH + column + lane // 16 * 8)

    return Multiplication(places, two_steps(tile, step(tile, dtype, load_matrices_transposed, 16)))


@cache
def writing(tile: MmaWeightTile) -> Any:
    """The device function ``write(out, sums, g, thread, group, split, first_filter, first_column)``.

    Four lanes have eight neighbouring columns of a filter, 32 bytes. Where the sums lie, columns are neighbours.
    """
    WARP_ROWS, WARP_COLUMNS = tile.warp_rows, tile.warp_columns
    DOWN, FRAGMENTS = tile.warp_rows // 16, tile.warp_columns // 8

    @device
    def write_row(out, sums, at, first, column, g):
        for j in range(FRAGMENTS):
            if column + j * 8 < g.columns:  # an even number
                out[int32(at + j * 8)] = sums[first + j * 4]
                out[int32(at + j * 8 + 1)] = sums[first + j * 4 + 1]

    @device
    def write(out, sums, g, thread, group, split, first_filter, first_column):
        lane, warp = int32(thread % 32), int32(thread // 32)
        k = int32(first_filter + warp // 2 * WARP_ROWS + lane // 4)
        column = int32(first_column + warp % 2 * WARP_COLUMNS + lane % 4 * 2)
        at = int32(split * g.w_split + (group * g.filters + k) * g.w_filter + column)
        for i in range(DOWN):
            if k + i * 16 < g.filters:
                write_row(out, sums, int32(at + i * 16 * g.w_filter), i * FRAGMENTS * 4, column, g)
            if k + i * 16 + 8 < g.filters:
                write_row(out, sums, int32(at + (i * 16 + 8) * g.w_filter), i * FRAGMENTS * 4 + 2, column, g)

    return write

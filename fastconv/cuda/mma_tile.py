"""The tile of a product of matrices on tensor cores: warps with fragments of it, slices in shared memory.

A row of a slice, of a pixel's terms or of a filter's, is 64 bytes: four units of 16 bytes, two steps of an mma
instruction, whatever the type of the elements; those of wgmma's slices are twice as long. Units lie permuted, so that
eight rows that an instruction reads at once, and those that a warp's copies write, meet all banks. The scheme is that
of CUTLASS for Ampere (https://github.com/NVIDIA/cutlass, media/docs/efficient_gemm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.ptx import load_matrices, mma_bf16, mma_f16, mma_tf32, to_tf32
from fastconv.cuda.toolkit import device, int32

STAGES = 4  # slices in shared memory: one is multiplied while three arrive
PAD = 4  # words after a row of results in shared memory: eight rows meet all banks
_MMA = {"float32": mma_tf32, "bfloat16": mma_bf16, "float16": mma_f16}


@dataclass(frozen=True)
class MmaTile:
    """Sizes of a block's tile.

    Parameters
    ----------
    rows, columns : int
        Pixels and filters, 64 or 128. Two warps lie across; each has half of the columns.
    """

    rows: int
    columns: int

    @property
    def units(self) -> int:
        """Of 16 bytes in a row of a slice."""
        return 4

    @property
    def bulk_copies(self) -> bool:
        """Whether weights come a slice at a time, packed as they lie in shared memory."""
        return False

    @property
    def warps_across(self) -> int:
        """Warps that have the same rows."""
        return 2

    @property
    def warp_rows(self) -> int:
        """Rows of a warp's part."""
        return min(64, self.rows // 2)

    @property
    def warp_columns(self) -> int:
        """Columns of a warp's part."""
        return self.columns // 2

    @property
    def threads(self) -> int:
        """Of a block."""
        return 64 * self.rows // self.warp_rows

    @property
    def sums(self) -> int:
        """Of a thread."""
        return self.rows * self.columns // self.threads

    def row_words(self, dtype: str) -> int:
        """Words of 4 bytes from a pixel's results to the next one's in shared memory, in the end."""
        return self.columns // (1 if dtype == "float32" else 2) + PAD

    def shared_bytes(self, dtype: str) -> int:
        """Shared memory of a block: its slices, or in the end its results."""
        return max(STAGES * 16 * self.units * (self.rows + self.columns), 4 * self.rows * self.row_words(dtype))


class Multiplication(NamedTuple):
    """Device functions: ``places(thread, left, right)`` fills in where in a slice a lane's rows are, for both steps;
    ``multiply(shared, at, left, right, a, b, sums)`` adds the product of the slices at an element.
    """

    places: Any
    multiply: Any


@cache
def placing(units: int) -> Any:
    """The device function ``place(row, unit)``: where a unit of a row of so many, 4 or 8, is, in units."""
    UNITS, ROWS = units, 8 // units  # that have the same order

    @device
    def place(row, unit):
        return int32(row * UNITS + (unit ^ (row // ROWS % UNITS)))

    return place


@cache
def products(tile: MmaTile, dtype: str) -> Any:
    """The device function ``add_products(a, b, sums)``: those of all fragments of a step."""
    DOWN, ACROSS, mma = tile.warp_rows // 16, tile.warp_columns // 16, _MMA[dtype]

    @device
    def add_products(a, b, sums):
        for i in range(DOWN):
            for j in range(ACROSS):
                mma(sums, (i * ACROSS + j) * 8, a, i * 4, b, j * 4)
                mma(sums, (i * ACROSS + j) * 8 + 4, a, i * 4, b, j * 4 + 2)

    return add_products


@cache
def step(tile: MmaTile, dtype: str, load: Any, block: int) -> Any:
    """The device function ``add_step(shared, left, right, a, b, sums)``: loads all fragments of a step, and multiplies.

    `load` is `load_matrices`, or for slices that lie by terms `load_matrices_transposed`; 16 rows or columns further
    on, `block` elements further on in shared memory, is the next fragment.
    """
    DOWN, ACROSS, BLOCK, ROUNDS = tile.warp_rows // 16, tile.warp_columns // 16, block, dtype == "float32"
    add_products = products(tile, dtype)

    @device
    def add_step(shared, left, right, a, b, sums):
        for i in range(DOWN):
            load(a, i * 4, shared, int32(left + i * BLOCK))
        for j in range(ACROSS):
            load(b, j * 4, shared, int32(right + j * BLOCK))
        if ROUNDS:
            for i in range(DOWN * 4):
                a[i] = to_tf32(a[i])
        add_products(a, b, sums)

    return add_step


@cache
def multiplication(tile: MmaTile, dtype: str, width: int) -> Multiplication:
    """That of a tile, for elements of a dtype, `width` of them in a unit; float32 is rounded to TF32."""
    WARP_ROWS, WARP_COLUMNS, WIDTH, RIGHT = tile.warp_rows, tile.warp_columns, width, tile.rows
    UNITS, place = tile.units, placing(tile.units)
    add_step = step(tile, dtype, load_matrices, 16 * UNITS * WIDTH)

    @device
    def places(thread, left, right):
        lane, warp = int32(thread % 32), int32(thread // 32)
        row = int32(warp // 2 * WARP_ROWS + lane % 16)
        column = int32(warp % 2 * WARP_COLUMNS + lane % 8 + lane // 16 * 8)
        for step in range(2):
            left[step] = int32(place(row, int32(2 * step + lane // 16)) * WIDTH)
            right[step] = int32((RIGHT * UNITS + place(column, int32(2 * step + lane // 8 % 2))) * WIDTH)

    @device
    def multiply(shared, at, left, right, a, b, sums):
        # A loop over steps would stay one, with sums in local memory.
        add_step(shared, int32(at + left[0]), int32(at + right[0]), a, b, sums)
        add_step(shared, int32(at + left[1]), int32(at + right[1]), a, b, sums)

    return Multiplication(places, multiply)

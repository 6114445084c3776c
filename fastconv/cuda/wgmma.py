"""Implicit GEMM in float16 and bfloat16 on the tensor cores of Hopper GPUs, compute capability 9.0.

As `fastconv.cuda.mma`, with the same slices in shared memory, of 64 bytes a row, whose permuted units are the "64-byte
swizzle" of wgmma instructions. These read both matrices from shared memory, two slices by each group of four, while
the warps copy what comes next; a warpgroup has 64 pixels of the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda import mma
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import Strides
from fastconv.cuda.gather import WalkGeometry
from fastconv.cuda.gather_units import gathering, own_pixels
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.mma_tile import PAD, STAGES, UNITS, MmaTile, unit_place
from fastconv.cuda.ptx import commit, copy_async16, wait
from fastconv.cuda.ptx_hopper import (
    descriptor,
    fence_async,
    wgmma_bf16,
    wgmma_commit,
    wgmma_f16,
    wgmma_fence,
    wgmma_finish,
    wgmma_wait,
)  # fmt: skip
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer, types
from fastconv.cuda.write_tile import writing
from fastconv.problem import ConvProblem

TILES = [(128, 256), (128, 128), (128, 64)]
CAPABILITY = (9, 0)
_WIDTH = 8  # elements of a unit
_AHEAD = STAGES - 2  # one stage is multiplied, and the one before it may still be
_ARRIVING = _AHEAD - 1
_UNMEASURED = 1.05  # not the default before it has run on a GPU and been measured


@dataclass(frozen=True)
class WgmmaTile(MmaTile):
    """Sizes of a block's tile: 128 pixels, and 64, 128 or 256 filters."""

    @property
    def threads(self) -> int:
        """Of a block: a warpgroup for 64 pixels."""
        return 2 * self.rows

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: its stages of two slices, or in the end half of its sums."""
        return max(2 * STAGES * 16 * UNITS * (self.rows + self.columns), 4 * self.rows // 2 * (self.columns + PAD))


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype not in ("float16", "bfloat16"):
        return f"it computes float16 and bfloat16, not {problem.dtype}"
    if problem.memory_format != "channels_last":
        return "it takes channels-last arrays only"
    if problem.weight_shape[1] % _WIDTH or problem.out_channels // problem.groups % _WIDTH:
        return f"a group's channels or filters are no multiple of {_WIDTH}"
    return mma.unsupported(problem)


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's filters fill at least half."""
    filters = problem.out_channels // problem.groups
    narrowest = min(columns for _, columns in TILES)
    return [{"pixels": m, "filters": n} for m, n in TILES if n < 2 * filters or n == narrowest]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds: a little above that of `fastconv.cuda.mma` with the same tile."""
    return mma.cost(problem, params) * _UNMEASURED


def make(problem: ConvProblem, params: Params, threads: int) -> Wgmma:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Wgmma(problem, params)


@cache
def compiled(tile: WgmmaTile, dtype: str) -> Kernel:
    """The kernel for a tile and a dtype."""
    stored = codec(dtype).stored
    product = wgmma_bf16 if dtype == "bfloat16" else wgmma_f16
    ROWS, COLUMNS, SUMS, OWN, THREADS = tile.rows, tile.columns, tile.sums, own_pixels(tile), tile.threads
    ROW = UNITS * _WIDTH
    LEFT, RIGHT, STEP, COPIES = ROWS * ROW, COLUMNS * ROW, THREADS // UNITS, COLUMNS * UNITS // THREADS
    STAGE, LAST = 2 * (LEFT + RIGHT), (STAGES - 1) * 2 * (LEFT + RIGHT)
    start, gather, advance = gathering(tile, _WIDTH)
    stash = stashing(tile)
    write = writing(ROWS // 2, COLUMNS, COLUMNS + PAD, THREADS, dtype)

    @device
    def copy_weights(shared, at, weight, element, g, there):
        for i in range(COPIES):
            copy_async16(shared, int32(at + i * STEP * ROW), weight, int32(element + i * STEP * g.slices * ROW), there)

    @device
    def copy(shared, stage, x, weight, element, step, g, thread, left_place, right_place, pixels, term):
        """Two slices; behind the last one come zeros."""
        there = step * 2 + 1 < g.slices
        gather(shared, int32(stage + left_place), x, g, pixels, term)
        copy_weights(shared, int32(stage + 2 * LEFT + right_place), weight, element, g, True)
        advance(g, term)
        gather(shared, int32(stage + LEFT + left_place), x, g, pixels, term)
        copy_weights(shared, int32(stage + 2 * LEFT + RIGHT + right_place), weight, int32(element + ROW), g, there)
        advance(g, term)

    @device
    def multiply(shared, stage, own_left, sums):
        left = descriptor(shared, int32(stage + own_left))
        right = descriptor(shared, int32(stage + 2 * LEFT))
        wgmma_fence()
        product(sums, COLUMNS, shared, left, right)
        product(sums, COLUMNS, shared, left + types.uint64(2), right + types.uint64(2))
        product(sums, COLUMNS, shared, left + types.uint64(LEFT // 8), right + types.uint64(RIGHT // 8))
        product(sums, COLUMNS, shared, left + types.uint64(LEFT // 8 + 2), right + types.uint64(RIGHT // 8 + 2))
        wgmma_commit()

    def wgmma(x, weight, bias, out, g, epilogue):
        shared, floats = cuda.shared.array(0, stored), cuda.shared.array(0, float32)
        sums = cuda.local.array(SUMS, float32)
        pixels, term = cuda.local.array((OWN, 2), int32), cuda.local.array(3, int32)
        rows, columns = cuda.local.array(OWN, int32), cuda.local.array(OWN, int32)
        thread, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.z)
        first_pixel, first_filter = int32(cuda.blockIdx.x * ROWS), int32(cuda.blockIdx.y * COLUMNS)
        for i in range(SUMS):
            sums[i] = float32(0)
        left_place = start(g, thread, first_pixel, group, pixels, term, rows, columns)
        right_place = int32(unit_place(int32(thread // UNITS), int32(thread % UNITS)) * _WIDTH)
        element = int32((group * g.padded_filters + first_filter + thread // UNITS) * g.slices)
        element = int32((element * UNITS + thread % UNITS) * _WIDTH)
        own_left, steps = int32(thread // 128 * 64 * ROW), int32((g.slices + 1) // 2)
        for i in range(_AHEAD):
            if i < steps:
                copy(shared, int32(i * STAGE), x, weight, element, int32(i), g, thread, left_place, right_place,
                     pixels, term)  # fmt: skip
            element += int32(2 * ROW)
            commit()
        step, ready, free = int32(0), int32(0), int32(_AHEAD * STAGE)
        while step < steps:
            wait(_ARRIVING)
            fence_async()
            cuda.syncthreads()  # the stage is there for all, and the one that is free is no longer multiplied
            multiply(shared, ready, own_left, sums)
            if step + _AHEAD < steps:
                copy(shared, free, x, weight, element, int32(step + _AHEAD), g, thread, left_place, right_place,
                     pixels, term)  # fmt: skip
            element += int32(2 * ROW)
            commit()
            wgmma_wait(1)
            ready = int32(0) if ready == LAST else int32(ready + STAGE)
            free = int32(0) if free == LAST else int32(free + STAGE)
            step += int32(1)
        wgmma_finish(sums, SUMS)
        cuda.syncthreads()  # nobody multiplies any more
        if thread < 128:
            stash(floats, sums, thread)
        cuda.syncthreads()
        write(floats, out, bias, g, epilogue, thread, first_pixel, first_filter, group)
        cuda.syncthreads()
        if thread >= 128:
            stash(floats, sums, int32(thread - 128))
        cuda.syncthreads()
        write(floats, out, bias, g, epilogue, thread, int32(first_pixel + ROWS // 2), first_filter, group)

    array = pointer(stored)
    kinds = (array, array, array, array, numbers(int32, WalkGeometry), numbers(float32, Epilogue))
    return Kernel(wgmma, kinds, (tile.rows, tile.columns, dtype), threads=THREADS, blocks=1, features="a")


@cache
def stashing(tile: WgmmaTile) -> Any:
    """The device function ``stash(shared, sums, thread)``: a warpgroup's sums to shared memory."""
    PITCH, COLUMNS = tile.columns + PAD, tile.columns

    @device
    def stash_columns(shared, at, sums, first):
        for j in range(8):
            shared[at + j * 8], shared[at + j * 8 + 1] = sums[first + j * 4], sums[first + j * 4 + 1]
            below = at + 8 * PITCH + j * 8
            shared[below], shared[below + 1] = sums[first + j * 4 + 2], sums[first + j * 4 + 3]

    @device
    def stash(shared, sums, thread):
        lane, warp = int32(thread % 32), int32(thread // 32)
        at = int32((warp * 16 + lane // 4) * PITCH + lane % 4 * 2)
        # A loop would stay one, with sums in local memory.
        stash_columns(shared, at, sums, 0)
        if COLUMNS > 64:
            stash_columns(shared, int32(at + 64), sums, 32)
        if COLUMNS > 128:
            stash_columns(shared, int32(at + 128), sums, 64)
            stash_columns(shared, int32(at + 192), sums, 96)

    return stash


class Wgmma(mma.Mma):
    """Forward convolution by implicit GEMM on the tensor cores of Hopper GPUs."""

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem, params)
        self.tile = WgmmaTile(params["pixels"], params["filters"])

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        like = super()._launch(x, out, vectors)
        return Launch(compiled(self.tile, self.problem.dtype), like.grid, like.values, self.tile.shared_bytes)

"""Implicit GEMM in float32: a tile of pixels times a tile of filters for each block, the column matrix never in memory.

A convolution is a product of matrices: a row of the left one has the inputs that all filters multiply for an output
pixel (`fastconv.cuda.gather`), a column of the right one has a filter's weights. Slices of both come to shared memory
by asynchronous copies, three under way while one is multiplied (`fastconv.cuda.gemm`). Any stride, padding and
dilation costs nothing, and neither channels nor filters need be a multiple of anything.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import ConvKernel, Packed, Strides, check_reach
from fastconv.cuda.gather import MOST_TAPS, gathering, image_pixel, own_pixels, own_terms
from fastconv.cuda.gemm import DEPTH, STAGES, Tile, multiplication, place_of
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import MOST_BLOCKS, Kernel, Launch
from fastconv.cuda.pack import FilterPacker
from fastconv.cuda.product_cost import blocks_at_once, product_ns
from fastconv.cuda.ptx import commit, copy_async16, wait
from fastconv.cuda.store_tile import storing
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer
from fastconv.cuda.walk import WalkGeometry, tile_of_block
from fastconv.problem import ConvProblem

TILES = [(128, 128), (128, 64), (64, 64)]
NARROW = [(64, 32), (128, 16)]  # of a warp each, for few filters
_ARRIVING = STAGES - 2


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "it does not pool" if problem.pool else unsupported_product(problem)


def unsupported_product(problem: ConvProblem) -> str | None:
    """Why sums cannot be computed this way, whatever is done with them."""
    if problem.dtype != "float32":
        return f"it computes float32, not {problem.dtype}"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    if problem.groups > MOST_BLOCKS or FilterPacker(problem, TILES[0][1]).size >= 1 << 30:
        return "it has too many groups, or weights that fill too much with whole tiles"
    if max(problem.kernel_size) > MOST_TAPS:
        return f"its kernel has more than {MOST_TAPS} rows or columns"
    return None


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's filters fill more than half; for few filters the narrow one that holds them."""
    filters = problem.out_channels // problem.groups
    filled = [(m, n) for m, n in TILES if n < 2 * filters] or [(m, n) for m, n in NARROW if n >= filters][-1:]
    return [{"pixels": m, "filters": n} for m, n in filled]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU: whole waves of blocks, with what of their tiles is empty."""
    tile = Tile(params["pixels"], params["filters"])
    pixels, filters = problem.batch * math.prod(problem.conv_size), problem.out_channels // problem.groups
    return product_ns(tile, pixels, filters, math.prod(problem.weight_shape[1:]), problem.groups)


def make(problem: ConvProblem, params: Params, threads: int) -> Tiled:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Tiled(problem, params)


@cache
def accumulation(tile: Tile, channels_last: bool, pixel_of: Any = image_pixel) -> Any:
    """The device function that computes a thread's sums.

    ``accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums, a, b, pixels, terms, rows,
    columns)``; `first` tells `pixel_of` where the tile is, `split` which share of the slices to multiply, and those
    from `sums` on are local arrays: (8, 8), 8 and 8 of float32, then what `gathering` wants.
    """
    THREADS, SLICE, LEFT = tile.threads, tile.slice, tile.left_slice
    COPIES, LANES = DEPTH * tile.columns // 4 // tile.threads, tile.columns // 4
    start, copy, advance = gathering(tile, channels_last, pixel_of)
    place, multiply = place_of(tile), multiplication(tile)

    @device
    def copy_weights(shared, at, weight, element, g):
        for i in range(COPIES):  # in shared memory a slice has no gaps
            source = int32(element + i * (THREADS // LANES) * g.padded_filters)
            copy_async16(shared, int32(at + i * THREADS * 4), weight, source, True)

    @device
    def accumulate(
        shared, x, weight, g, thread, first, group, first_filter, split, sums, a, b, pixels, terms, rows, columns
    ):
        for i in range(8):
            for j in range(8):
                sums[i, j] = float32(0)
        first_slice = int32(split * g.share)
        left = min(g.share, int32(g.slices - first_slice))
        left_place = start(g, thread, first, group, first_slice, pixels, terms, rows, columns)
        right_place = int32(LEFT + thread * 4)
        element = int32(((group * g.slices + first_slice) * DEPTH + thread // LANES) * g.padded_filters)
        element = int32(element + first_filter + thread % LANES * 4)
        for stage in range(STAGES - 1):
            if stage < left:
                copy(shared, int32(stage * SLICE + left_place), x, g, pixels, terms)
                copy_weights(shared, int32(stage * SLICE + right_place), weight, element, g)
                advance(g, terms)
            element += int32(DEPTH * g.padded_filters)
            commit()
        x_place, y_place = place(thread)
        ready, free = int32(0), int32((STAGES - 1) * SLICE)
        while left > 0:
            wait(_ARRIVING)
            cuda.syncthreads()  # the slice is there for all, and the one before it is no longer read
            if left >= STAGES:
                copy(shared, int32(free + left_place), x, g, pixels, terms)
                copy_weights(shared, int32(free + right_place), weight, element, g)
                advance(g, terms)
            element += int32(DEPTH * g.padded_filters)
            commit()
            multiply(shared, ready, x_place, y_place, a, b, sums)
            free = ready
            ready = int32(0) if ready == (STAGES - 1) * SLICE else int32(ready + SLICE)
            left = int32(left - 1)
        cuda.syncthreads()  # nobody reads slices any more

    return accumulate


@cache
def compiled(tile: Tile, channels_last: bool) -> Kernel:
    """The kernel for a tile and the memory format of x."""
    ROWS, COLUMNS = tile.rows, tile.columns
    PIXELS, TERMS = own_pixels(tile, channels_last), own_terms(tile, channels_last)
    accumulate = accumulation(tile, channels_last)
    stash, write = storing(tile)

    def tiled(x, weight, bias, out, g, epilogue):
        shared = cuda.shared.array(0, float32)
        sums = cuda.local.array((8, 8), float32)
        a, b = cuda.local.array(8, float32), cuda.local.array(8, float32)
        pixels, terms = cuda.local.array((PIXELS, 2), int32), cuda.local.array((TERMS, 3), int32)
        rows, columns = cuda.local.array(PIXELS, int32), cuda.local.array(PIXELS, int32)
        thread, split, group = int32(cuda.threadIdx.x), int32(cuda.blockIdx.y), int32(cuda.blockIdx.z)
        begin = int32(split * g.pixels * g.out_column)  # one map behind the other
        pixel_tile, filter_tile = tile_of_block(g, int32(cuda.blockIdx.x))
        first_pixel, first_filter = int32(pixel_tile * ROWS), int32(filter_tile * COLUMNS)
        accumulate(
            shared, x, weight, g, thread, first_pixel, group, first_filter, split, sums, a, b, pixels, terms, rows,
            columns,
        )  # fmt: skip
        stash(shared, sums, thread, 0)
        cuda.syncthreads()
        write(shared, out, begin, bias, g, epilogue, thread, first_pixel, first_filter, group)
        cuda.syncthreads()
        stash(shared, sums, thread, 4)
        cuda.syncthreads()
        write(shared, out, begin, bias, g, epilogue, thread, int32(first_pixel + ROWS // 2), first_filter, group)

    array = pointer(float32)
    kinds = (array, array, array, array, numbers(int32, WalkGeometry), numbers(float32, Epilogue))
    variant = (tile.rows, tile.columns, "nhwc" if channels_last else "nchw")
    return Kernel(tiled, kinds, variant, threads=tile.threads, blocks=blocks_at_once(tile))


class Tiled(ConvKernel):
    """Forward convolution by implicit GEMM."""

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        super().__init__(problem)
        self.tile = Tile(params["pixels"], params["filters"])
        self.packer = FilterPacker(problem, self.tile.columns)
        self.workspace_bytes = self.packer.workspace_bytes if problem.raw else 0

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, C/groups, R, S) as (group, r, s, c, filter), with zeros up to whole tiles and slices."""
        return self.packer(weight), bias

    def launch(self, *strides: Strides) -> Launch:
        x, _, out = strides
        whole = out[1] == 1 and self.problem.weight_shape[0] // self.problem.groups % 4 == 0
        return self._launch(x, out, whole and all(step % 4 == 0 for step in (out[0], out[2], out[3])))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        x, _, out = strides
        return self._launch(x, out, False)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        values = (self.geometry(x, out, vectors), Epilogue.of(p.activation))
        return Launch(compiled(tile, x[1] == 1), (self.tiles, 1, p.groups), values, tile.shared_bytes)

    @property
    def tiles(self) -> int:
        """Of all pixels, and of a group's filters."""
        pixels = self.problem.batch * math.prod(self.problem.conv_size)
        return -(-pixels // self.tile.rows) * (self.packer.columns // self.tile.columns)

    def geometry(self, x: Strides, out: Strides, vectors: bool) -> WalkGeometry:
        """The walk over images with these strides; `vectors` says that results can be stored by 16 bytes."""
        check_reach(self.problem.in_shape, x)
        check_reach(self.problem.out_shape, out)
        p = self.problem
        filters, pixels = p.out_channels // p.groups, p.batch * math.prod(p.conv_size)
        (top, _), (left, _) = p.padding
        numbers: tuple[int, ...] = (
            pixels, p.groups, p.in_channels // p.groups, filters, *p.in_size, *p.conv_size, *p.kernel_size, *p.stride,
            top, left, *p.dilation, p.dilation[0] * x[2], p.dilation[1] * x[3], *x, 0, *out, self.packer.columns,
            self.packer.columns // self.tile.columns, self.packer.terms // DEPTH, int(p.bias), int(vectors),
        )  # fmt: skip
        return WalkGeometry.of(*numbers)

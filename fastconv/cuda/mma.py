"""Implicit GEMM on tensor cores: float16 and bfloat16, and float32 rounded to TF32 where a problem permits it.

As `fastconv.cuda.tiled`, with fragments of matrices in the registers of a warp (`fastconv.cuda.mma_tile`): slices come
to shared memory by asynchronous copies of 16 bytes, neighbouring channels of a pixel or of a filter's tap, which takes
channels-last images; others, and channels that are no whole units of 16 bytes, are copied first. Sums are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import ConvKernel, Packed, Strides, check_reach
from fastconv.cuda.gather import MOST_TAPS, image_pixel
from fastconv.cuda.gather_units import TERM_FIELDS, gathering, own_pixels
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.image_units import ImageUnits
from fastconv.cuda.kernel import MOST_BLOCKS, Launch
from fastconv.cuda.mma_kernel import Product, convolution
from fastconv.cuda.mma_tile import STAGES, MmaTile, multiplication, placing
from fastconv.cuda.pack_units import FilterUnits
from fastconv.cuda.product_cost import LAUNCH_NS, PROCESSORS
from fastconv.cuda.ptx import commit, copy_async16, wait
from fastconv.cuda.toolkit import cuda, device, float32, int32, uint32
from fastconv.cuda.units import joined, padded_channels, tail_of, width_of
from fastconv.cuda.walk import WalkGeometry
from fastconv.problem import ITEMSIZE, ConvProblem

TILES = [(128, 128), (128, 64), (64, 64)]
_ARRIVING = STAGES - 2
_LARGEST = (256, 8)  # filters of a tile and units of a row, those of wgmma included
_COPY_NS = 1 / 1_000  # a byte, read and written


class Rates(NamedTuple):
    """Nanoseconds of a multiprocessor of a large GPU, for a tile that it has for itself.

    Attributes
    ----------
    finish : float
        Of a sum, before and after all products.
    multiply : float
        Of a sum's term.
    copy : float
        Of a term of a pixel or of a filter.
    """

    finish: float
    multiply: float
    copy: float


_HALVES = Rates(0.127, 0.00035, 0.025)
_RATES = {"float32": Rates(0.164, 0.0007, 0.056), "float16": _HALVES, "bfloat16": _HALVES}  # measured on an H200


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "it does not pool" if problem.pool else unsupported_product(problem)


def unsupported_product(problem: ConvProblem) -> str | None:
    """Why sums cannot be computed this way, whatever is done with them."""
    if (reason := unsupported_elements(problem)) is not None:
        return reason
    image = ImageUnits(problem).size
    if (
        max(image, *(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)))
        >= 1 << 30
    ):
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    if problem.groups > MOST_BLOCKS or FilterUnits(problem, _LARGEST[0], units=_LARGEST[1]).size >= 1 << 30:
        return "it has too many groups, or weights that fill too much with whole tiles"
    if max(problem.kernel_size) > MOST_TAPS:
        return f"its kernel has more than {MOST_TAPS} rows or columns"
    return None


def unsupported_elements(problem: ConvProblem) -> str | None:
    """Why tensor cores do not multiply what `problem` has, or None if they do."""
    if problem.dtype == "float64":
        return "tensor cores multiply no float64 here"
    if problem.dtype == "float32" and problem.precision != "tf32":
        return "it rounds float32 to TF32, which is not permitted: fastconv.set_float32_precision('tf32')"
    return None


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's filters fill at least half."""
    filters = problem.out_channels // problem.groups
    narrowest = min(columns for _, columns in TILES)
    return [{"pixels": m, "filters": n} for m, n in TILES if n < 2 * filters or n == narrowest]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    return product_cost(problem, params, pixels_of(problem))


def product_cost(problem: ConvProblem, params: Params, pixels: int, splits: int = 1) -> float:
    """`cost` of a product with so many rows, whose terms are split."""
    tile = tile_of(params)
    return product_ns(problem, pixels, tile, blocks_of(tile, problem.dtype), _RATES[problem.dtype], splits)


def pixels_of(problem: ConvProblem) -> int:
    """Pixels of all maps: rows of a product."""
    return problem.batch * math.prod(problem.conv_size)


def tiles_of(problem: ConvProblem, tile: MmaTile, pixels: int | None = None) -> int:
    """Tiles of all pixels, or of so many rows, and of all filters."""
    rows = pixels_of(problem) if pixels is None else pixels
    return -(-rows // tile.rows) * -(-(problem.out_channels // problem.groups) // tile.columns) * problem.groups


def product_ns(
    problem: ConvProblem, pixels: int, tile: Any, blocks: int, rates: Rates, splits: int = 1
) -> float:  # fmt: skip
    """Nanoseconds of a product on tensor cores: those of the multiprocessor with the most tiles, or splits of them.

    Of so many blocks at once, each has that share of its rates; fewer of them leave some unused.
    """
    most, sums = -(-tiles_of(problem, tile, pixels) * splits // PROCESSORS), tile.rows * tile.columns
    terms = FilterUnits(problem, tile.columns, units=tile.units).terms / splits
    own = rates.finish * sums + terms * (rates.multiply * sums + rates.copy * (tile.rows + tile.columns))
    used = min(1.0, most / blocks) ** 0.35
    return LAUNCH_NS + copy_ns(ImageUnits(problem)) + most * own / used


def copy_ns(images: ImageUnits) -> float:
    """Nanoseconds of a copy of images, if one is needed."""
    return images.size * images.problem.itemsize * _COPY_NS + LAUNCH_NS if images.expected else 0.0


def blocks_at_once(tile: MmaTile) -> int:
    """Blocks that a multiprocessor holds, by registers: sums, fragments and addresses."""
    return max(1, 512 // tile.threads if tile.sums <= 64 else 256 // tile.threads)


def blocks_of(tile: MmaTile, dtype: str) -> int:
    """`blocks_at_once`, whatever the dtype."""
    return blocks_at_once(tile)


def make(problem: ConvProblem, params: Params, threads: int) -> Mma:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return Mma(problem, tile_of(params), product)


def tile_of(params: Params) -> MmaTile:
    """The tile with some parameters."""
    return MmaTile(params["pixels"], params["filters"])


@cache
def accumulation(tile: MmaTile, dtype: str, pixel_of: Any = image_pixel) -> Any:
    """The device function ``accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums)``.

    It computes a thread's sums, of the slices of a split; `first` tells `pixel_of` where the tile is.
    """
    WIDTH, ROWS, COLUMNS, SUMS, OWN = 16 // ITEMSIZE[dtype], tile.rows, tile.columns, tile.sums, own_pixels(tile)
    UNITS, STEP = tile.units, tile.threads // tile.units
    SLICE, LEFT, place = (ROWS + COLUMNS) * UNITS * WIDTH, ROWS * UNITS * WIDTH, placing(tile.units)
    COPIES, FRAGMENTS_A, FRAGMENTS_B = COLUMNS // STEP, tile.warp_rows // 4, tile.warp_columns // 4
    start, copy, advance = gathering(tile, WIDTH, pixel_of)
    places, multiply = multiplication(tile, dtype, WIDTH)

    @device
    def copy_weights(shared, at, weight, element, g):
        for i in range(COPIES):
            source = int32(element + i * STEP * g.slices * (UNITS * WIDTH))
            copy_async16(shared, int32(at + i * STEP * UNITS * WIDTH), weight, source, True)

    @device
    def accumulate(shared, x, weight, g, thread, first, group, first_filter, split, sums):
        a, b = cuda.local.array(FRAGMENTS_A, uint32), cuda.local.array(FRAGMENTS_B, uint32)
        pixels, term = cuda.local.array((OWN, 2), int32), cuda.local.array(TERM_FIELDS, int32)
        rows, columns = cuda.local.array(OWN, int32), cuda.local.array(OWN, int32)
        left, right = cuda.local.array(2, int32), cuda.local.array(2, int32)
        for i in range(SUMS):
            sums[i] = float32(0)
        first_slice = int32(split * g.share)
        slices = min(g.share, int32(g.slices - first_slice))
        left_place = start(g, thread, first, group, first_slice, pixels, term, rows, columns)
        right_place = int32(LEFT + place(int32(thread // UNITS), int32(thread % UNITS)) * WIDTH)
        element = int32((group * g.padded_filters + first_filter + thread // UNITS) * g.slices)
        element = int32(((element + first_slice) * UNITS + thread % UNITS) * WIDTH)
        for i in range(STAGES - 1):
            if i < slices:
                copy(shared, int32(i * SLICE + left_place), x, g, pixels, term)
                copy_weights(shared, int32(i * SLICE + right_place), weight, element, g)
                advance(g, term)
            element += int32(UNITS * WIDTH)
            commit()
        places(thread, left, right)
        ahead, ready, free = slices, int32(0), int32((STAGES - 1) * SLICE)
        while ahead > 0:
            wait(_ARRIVING)
            cuda.syncthreads()  # the slice is there for all, and the one before it is no longer read
            if ahead >= STAGES:
                copy(shared, int32(free + left_place), x, g, pixels, term)
                copy_weights(shared, int32(free + right_place), weight, element, g)
                advance(g, term)
            element += int32(UNITS * WIDTH)
            commit()
            multiply(shared, ready, left, right, a, b, sums)
            free = ready
            ready = int32(0) if ready == (STAGES - 1) * SLICE else int32(ready + SLICE)
            ahead = int32(ahead - 1)
        cuda.syncthreads()  # nobody reads slices any more

    return accumulate


def product(tile: MmaTile, dtype: str, pixel_of: Any = image_pixel) -> Product:
    """What kernels do with a tile until they write it."""
    return Product("mma", tile, dtype, accumulation(tile, dtype, pixel_of), blocks_at_once(tile))


class Mma(ConvKernel):
    """Forward convolution by implicit GEMM on tensor cores.

    Parameters
    ----------
    problem : ConvProblem
    tile : MmaTile
    product : callable
        ``product(tile, dtype, pixel_of)`` makes a `Product`; which instructions multiply is up to it.
    """

    def __init__(self, problem: ConvProblem, tile: MmaTile, product: Callable[..., Product]) -> None:
        super().__init__(problem)
        self.tile, self.product = tile, product
        self.packer = FilterUnits(problem, tile.columns, units=tile.units, whole_slices=tile.bulk_copies)
        self.images = ImageUnits(problem)
        copies = self.images.expected
        self.layout_copies = "x to channels-last with whole units of 16 bytes" if copies else "none"
        scratch = self.images.size * copies + self.packer.size * problem.raw
        self.workspace_bytes = problem.itemsize * scratch

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, C/groups, R, S) as (group, filter, r, s, c), filled up with zeros."""
        return self.packer(weight), bias

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`, or from a copy of it that has units of 16 bytes."""
        super().run(self.images(x) if self.images.needed(x) else x, packed, out)

    def launch(self, *strides: Strides) -> Launch:
        x, _, out = strides
        width = width_of(self.problem)
        whole = out[1] == 1 and self.problem.out_channels // self.problem.groups % width == 0
        return self._launch(x, out, whole and all(step % width == 0 for step in (out[0], out[2], out[3])))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        x, _, out = strides
        return self._launch(x, out, False)

    def _launch(self, x: Strides, out: Strides, vectors: bool) -> Launch:
        p, tile = self.problem, self.tile
        values = (self.geometry(x, out, vectors), Epilogue.of(p.activation))
        kernel, grid = convolution(self.product(tile, p.dtype)), self.grid(-(-pixels_of(p) // tile.rows))
        return Launch(kernel, grid, values, tile.shared_bytes(p.dtype))

    def grid(self, tiles: int) -> tuple[int, int, int]:
        """Blocks for so many tiles of pixels."""
        return tiles * (self.packer.filters // self.tile.columns), 1, self.problem.groups

    def geometry(self, x: Strides, out: Strides, vectors: bool) -> WalkGeometry:
        """The walk over images with these strides, in units; `vectors` says that results can be stored by 16 bytes."""
        p, width = joined(self.problem), width_of(self.problem)
        check_reach(p.in_shape, x)
        check_reach(p.out_shape, out)
        (top, _), (left, _) = p.padding
        batch, row, column = x[0] // width, x[2] // width, x[3] // width  # in units, one of which is the next channel's
        numbers: tuple[int, ...] = (
            pixels_of(p), p.groups, padded_channels(p) // width, p.out_channels // p.groups, *p.in_size, *p.conv_size,
            *p.kernel_size, *p.stride, top, left, *p.dilation, p.dilation[0] * row, p.dilation[1] * column, batch, 1,
            row, column, 0, *out, self.packer.filters, self.packer.filters // self.tile.columns, self.packer.slices,
            int(p.bias), int(vectors),
        )  # fmt: skip
        return WalkGeometry.of(*numbers, tail=tail_of(self.problem) * column)

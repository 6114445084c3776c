"""Arrays as tensor cores read them, by units of 16 bytes: weights by filters, and images with channels filled up."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.elements import divided
from fastconv.cuda.gather_units import block_units
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.ptx import round_tf32, store4, store_words
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer, uint32
from fastconv.problem import ITEMSIZE, ConvProblem

_THREADS = 256


def width_of(problem: ConvProblem) -> int:
    """Elements of a unit."""
    return 16 // problem.itemsize


def padded_channels(problem: ConvProblem) -> int:
    """Channels of a group, filled up to whole units."""
    return whole_units(problem, problem.weight_shape[1])


def whole_units(problem: ConvProblem, channels: int) -> int:
    """A number of channels, filled up to whole units."""
    width = width_of(problem)
    return -(-channels // width) * width


class FilterGeometry(NamedTuple):
    """Sizes of weights and of their packed matrix, channels of a block of terms, and strides in elements.

    Transposed, filters are the channels of x and channels its filters. `first` is the element of the first tap, `w_row`
    and `w_column` go on to the next one.
    """

    groups: int
    filters: int
    channels: int
    taps_h: int
    taps_w: int
    padded_filters: int
    block: int
    terms: int
    first: int
    w_group: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int


class ImageGeometry(NamedTuple):
    """Sizes of an image and its copy (n, h, w, group, unit), and strides of the image in elements."""

    batch: int
    height: int
    width: int
    groups: int
    channels: int
    units: int
    x_batch: int
    x_channel: int
    x_row: int
    x_column: int


@device
def _as_it_is(value):
    return value


@cache
def _pack_filters(dtype: str) -> Kernel:
    stored = codec(dtype).stored
    rounded = round_tf32 if dtype == "float32" else _as_it_is

    def pack_filter_units(weight, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.groups * g.padded_filters * g.terms:
            rest, term = divided(index, g.terms)
            group, k = divided(rest, g.padded_filters)
            rest, c = divided(term, g.block)
            block, tap = divided(rest, g.taps_h * g.taps_w)
            r, s = divided(tap, g.taps_w)
            c = block * g.block + c
            value = stored(0)
            if k < g.filters and c < g.channels:
                at = g.first + group * g.w_group + k * g.w_filter + c * g.w_channel
                value = rounded(weight[at + r * g.w_row + s * g.w_column])
            out[index] = value
            index += step

    array = pointer(stored)
    return Kernel(pack_filter_units, (array, array, numbers(int64, FilterGeometry)), (dtype,), threads=_THREADS)


@cache
def _fill_up(dtype: str) -> Kernel:
    """A unit for each thread; those that follow each other read neighbours, channels or pixels."""
    stored, WIDTH, HALVES = codec(dtype).stored, 16 // ITEMSIZE[dtype], dtype != "float32"

    @device
    def pair(values, i):
        return uint32(values[i]) | (uint32(values[i + 1]) << uint32(16))

    def fill_up_channels(x, out, g):
        values = cuda.local.array(WIDTH, stored)
        index, pixels, units = cuda.grid(1), g.batch * g.height * g.width, g.groups * g.units
        if index < pixels * units:
            pixel, unit = divided(index, units)
            if g.x_channel != 1:
                unit, pixel = divided(index, pixels)
            rest, column = divided(pixel, g.width)
            n, row = divided(rest, g.height)
            group, first = divided(unit, g.units)
            at = n * g.x_batch + group * g.channels * g.x_channel + row * g.x_row + column * g.x_column
            for i in range(WIDTH):
                c = first * WIDTH + i
                values[i] = x[at + c * g.x_channel] if c < g.channels else stored(0)
            place = (pixel * units + unit) * WIDTH
            if HALVES:
                store_words(out, place, (pair(values, 0), pair(values, 2), pair(values, 4), pair(values, 6)))
            else:
                store4(out, place, (values[0], values[1], values[2], values[3]))

    array = pointer(stored)
    return Kernel(fill_up_channels, (array, array, numbers(int64, ImageGeometry)), (dtype,), threads=_THREADS)


def _blocks(elements: int) -> tuple[int]:
    return (min(-(-elements // _THREADS), 1 << 16),)


class FilterUnits:
    """Packs weights (K, C/groups, R, S) as (group, filter, block, r, s, channel of the block): a row of terms for
    each filter, in the order of `fastconv.cuda.gather_units`.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Filters are filled up to a multiple of it with zeros, channels to whole units, terms to whole slices.
    taps : (range, range), optional
        Rows and columns of the kernel, all if not given.
    transposed : bool, default False
        Exchange filters and channels of a group, as gradients of the input read them.
    units : int
        Of a row of a slice.
    """

    def __init__(
        self, problem: ConvProblem, block: int, taps: tuple[range, range] | None = None, transposed: bool = False,
        *, units: int,
    ) -> None:  # fmt: skip
        self.problem, self.block, self.transposed, self.units = problem, block, transposed, units
        self.taps = taps or (range(problem.kernel_size[0]), range(problem.kernel_size[1]))
        sizes = (problem.out_channels // problem.groups, problem.weight_shape[1])
        self._filters, self._channels = reversed(sizes) if transposed else sizes
        slice_terms, padded = width_of(problem) * units, whole_units(problem, self._channels)
        self.slices = -(-len(self.taps[0]) * len(self.taps[1]) * padded // slice_terms)
        self.terms = self.slices * slice_terms
        self.filters = -(-self._filters // block) * block
        self.size = problem.groups * self.filters * self.terms
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the weights' strides

    def __call__(self, weight: DeviceArray) -> DeviceArray:
        if not self.size:
            return weight  # no taps: nobody reads it
        packed = scratch(self.size, weight)
        launch = self._launches.get(weight.strides)
        if launch is None:
            geometry = self._geometry(weight.strides)
            kernel = _pack_filters(self.problem.dtype)
            launch = self._launches[weight.strides] = Launch(kernel, _blocks(self.size), (geometry,))
        launch((weight, packed), weight.stream)
        return packed

    def of_phase(self, problem: ConvProblem, taps: tuple[range, range]) -> FilterUnits:
        """The same for some taps of a gradient of the input."""
        return FilterUnits(problem, self.block, taps, transposed=True, units=self.units)

    def _geometry(self, strides: tuple[int, ...]) -> FilterGeometry:
        p, (rows, columns), (w_filter, w_channel, w_row, w_column) = self.problem, self.taps, strides
        width = width_of(p)
        block = block_units(whole_units(p, self._channels) // width, self.units) * width
        steps = (w_channel, w_filter) if self.transposed else (w_filter, w_channel)
        return FilterGeometry(
            p.groups, self._filters, self._channels, len(rows), len(columns), self.filters, block, self.terms,
            rows.start * w_row + columns.start * w_column, p.out_channels // p.groups * w_filter, *steps,
            rows.step * w_row, columns.step * w_column,
        )  # fmt: skip


class ImageUnits:
    """Copies images to channels-last ones whose groups have whole units of channels.

    Parameters
    ----------
    problem : ConvProblem
    shape : tuple of int, optional
        Of the images, that of x if not given.
    """

    def __init__(self, problem: ConvProblem, shape: tuple[int, ...] | None = None) -> None:
        self.problem = problem
        batch, channels, *size = shape or problem.in_shape
        self._group_channels = channels // problem.groups
        self.padded_channels = whole_units(problem, self._group_channels)
        self.channels = problem.groups * self.padded_channels
        self.shape = (batch, self.channels, *size)
        self.size = math.prod(self.shape)
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the image's strides

    @property
    def expected(self) -> bool:
        """Whether kernels cannot read arrays of the problem's memory format."""
        return self.problem.memory_format != "channels_last" or self.padded_channels != self._group_channels

    def needed(self, x: DeviceArray) -> bool:
        """Whether kernels cannot read `x` as it lies."""
        width = width_of(self.problem)
        steps = (x.strides[0], x.strides[2], x.strides[3])
        fits = x.strides[1] == 1 and all(step % width == 0 for step in steps) and x.pointer % 16 == 0
        return not fits or self.padded_channels != self._group_channels

    def __call__(self, x: DeviceArray) -> DeviceArray:
        copy = replace(scratch(self.size, x), shape=self.shape, strides=dense_strides(self.shape, "channels_last"))
        launch = self._launches.get(x.strides)
        if launch is None:
            p, (batch, _, height, width) = self.problem, self.shape
            units = self.padded_channels // width_of(p)
            values = (ImageGeometry(batch, height, width, p.groups, self._group_channels, units, *x.strides),)
            grid = (-(-self.size // width_of(p) // _THREADS),)
            launch = self._launches[x.strides] = Launch(_fill_up(p.dtype), grid, values)
        launch((x, copy), x.stream)
        return copy

"""Weights as tensor cores read them, by filters, in units of 16 bytes (`fastconv.cuda.units`)."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.elements import divided
from fastconv.cuda.gather_units import block_units
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.ptx import round_tf32
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer
from fastconv.cuda.units import join_of, whole_units, width_of
from fastconv.problem import ITEMSIZE, ConvProblem

_THREADS = 256


class FilterGeometry(NamedTuple):
    """Sizes of weights and of their packed matrix, channels of a block of terms, and strides in elements.

    Transposed, filters are the channels of x and channels its filters. `first` is the element of the first tap, `w_row`
    and `w_column` go on to the next one. A tap is that of a unit, which has `pixels` of the kernel's `columns`, and the
    `channels` of each. `tile` filters with so many terms, a `row` of a slice, are neighbours, or 0.
    """

    groups: int
    filters: int
    channels: int
    pixels: int
    taps_h: int
    taps_w: int
    columns: int
    padded_filters: int
    block: int
    terms: int
    first: int
    w_group: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int
    tile: int
    row: int


@device
def _as_it_is(value):
    return value


@cache
def _pack_filters(dtype: str) -> Kernel:
    stored, WIDTH = codec(dtype).stored, 16 // ITEMSIZE[dtype]
    rounded = round_tf32 if dtype == "float32" else _as_it_is

    def pack_filter_units(weight, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.groups * g.padded_filters * g.terms:
            rest, term = divided(index, g.terms)
            group, k = divided(rest, g.padded_filters)
            rest, c = divided(term, g.block)
            block, tap = divided(rest, g.taps_h * g.taps_w)
            r, s = divided(tap, g.taps_w)
            pixel, c = divided(block * g.block + c, g.channels)
            s = s * g.pixels + pixel
            value = stored(0)
            if k < g.filters and pixel < g.pixels and s < g.columns:
                at = g.first + group * g.w_group + k * g.w_filter + c * g.w_channel
                value = rounded(weight[at + r * g.w_row + s * g.w_column])
            where = index
            if g.tile:
                slice, element = divided(term, g.row)
                tile, row = divided(group * g.padded_filters + k, g.tile)
                where = (tile * (g.terms // g.row) + slice) * g.tile + row
                where = where * g.row + (element ^ (row % 8 * WIDTH))  # units as `fastconv.cuda.mma_tile.placing` does
            out[where] = value
            index += step

    array = pointer(stored)
    return Kernel(pack_filter_units, (array, array, numbers(int64, FilterGeometry)), (dtype,), threads=_THREADS)


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
    whole_slices : bool, default False
        Put what a slice has of `block` filters side by side, as it lies in shared memory: for rows of 8 units.
    """

    def __init__(
        self, problem: ConvProblem, block: int, taps: tuple[range, range] | None = None, transposed: bool = False,
        *, units: int, whole_slices: bool = False,
    ) -> None:  # fmt: skip
        self.problem, self.block, self.transposed, self.units = problem, block, transposed, units
        self.whole_slices = whole_slices
        self.taps = taps or (range(problem.kernel_size[0]), range(problem.kernel_size[1]))
        sizes = (problem.out_channels // problem.groups, problem.weight_shape[1])
        self._filters, self._channels = reversed(sizes) if transposed else sizes
        join = join_of(problem)
        self._pixels = join.pixels if join else 1
        self._taps = len(self.taps[0]), join.units if join else len(self.taps[1])
        self._padded = whole_units(problem, self._pixels * self._channels)
        slice_terms = width_of(problem) * units
        self.slices = -(-math.prod(self._taps) * self._padded // slice_terms)
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
        return FilterUnits(problem, self.block, taps, transposed=True, units=self.units, whole_slices=self.whole_slices)

    def _geometry(self, strides: tuple[int, ...]) -> FilterGeometry:
        p, (rows, columns), (w_filter, w_channel, w_row, w_column) = self.problem, self.taps, strides
        width = width_of(p)
        block = block_units(self._padded // width, self.units) * width
        steps = (w_channel, w_filter) if self.transposed else (w_filter, w_channel)
        return FilterGeometry(
            p.groups, self._filters, self._channels, self._pixels, *self._taps, len(columns), self.filters, block,
            self.terms, rows.start * w_row + columns.start * w_column, p.out_channels // p.groups * w_filter, *steps,
            rows.step * w_row, columns.step * w_column, self.block * self.whole_slices, self.units * width,
        )  # fmt: skip

"""Arrays as tensor cores read them, by units of 16 bytes: weights by filters, and images with channels filled up."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.gather_units import block_units
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.ptx import round_tf32
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer
from fastconv.problem import ConvProblem

_THREADS = 256


def width_of(problem: ConvProblem) -> int:
    """Elements of a unit."""
    return 16 // problem.itemsize


def padded_channels(problem: ConvProblem) -> int:
    """Channels of a group, filled up to whole units."""
    width = width_of(problem)
    return -(-problem.weight_shape[1] // width) * width


class FilterGeometry(NamedTuple):
    """Sizes of weights and of their packed matrix, channels of a block of terms, and strides in elements."""

    groups: int
    filters: int
    channels: int
    kernel_h: int
    kernel_w: int
    padded_filters: int
    block: int
    terms: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int


class ImageGeometry(NamedTuple):
    """Sizes of an image and its copy (n, h, w, group, padded channel), and strides of the image in elements."""

    batch: int
    height: int
    width: int
    groups: int
    channels: int
    padded_channels: int
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
            term, rest = index % g.terms, index // g.terms
            k, group = rest % g.padded_filters, rest // g.padded_filters
            tap, block = term // g.block % (g.kernel_h * g.kernel_w), term // g.block // (g.kernel_h * g.kernel_w)
            r, s, c = tap // g.kernel_w, tap % g.kernel_w, block * g.block + term % g.block
            value = stored(0)
            if k < g.filters and c < g.channels:
                at = (group * g.filters + k) * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column
                value = rounded(weight[at])
            out[index] = value
            index += step

    array = pointer(stored)
    return Kernel(pack_filter_units, (array, array, numbers(int64, FilterGeometry)), (dtype,), threads=_THREADS)


@cache
def _fill_up(dtype: str) -> Kernel:
    stored = codec(dtype).stored

    def fill_up_channels(x, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.batch * g.height * g.width * g.groups * g.padded_channels:
            c, rest = index % g.padded_channels, index // g.padded_channels
            group, rest = rest % g.groups, rest // g.groups
            column, rest = rest % g.width, rest // g.width
            row, n = rest % g.height, rest // g.height
            value = stored(0)
            if c < g.channels:
                channel = group * g.channels + c
                value = x[n * g.x_batch + channel * g.x_channel + row * g.x_row + column * g.x_column]
            out[index] = value
            index += step

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
    units : int
        Of a row of a slice.
    """

    def __init__(self, problem: ConvProblem, block: int, units: int) -> None:
        self.problem = problem
        width, taps = width_of(problem), math.prod(problem.kernel_size)
        self.slices = -(-taps * padded_channels(problem) // (width * units))
        self.terms = self.slices * width * units
        self._block = block_units(padded_channels(problem) // width, units) * width
        self.filters = -(-(problem.out_channels // problem.groups) // block) * block
        self.size = problem.groups * self.filters * self.terms
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the weights' strides

    def __call__(self, weight: DeviceArray) -> DeviceArray:
        packed = scratch(self.size, weight)
        launch = self._launches.get(weight.strides)
        if launch is None:
            p = self.problem
            sizes = (p.groups, p.out_channels // p.groups, *p.weight_shape[1:], self.filters, self._block)
            values = (FilterGeometry(*sizes, self.terms, *weight.strides),)
            launch = self._launches[weight.strides] = Launch(_pack_filters(p.dtype), _blocks(self.size), values)
        launch((weight, packed), weight.stream)
        return packed


class ImageUnits:
    """Copies images to channels-last ones whose groups have whole units of channels."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.channels = problem.groups * padded_channels(problem)
        self.size = problem.batch * math.prod(problem.in_size) * self.channels
        self.shape = (problem.batch, self.channels, *problem.in_size)
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the image's strides

    def needed(self, x: DeviceArray) -> bool:
        """Whether kernels cannot read `x` as it lies."""
        width = width_of(self.problem)
        steps = (x.strides[0], x.strides[2], x.strides[3])
        fits = x.strides[1] == 1 and all(step % width == 0 for step in steps) and x.pointer % 16 == 0
        return not fits or padded_channels(self.problem) != self.problem.weight_shape[1]

    def __call__(self, x: DeviceArray) -> DeviceArray:
        copy = replace(scratch(self.size, x), shape=self.shape, strides=dense_strides(self.shape, "channels_last"))
        launch = self._launches.get(x.strides)
        if launch is None:
            p = self.problem
            sizes = (p.batch, *p.in_size, p.groups, p.weight_shape[1], padded_channels(p))
            values = (ImageGeometry(*sizes, *x.strides),)
            launch = self._launches[x.strides] = Launch(_fill_up(p.dtype), _blocks(self.size), values)
        launch((x, copy), x.stream)
        return copy

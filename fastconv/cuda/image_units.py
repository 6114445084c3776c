"""Images as tensor cores read them: copied to channels-last ones of whole units, where they are none."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.elements import divided
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.ptx import store4, store_words
from fastconv.cuda.toolkit import cuda, device, int64, numbers, pointer, uint32
from fastconv.cuda.units import join_of, joined, tail_of, whole_units, width_of
from fastconv.problem import ITEMSIZE, ConvProblem

_THREADS = 256


class ImageGeometry(NamedTuple):
    """Sizes of an image and its copy (n, h, w, group, unit), and strides of the image in elements.

    The w-th of the `width` units of a row has `pixels` of the image's `columns`: w*step - left, and on by `apart`.
    Behind the `whole` ones come the same with only so many pixels as are read `last`.
    """

    batch: int
    height: int
    columns: int
    width: int
    whole: int
    last: int
    pixels: int
    apart: int
    step: int
    left: int
    groups: int
    channels: int
    units: int
    x_batch: int
    x_channel: int
    x_row: int
    x_column: int


@cache
def _fill_up(dtype: str) -> Kernel:
    """A unit for each thread; those that follow each other read neighbours, channels or pixels."""
    stored, WIDTH, HALVES = codec(dtype).stored, 16 // ITEMSIZE[dtype], dtype != "float32"

    @device
    def pair(values, i):
        return uint32(values[i]) | (uint32(values[i + 1]) << uint32(16))

    def fill_up_channels(x, out, g):
        values = cuda.local.array(WIDTH, stored)
        index, places, units = cuda.grid(1), g.batch * g.height * g.width, g.groups * g.units
        if index < places * units:
            place, unit = divided(index, units)
            if g.x_channel != 1:
                unit, place = divided(index, places)
            rest, column = divided(place, g.width)
            n, row = divided(rest, g.height)
            group, first = divided(unit, g.units)
            at = n * g.x_batch + group * g.channels * g.x_channel + row * g.x_row
            pixels = g.pixels
            if column >= g.whole:
                column, pixels = column - g.whole, g.last
            c, pixel, column = first * WIDTH, 0, column * g.step - g.left
            for i in range(WIDTH):
                inside = pixel < pixels and 0 <= column < g.columns
                values[i] = x[at + c * g.x_channel + column * g.x_column] if inside else stored(0)
                c += 1
                if c == g.channels:
                    c, pixel, column = 0, pixel + 1, column + g.apart
            where = (place * units + unit) * WIDTH
            if HALVES:
                store_words(out, where, (pair(values, 0), pair(values, 2), pair(values, 4), pair(values, 6)))
            else:
                store4(out, where, (values[0], values[1], values[2], values[3]))

    array = pointer(stored)
    return Kernel(fill_up_channels, (array, array, numbers(int64, ImageGeometry)), (dtype,), threads=_THREADS)


class ImageUnits:
    """Copies images to channels-last ones whose groups have whole units of channels.

    Parameters
    ----------
    problem : ConvProblem
    shape : tuple of int, optional
        Of the images, that of x if not given; then pixels of few channels share units.
    """

    def __init__(self, problem: ConvProblem, shape: tuple[int, ...] | None = None) -> None:
        self.problem = problem
        batch, channels, height, self._columns = shape or problem.in_shape
        self._join = None if shape else join_of(problem)
        width = self._columns if shape else joined(problem).in_size[1] + tail_of(problem)
        self._group_channels = channels // problem.groups
        pixels = self._join.pixels if self._join else 1
        self.padded_channels = whole_units(problem, pixels * self._group_channels)
        self.channels = problem.groups * self.padded_channels
        self.shape = (batch, self.channels, height, width)
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
            values = (self._geometry(x.strides),)
            grid = (-(-self.size // width_of(self.problem) // _THREADS),)
            launch = self._launches[x.strides] = Launch(_fill_up(self.problem.dtype), grid, values)
        launch((x, copy), x.stream)
        return copy

    def _geometry(self, strides: tuple[int, ...]) -> ImageGeometry:
        p, join, (batch, _, height, width) = self.problem, self._join, self.shape
        walk = (width, 1, 1, 1, 1, 0)
        if join:
            walk = (joined(p).in_size[1], join.last, join.pixels, join.apart, join.step, p.padding[1][0])
        units = self.padded_channels // width_of(p)
        return ImageGeometry(
            batch, height, self._columns, width, *walk, p.groups, self._group_channels, units, *strides
        )

"""Sums over the pixels of each channel, and functions of a pixel and its channel: what batch normalisation needs.

An image is cut into *runs*: neighbouring elements of one plane, or neighbouring pixels with all their
channels. A run is added up in float64, in lanes that lie in the first-level cache, and leaves partial sums;
these are merged in a fixed order. Runs depend on the shape alone, so the result does not depend on threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.arrays import aligned
from fastconv.cpu.elementwise import CHUNK, channels_last, check_alike, in_memory_order
from fastconv.cpu.kernel import fields
from fastconv.cpu.launch import run_jobs
from fastconv.cpu.memory import fill, get, put
from fastconv.jit import inline, record_kernel, source_stamp

_LANES = 128  # partial sums of one run: enough to fill the pipelines, few enough to add up in the end

SUM, MOMENTS, PRODUCTS, NORMALIZE, NORMALIZE_BACKWARD = range(5)

RECORD = fields(
    "x", "y", "out", "first", "second", "means", "scales", "grad_scales", "shifts",
    "count", "pieces", "per_job", "plane", "length", "channels", "groups", "width",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Runs:
    """How an image is cut.

    Attributes
    ----------
    count, pieces, per_job : int
        Runs of the image, of one plane (there is one for channels-last images), and of one job.
    plane, length : int
        Elements of a plane and of a run; the last run of a plane may be shorter.
    channels, groups : int
        Channels of a run, which are nearest neighbours, and channels of the image that are not.
    width : int
        Lanes: the channels of a run, repeated a power of two times.
    pixels : array (pieces,)
        Elements that each channel has in the runs of one plane.
    """

    count: int
    pieces: int
    per_job: int
    plane: int
    length: int
    channels: int
    groups: int
    width: int
    pixels: np.ndarray

    @classmethod
    @lru_cache(maxsize=512)
    def of(cls, shape: tuple[int, ...], last: bool) -> Runs:
        """The runs of an (N, C, H, W) image."""
        n, c, h, w = shape
        planes, plane, channels, groups = (1, n * h * w * c, c, 1) if last else (n * c, h * w, 1, c)
        length = min(plane, max(1, CHUNK // channels) * channels)
        pieces = -(-plane // max(1, length))
        pixels = np.full(pieces, length // channels)
        pixels[-1:] -= (pieces * length - plane) // channels
        repeats = 2 ** int(math.log2(max(1, min(_LANES, length // 2) / channels)))
        per_job = max(1, CHUNK // max(1, length))
        return cls(planes * pieces, pieces, per_job, plane, length, channels, groups, repeats * channels, pixels)

    def by_channel(self, partial: np.ndarray) -> np.ndarray:
        """Partial sums of all runs as (images, C, pieces)."""
        if self.channels == 1:
            return partial.reshape(-1, self.groups, self.pieces)
        return partial.reshape(1, self.pieces, self.channels).transpose(0, 2, 1)


def channel_sums(x: np.ndarray) -> np.ndarray:
    """Sum over N, H and W of an image (N, C, H, W): (C,), in the dtype of `x`."""
    runs, (total, _) = _sums(SUM, x)
    with np.errstate(over="ignore", invalid="ignore"):
        return runs.by_channel(total).sum(axis=(0, 2)).astype(x.dtype)


def channel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) variance of each channel of an image (N, C, H, W): float64, (C,) each.

    Each run has its own mean and squared deviations; they are merged as Chan, Golub and LeVeque (1979) do.
    """
    runs, partial = _sums(MOMENTS, x)
    means, squares = (runs.by_channel(p) for p in partial)
    total = x.size // x.shape[1]
    with np.errstate(invalid="ignore"):
        mean = (means * runs.pixels).sum(axis=(0, 2)) / total
        squares += runs.pixels * (means - mean[:, None]) ** 2
        return mean, squares.sum(axis=(0, 2)) / total


def channel_products(x: np.ndarray, grad_output: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ``grad_output`` and of ``grad_output * (x - mean)`` over each channel's pixels: float64, (C,) each."""
    check_alike(x, grad_output, "grad_output")
    runs, partial = _sums(PRODUCTS, x, grad_output, mean)
    with np.errstate(invalid="ignore"):
        total, products = (runs.by_channel(p).sum(axis=(0, 2)) for p in partial)
    return total, products


def normalize(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """``(x - mean) * scale + shift`` with one constant of each kind for every channel of (N, C, H, W)."""
    return _pixelwise(NORMALIZE, x, x, mean, scale, scale, shift)


def normalize_backward(
    x: np.ndarray, grad_output: np.ndarray, mean: np.ndarray, scale: np.ndarray, grad_scale: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """``(x - mean) * scale + grad_output * grad_scale + shift``, constants as in `normalize`."""
    check_alike(x, grad_output, "grad_output")
    return _pixelwise(NORMALIZE_BACKWARD, x, grad_output, mean, scale, grad_scale, shift)


def _sums(op: int, x: np.ndarray, y: np.ndarray | None = None, mean: np.ndarray | None = None) -> tuple:
    """The runs of `x`, and two partial sums (or one) for each of them and each of its channels."""
    last = channels_last(x)
    runs = Runs.of(x.shape, last)
    first = in_memory_order(x, last)
    second = first if y is None else in_memory_order(y, last)
    partial = np.empty((2, runs.count * runs.channels))
    means = partial if mean is None else np.ascontiguousarray(mean, np.float64)
    _run(op, runs, (first, second, first, partial[0], partial[1], means, means, means, means), 3 * 8 * runs.width)
    return runs, partial


def _pixelwise(op: int, x: np.ndarray, y: np.ndarray, *constants: np.ndarray) -> np.ndarray:
    last = channels_last(x)
    runs = Runs.of(x.shape, last)
    first, second = in_memory_order(x, last), in_memory_order(y, last)
    out = aligned(first.shape, x.dtype)
    # Channels that are neighbours are repeated to the width of the lanes, so that inner loops are long.
    repeats = runs.width // runs.channels if runs.groups == 1 else 1
    spread = [np.tile(np.asarray(c, x.dtype), repeats) for c in constants]
    _run(op, runs, (first, second, out, out, out, *spread), 0)
    return out.transpose(0, 3, 1, 2) if last else out


def _run(op: int, runs: Runs, arrays: tuple[np.ndarray, ...], slab: int) -> None:
    sizes = (runs.count, runs.pieces, runs.per_job, runs.plane, runs.length, runs.channels, runs.groups, runs.width)
    record = np.array([(*[array.ctypes.data for array in arrays], *sizes)], RECORD)
    kernel = _summing if op in (SUM, MOMENTS, PRODUCTS) else _mapping
    function = kernel(op, arrays[0].itemsize, source_stamp())
    run_jobs(function, record, -(-runs.count // runs.per_job), -(-slab // 64) * 64)


@inline
def _fold(lanes, width, channels):
    """Add up the lanes of each channel, by halves; the sums are the first `channels` lanes."""
    while width > channels:
        width //= 2
        for j in range(width):
            put(lanes, j, get(lanes, j, 8) + get(lanes, j + width, 8), 8)


@inline
def _spread(source, lanes, width, channels):
    """Repeat one value for each channel over all lanes."""
    for c in range(channels):
        put(lanes, c, get(source, c, 8), 8)
    while channels < width:
        for j in range(channels):
            put(lanes, j + channels, get(lanes, j, 8), 8)
        channels *= 2


@inline
def _add_run(x, y, count, sums, products, means, width, OP, ITEM):
    """Add one run to the lanes: x, the squares of x - mean, or y and y * (x - mean)."""
    for i in range(0, count, width):
        some, a, b = min(width, count - i), x + ITEM * i, y + ITEM * i
        for j in range(some):
            if OP == SUM:
                put(sums, j, get(sums, j, 8) + get(a, j, ITEM), 8)
            elif OP == MOMENTS:
                distance = get(a, j, ITEM) - get(means, j, 8)
                put(products, j, get(products, j, 8) + distance * distance, 8)
            else:
                distance = get(a, j, ITEM) - get(means, j, 8)
                put(sums, j, get(sums, j, 8) + get(b, j, ITEM), 8)
                put(products, j, get(products, j, 8) + distance * get(b, j, ITEM), 8)


@cache
def _summing(OP: int, ITEM: int, stamp: str) -> Any:
    @record_kernel(RECORD)
    def sums_of_runs(scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        width, channels = g.width, g.channels
        sums, products, means = scratch, scratch + 8 * width, scratch + 16 * width
        for run in range(index * g.per_job, min((index + 1) * g.per_job, g.count)):
            plane, piece = run // g.pieces, run % g.pieces
            start, count = plane * g.plane + piece * g.length, min(g.length, g.plane - piece * g.length)
            x, y, place = g.x + ITEM * start, g.y + ITEM * start, 8 * run * channels
            fill(sums, 2 * width, 0.0, 8)
            if OP == PRODUCTS:
                _spread(g.means + 8 * (plane % g.groups), means, width, channels)
            else:
                _add_run(x, y, count, sums, products, means, width, SUM, ITEM)
            if OP == MOMENTS:
                _fold(sums, width, channels)
                for c in range(channels):
                    put(sums, c, get(sums, c, 8) / (count // channels), 8)
                _spread(sums, means, width, channels)
            if OP != SUM:
                _add_run(x, y, count, sums, products, means, width, OP, ITEM)
                _fold(products, width, channels)
            if OP != MOMENTS:
                _fold(sums, width, channels)
            for c in range(channels):
                put(g.first + place, c, get(sums, c, 8), 8)
                put(g.second + place, c, get(products, c, 8), 8)

    return sums_of_runs


@inline
def _map_run(x, y, out, count, mean, scale, grad_scale, shift, OP, ITEM):
    """One run of a single channel."""
    for j in range(count):
        value = (get(x, j, ITEM) - mean) * scale + shift
        if OP == NORMALIZE_BACKWARD:
            value += get(y, j, ITEM) * grad_scale
        put(out, j, value, ITEM)


@cache
def _mapping(OP: int, ITEM: int, stamp: str) -> Any:
    @record_kernel(RECORD)
    def map_runs(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        means, scales, grad_scales, shifts, width = g.means, g.scales, g.grad_scales, g.shifts, g.width
        for run in range(index * g.per_job, min((index + 1) * g.per_job, g.count)):
            plane, piece = run // g.pieces, run % g.pieces
            start, count = plane * g.plane + piece * g.length, min(g.length, g.plane - piece * g.length)
            x, y, out = g.x + ITEM * start, g.y + ITEM * start, g.out + ITEM * start
            if g.channels == 1:
                c = plane % g.groups
                mean, scale = get(means, c, ITEM), get(scales, c, ITEM)
                _map_run(x, y, out, count, mean, scale, get(grad_scales, c, ITEM), get(shifts, c, ITEM), OP, ITEM)
            else:
                for i in range(0, count, width):
                    a, b, o = x + ITEM * i, y + ITEM * i, out + ITEM * i
                    for j in range(min(width, count - i)):
                        value = (get(a, j, ITEM) - get(means, j, ITEM)) * get(scales, j, ITEM) + get(shifts, j, ITEM)
                        if OP == NORMALIZE_BACKWARD:
                            value += get(b, j, ITEM) * get(grad_scales, j, ITEM)
                        put(o, j, value, ITEM)

    return map_runs

"""Depthwise and small-group convolution: every lane of a vector is its own group.

With one or a few channels in a group, a vector of filters that share a broadcast input would be mostly
empty. Channels-last, the input is therefore a vector too: a job copies a padded band of rows to scratch,
for a block of filters, such that plane j holds under each filter the j-th channel of its group; the
microkernel multiplies vector by vector. With one filter for each channel that copy is a plain one.

Contiguous (NCHW), vectors are pixels and groups cost nothing: the kernel is that of `tiled`, with
register tiles of as few rows as a group has filters.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu import bands, tiled
from fastconv.cpu.contract import contract
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Packed, Params, fields, record, split
from fastconv.cpu.memory import copy, fill, get, put
from fastconv.cpu.tiles import FMA_NS, per_tile_ns
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "out_batch", "out_row", "out_column", "in_height", "in_width",
    "out_height", "out_width", "filters", "group_channels", "group_filters", "stride_h", "stride_w", "top", "left",
    "span_h", "panel_width", "panel_plane", "taps", "n_taps", "height", "bands", "blocks", "epilogue",
)  # fmt: skip

_MOST_CHANNELS = 8  # of a group: beyond, the planes no longer fit in cache
_ROW_TILES = {32: [(7, 2), (4, 4), (14, 1)], 16: [(4, 2), (7, 1), (2, 4)]}
_VECTOR_TILES = {32: [(1, 8), (2, 8), (4, 4)], 16: [(1, 8), (2, 4), (4, 2)]}


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    channels = problem.in_channels // problem.groups
    if problem.groups == 1:
        return "it has one group"
    if channels > _MOST_CHANNELS:
        return f"its groups have {channels} channels, more than {_MOST_CHANNELS}"
    if problem.pool and problem.memory_format == "channels_last":
        return "it does not pool channels-last"
    return None


def space(problem: ConvProblem) -> list[Params]:
    """Register tiles that suit vectors of channels, or rows of few filters."""
    if problem.memory_format == "channels_last":
        return [{"rows": rows, "vectors": vectors} for rows, vectors in _ROW_TILES[host().registers]]
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    fitting = [tile for tile in _VECTOR_TILES[host().registers] if tile[0] <= filters]
    return [{"rows": rows, "vectors": vectors, "channels": channels, "pixel_vectors": 1} for rows, vectors in fitting]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    if problem.memory_format == "contiguous":
        return bands.cost(problem, params)
    rows, vectors = params["rows"], params["vectors"]
    height, width = problem.conv_size
    blocks = -(-problem.out_channels // (vectors * host().lanes(problem.itemsize)))
    length = math.prod(problem.weight_shape[1:])
    tiles = height * -(-width // rows) * blocks
    copies = 0.1 if problem.in_channels == problem.groups == problem.out_channels else 1.0
    copied = copies * math.prod(problem.in_size) * problem.out_channels * problem.weight_shape[1]
    each = tiles * (length * FMA_NS * (rows * vectors + vectors) * 1.2 + per_tile_ns(rows, vectors))
    return problem.batch * (each + copied)


def make(problem: ConvProblem, params: Params, threads: int) -> ConvKernel:
    """Compile or load the kernel."""
    if problem.memory_format == "contiguous":
        return tiled.make(problem, params, threads)
    return Depthwise(problem, params, threads)


@inline
def _plane(source, x_channel, target, first, count, j, g, ITEM):
    """Channel j of the groups that `count` filters from `first` on belong to, for one pixel."""
    if g.group_channels == 1 and g.group_filters == 1:
        copy(source + ITEM * first * x_channel, x_channel, target, count, ITEM)
    else:
        for k in range(count):
            channel = (first + k) // g.group_filters * g.group_channels + j
            put(target, k, get(source, channel * x_channel, ITEM), ITEM)


@inline
def _pad(x, g, top, rows, first, count, BLOCK, panel, ITEM):
    """Input rows of a band as (plane, row, column, filter), with padding and zeros after the last filter."""
    left, right = min(g.panel_width, g.left), min(g.panel_width, g.left + g.in_width)
    for j in range(g.group_channels):
        for i in range(rows):
            row, target = top + i, panel + ITEM * (j * g.panel_plane + i * g.panel_width * BLOCK)
            if row < 0 or row >= g.in_height:
                fill(target, g.panel_width * BLOCK, 0.0, ITEM)
                continue
            fill(target, left * BLOCK, 0.0, ITEM)
            fill(target + ITEM * right * BLOCK, (g.panel_width - right) * BLOCK, 0.0, ITEM)
            for column in range(left, right):
                at = target + ITEM * column * BLOCK
                source = x + ITEM * (row * g.x_row + (column - g.left) * g.x_column)
                _plane(source, g.x_channel, at, first, count, j, g, ITEM)
                fill(at + ITEM * count, BLOCK - count, 0.0, ITEM)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    BLOCK = VECS * LANES

    @job_kernel(GEOMETRY)
    def depthwise(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        block, rest = index % g.blocks, index // g.blocks
        first, n = rest % g.bands * g.height, rest // g.bands
        last = min(first + g.height, g.out_height)
        filters = min(BLOCK, g.filters - block * BLOCK)
        top, rows = first * g.stride_h - g.top, (last - first - 1) * g.stride_h + g.span_h
        _pad(x + ITEM * n * g.x_batch, g, top, rows, block * BLOCK, filters, BLOCK, scratch, ITEM)
        w = weight + ITEM * block * g.n_taps * g.group_channels * BLOCK
        for row in range(first, last):
            a = scratch + ITEM * (row - first) * g.stride_h * g.panel_width * BLOCK
            o = out + ITEM * (n * g.out_batch + row * g.out_row + block * BLOCK)
            for p in range(0, g.out_width, ROWS):
                contract(
                    a + ITEM * p * g.stride_w * BLOCK, g.stride_w * BLOCK, g.panel_plane, w, BLOCK,
                    g.taps, g.n_taps, g.group_channels, bias + ITEM * block * BLOCK, 0, LANES,
                    o + ITEM * p * g.out_column, g.out_column, min(ROWS, g.out_width - p), filters, g.epilogue,
                    ROWS, VECS, ITEM, 1,
                )  # fmt: skip

    return depthwise


class Depthwise(ConvKernel):
    """Channels-last depthwise and small-group convolution."""

    layout_copies = "input, padded, a band of rows at a time"

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.block = params["vectors"] * self.lanes
        self.function = _compiled(params["rows"], params["vectors"], self.item, self.lanes, source_stamp())

    def pack(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        """(K, C/groups, R, S) -> (filter block, R, S, C/groups, block), and the bias in blocks."""
        filters, channels, height, width = weight.shape
        blocks = -(-filters // self.block)
        padded = np.zeros((blocks * self.block, channels, height, width), weight.dtype)
        padded[:filters] = weight
        packed = padded.reshape(blocks, self.block, channels, height, width).transpose(0, 3, 4, 2, 1)
        start = np.zeros(blocks * self.block, weight.dtype)
        if bias is not None:
            start[:filters] = bias
        return Packed(np.ascontiguousarray(packed).reshape(-1), start)

    def writes(self, out: tuple[int, ...]) -> bool:
        return out[1] == 1

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p, channels = self.problem, self.problem.in_channels // self.problem.groups
        (sh, sw), (dh, dw), (R, S), (height, width) = p.stride, p.dilation, p.kernel_size, p.conv_size
        span_h, panel_width = (R - 1) * dh + 1, (width - 1) * sw + (S - 1) * dw + 1
        row = panel_width * self.block
        row_bytes = sh * row * channels * self.item
        blocks = -(-p.out_channels // self.block)
        band, _ = split(height, width, 1, p.batch * blocks, row_bytes, self.wanted_jobs(2))
        plane = ((band - 1) * sh + span_h) * row
        taps = [
            ((r * dh * panel_width + s * dw) * self.block, (r * S + s) * channels * self.block)
            for r in range(R)
            for s in range(S)
        ]
        bands = -(-height // band)
        return record(
            GEOMETRY, p.batch * blocks * bands, channels * plane * self.item, {"taps": np.array(taps, np.int64)},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3],
            out_batch=out[0], out_row=out[2], out_column=out[3], in_height=p.in_size[0], in_width=p.in_size[1],
            out_height=height, out_width=width, filters=p.out_channels, group_channels=channels,
            group_filters=p.out_channels // p.groups, stride_h=sh, stride_w=sw, top=p.padding[0][0],
            left=p.padding[1][0], span_h=span_h, panel_width=panel_width, panel_plane=plane, n_taps=len(taps),
            height=band, bands=bands, blocks=blocks, epilogue=self.epilogue_address,
        )  # fmt: skip

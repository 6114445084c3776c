"""Gradient of the weights by im2col + GEMM: the output's gradient times panels of the column matrix.

With few input channels a vector of them would be mostly empty; the columns of a pixel, (r, s, c) side by
side, fill vectors whatever the channels. A job owns a block of filters with all their weights, builds panel
after panel of columns, and adds the products up. Blocks, panels and splits do not depend on the threads, as
in `fastconv.cpu.weight_tiled`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.contract import contract
from fastconv.cpu.host import host
from fastconv.cpu.kernel import Geometry, Params, fields, record
from fastconv.cpu.memory import fill, lanes_of
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.panels import pad_rows
from fastconv.cpu.tiles import channel_vector_tiles, per_tile_ns, step_ns
from fastconv.cpu.transpose import copy_vector, transpose
from fastconv.cpu.weight_kernel import WeightKernel, copy_gradient, odd_lines
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "grad_batch", "grad_channel", "grad_row", "grad_column",
    "in_height", "in_width", "out_height", "out_width", "channels", "filters", "kernel_h", "kernel_w", "elements",
    "stride_h", "stride_w", "top", "left", "span_h", "dilation_h", "dilation_w", "table",
    "band", "bands", "images", "splits", "length", "filter_block", "filter_blocks",
    "x_line", "pixel", "panel", "grad_pixel", "grad_size", "row",
)  # fmt: skip

_PANEL_PIXELS = 224  # enough steps to pay for padding a band, and for loading and storing a tile


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None: it takes every convolution."""
    return None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    length, filters = math.prod(problem.weight_shape[1:]), problem.out_channels // problem.groups
    tiles = channel_vector_tiles(length, max(4, filters), problem.itemsize)
    if (7, 2) in tiles:
        tiles = [*tiles, (8, 2)]  # numbers of filters are often multiples of 8
    return [{"rows": rows, "vectors": vectors} for rows, vectors in tiles]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    length, filters = math.prod(problem.weight_shape[1:]), problem.out_channels // problem.groups
    pixels = problem.batch * problem.groups * math.prod(problem.conv_size)
    tiles = -(-filters // rows) * -(-length // (vectors * host().lanes(problem.itemsize)))
    each = step_ns(rows, vectors) + per_tile_ns(rows, vectors) / _PANEL_PIXELS
    return pixels * (tiles * each + 0.2 * length)


def make(problem: ConvProblem, params: Params, threads: int) -> WeightIm2col:
    """Compile or load the kernel."""
    return WeightIm2col(problem, params, threads)


@inline
def _build_columns(padded, g, rows, panel, ITEM):
    """The columns of some output rows as (pixel, r, s, c), from their padded input.

    Whole vectors are copied; what they have too much, the next ones overwrite.
    """
    lanes = lanes_of(ITEM)
    together = g.kernel_w if g.dilation_w == 1 else 1  # taps whose pixels are neighbours
    for i in range(rows):
        for j in range(g.out_width):
            target = panel + ITEM * (i * g.out_width + j) * g.pixel
            for r in range(g.kernel_h):
                line = padded + ITEM * ((i * g.stride_h + r * g.dilation_h) * g.x_line + j * g.stride_w * g.channels)
                for s in range(0, g.kernel_w, together):
                    source = line + ITEM * s * g.dilation_w * g.channels
                    for v in range(0, together * g.channels, lanes):
                        copy_vector(source + ITEM * v, target + ITEM * v, ITEM)
                    target += ITEM * together * g.channels


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_im2col(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, rest = index % g.splits, index // g.splits
        k, group = rest % g.filter_blocks * g.filter_block, rest // g.filter_blocks
        filters, all_bands = min(g.filter_block, g.filters - k), g.images * g.bands
        gradient = scratch + ITEM * g.panel
        block = gradient + ITEM * g.grad_size
        padded = block + ITEM * g.filter_block * g.row
        fill(block, g.filter_block * g.row, 0.0, ITEM)
        for band in range(split * all_bands // g.splits, (split + 1) * all_bands // g.splits):
            n, first = band // g.bands, band % g.bands * g.band
            last = min(first + g.band, g.out_height)
            pixels = (last - first) * g.out_width
            image = x + ITEM * (n * g.x_batch + group * g.channels * g.x_channel)
            pad_rows(image, g, first, last, g.channels, padded, g.x_line, g.channels, ITEM)
            _build_columns(padded, g, last - first, scratch, ITEM)
            source = grad + ITEM * (n * g.grad_batch + (group * g.filters + k) * g.grad_channel)
            copy_gradient(source, g, first, last, filters, gradient, g.grad_pixel, ITEM)
            for c in range(0, g.length, WIDE):
                for kk in range(0, filters, ROWS):
                    o = block + ITEM * (kk * g.row + c)
                    contract(
                        (gradient + ITEM * kk, 1, g.grad_pixel), (scratch + ITEM * c, g.pixel), (g.table, 1, pixels),
                        (o, g.row, LANES), (o, g.row, min(ROWS, filters - kk), WIDE), 0, ROWS, VECS, ITEM, 0,
                    )  # fmt: skip
        result, taps = out + ITEM * (split * g.elements + (group * g.filters + k) * g.length), g.kernel_h * g.kernel_w
        for i in range(filters):
            source, target = block + ITEM * i * g.row, result + ITEM * i * g.length
            transpose(source, g.channels, target, taps, taps, g.channels, ITEM)

    return weight_im2col


class WeightIm2col(WeightKernel):
    """im2col + GEMM for the gradient of the weights of one problem."""

    layout_copies = "columns, in panels, and gradient of the output"

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        rows, wide = params["rows"], params["vectors"] * self.lanes
        self.function = _compiled(rows, params["vectors"], self.item, self.lanes, source_stamp())
        self.length, filters = math.prod(problem.weight_shape[1:]), problem.out_channels // problem.groups
        self.row = -(-self.length // wide) * wide
        quarter = host().l2 // 4 // (self.item * self.row)  # of L2: filters of a block, and pixels of a panel
        self.filter_block = -(-min(filters, max(rows, quarter // rows * rows)) // rows) * rows
        self.filter_blocks = -(-filters // self.filter_block)
        height, width = problem.conv_size
        self.band = min(height, max(1, min(_PANEL_PIXELS, quarter) // width))
        self.bands = -(-height // self.band)
        self.blocks = problem.groups * self.filter_blocks
        self.split_sum(problem.batch * self.bands, self.blocks)

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p, width = self.problem, self.problem.conv_size[1]
        pixel, grad_pixel = odd_lines(self.row, self.lanes), odd_lines(self.filter_block, self.lanes)
        panel, grad_size = self.band * width * pixel + self.lanes, self.band * width * grad_pixel
        channels, span_h = p.in_channels // p.groups, (p.kernel_size[0] - 1) * p.dilation[0] + 1
        x_line = ((width - 1) * p.stride[1] + (p.kernel_size[1] - 1) * p.dilation[1] + 1) * channels
        x_size = ((self.band - 1) * p.stride[0] + span_h) * x_line + self.lanes
        slab = self.item * (panel + grad_size + self.filter_block * self.row + whole_lines(x_size))
        return record(
            GEOMETRY, self.blocks * self.splits, slab, {"table": np.zeros((1, 2), np.int64)},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3], grad_batch=grad[0], grad_channel=grad[1],
            grad_row=grad[2], grad_column=grad[3], in_height=p.in_size[0], in_width=p.in_size[1],
            out_height=p.conv_size[0], out_width=width, channels=channels,
            filters=p.out_channels // p.groups, kernel_h=p.kernel_size[0], kernel_w=p.kernel_size[1],
            elements=self.elements, stride_h=p.stride[0], stride_w=p.stride[1], top=p.padding[0][0],
            left=p.padding[1][0], span_h=span_h, dilation_h=p.dilation[0], dilation_w=p.dilation[1], band=self.band,
            bands=self.bands, images=p.batch, splits=self.splits, length=self.length, filter_block=self.filter_block,
            filter_blocks=self.filter_blocks, x_line=x_line,
            pixel=pixel, panel=panel, grad_pixel=grad_pixel, grad_size=grad_size,
            row=self.row,
        )  # fmt: skip

"""Gradient of the weights of a depthwise convolution: every operand is a vector of channels.

A register tile holds the taps of one filter row, by vectors of channels: each step multiplies the output's
gradient at one pixel with the pixels that these taps read, which are neighbours in a padded band of the
input. A job owns a block of channels; splits of the bands add up in order afterwards, as in
`fastconv.cpu.weight_tiled`.
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
from fastconv.cpu.memory import fill
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.panels import pad_rows
from fastconv.cpu.tiles import FMA_NS
from fastconv.cpu.transpose import transpose
from fastconv.cpu.weight_kernel import WeightKernel, copy_gradient
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "grad_batch", "grad_channel", "grad_row", "grad_column",
    "in_height", "in_width", "out_height", "out_width", "channels", "elements", "kernel_h", "kernel_w",
    "stride_h", "stride_w", "top", "left", "span_h", "dilation_h", "dilation_w", "table",
    "band", "bands", "images", "splits", "x_line", "x_size", "grad_size",
)  # fmt: skip

_TILES = {3: (3, 4), 5: (5, 4), 7: (7, 2)}  # by taps in a row; other rows go in pieces of 4
_BAND_BYTES = 128 << 10


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.groups == problem.in_channels == problem.out_channels and problem.groups > 1:
        return None
    return "it is not depthwise with one filter for each channel"


def space(problem: ConvProblem) -> list[Params]:
    """One tile, by the width of the filters, with fewer vectors where there are few channels."""
    rows, vectors = _TILES.get(problem.kernel_size[1], (4, 4))
    if host().registers < 32:
        vectors = 1 if rows > 5 else 2
    return [{"rows": rows, "vectors": min(vectors, -(-problem.groups // host().lanes(problem.itemsize)))}]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    vectors = -(-problem.groups // host().lanes(problem.itemsize))
    pixels = problem.batch * math.prod(problem.conv_size)
    return 1000 + vectors * (2 * FMA_NS * pixels * math.prod(problem.kernel_size) + FMA_NS * pixels * 4)


def make(problem: ConvProblem, params: Params, threads: int) -> WeightDepthwise:
    """The kernel, to be compiled or loaded when it is first run."""
    return WeightDepthwise(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_depthwise(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, c = index % g.splits, index // g.splits * WIDE
        channels, taps, all_bands = min(WIDE, g.channels - c), g.kernel_h * g.kernel_w, g.images * g.bands
        panel = scratch + ITEM * g.x_size
        block = panel + ITEM * g.grad_size
        fill(block, taps * WIDE, 0.0, ITEM)
        for band in range(split * all_bands // g.splits, (split + 1) * all_bands // g.splits):
            n, first = band // g.bands, band % g.bands * g.band
            last = min(first + g.band, g.out_height)
            source = x + ITEM * (n * g.x_batch + c * g.x_channel)
            pad_rows(source, g, first, last, channels, scratch, g.x_line, WIDE, ITEM)
            source = grad + ITEM * (n * g.grad_batch + c * g.grad_channel)
            copy_gradient(source, g, first, last, channels, panel, WIDE, ITEM)
            for r in range(g.kernel_h):
                for s in range(0, g.kernel_w, ROWS):
                    o = block + ITEM * (r * g.kernel_w + s) * WIDE
                    a = scratch + ITEM * (r * g.dilation_h * g.x_line + s * g.dilation_w * WIDE)
                    contract(
                        (a, g.dilation_w * WIDE, g.stride_w * WIDE), (panel, WIDE),
                        (g.table, last - first, g.out_width), (o, WIDE, LANES),
                        (o, WIDE, min(ROWS, g.kernel_w - s), WIDE), 0, ROWS, VECS, ITEM, 1,
                    )  # fmt: skip
        transpose(block, WIDE, out + ITEM * (split * g.elements + c * taps), taps, taps, channels, ITEM)

    return weight_depthwise


class WeightDepthwise(WeightKernel):
    """Gradient of the weights for one depthwise problem."""

    layout_copies = "input, padded, and gradient of the output, a band of rows at a time"

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.wide = params["vectors"] * self.lanes
        self.function = _compiled(params["rows"], params["vectors"], self.item, self.lanes, source_stamp())
        self.blocks, (height, width) = -(-problem.groups // self.wide), problem.conv_size
        self.band = min(height, max(1, _BAND_BYTES // (width * self.wide * self.item)))
        self.bands = -(-height // self.band)
        self.split_sum(problem.batch * self.bands, self.blocks)

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p = self.problem
        (R, S), (sh, sw), (dh, dw) = p.kernel_size, p.stride, p.dilation
        width, span_h = p.conv_size[1], (R - 1) * dh + 1
        x_line = ((width - 1) * sw + (S - 1) * dw + 1) * self.wide
        x_size, grad_size = x_line * ((self.band - 1) * sh + span_h), self.band * width * self.wide
        table = [(row * sh * x_line, row * width * self.wide) for row in range(self.band)]
        return record(
            GEOMETRY, self.blocks * self.splits, self.item * (x_size + grad_size + whole_lines(R * S * self.wide)),
            {"table": np.array(table, np.int64)},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3], grad_batch=grad[0], grad_channel=grad[1],
            grad_row=grad[2], grad_column=grad[3], in_height=p.in_size[0], in_width=p.in_size[1],
            out_height=p.conv_size[0], out_width=width, channels=p.groups, elements=self.elements, kernel_h=R,
            kernel_w=S, stride_h=sh, stride_w=sw, top=p.padding[0][0], left=p.padding[1][0], span_h=span_h,
            dilation_h=dh, dilation_w=dw, band=self.band, bands=self.bands, images=p.batch, splits=self.splits,
            x_line=x_line, x_size=x_size, grad_size=grad_size,
        )  # fmt: skip

"""Gradient of the weights by im2col + GEMM, with the columns read where they are (implicit GEMM).

In rows of padded pixels, channels side by side, the elements that one filter row reads for an output pixel
are neighbours, and for the next pixel they lie ``stride * channels`` further on. So the column matrix need
not be built: its elements are the rows of the register tile, and the vectors are filters. That fills the
tile where there are few channels, as in the first layer of a network. A job owns a block of filters with
all their weights and adds up band after band of output rows. Blocks, bands and splits do not depend on the
threads, as in `fastconv.cpu.weight_tiled`.
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
from fastconv.cpu.memory import fill, ints
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.panels import pad_rows
from fastconv.cpu.tiles import channel_vector_tiles, per_tile_ns, step_ns
from fastconv.cpu.transpose import transpose
from fastconv.cpu.weight_kernel import COPY_NS, WeightKernel, copy_gradient, equal_blocks, odd_lines, prefetch_share
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "grad_batch", "grad_channel", "grad_row", "grad_column",
    "in_height", "in_width", "out_height", "out_width", "channels", "filters", "elements", "stride_h", "stride_w",
    "top", "left", "span_h", "step", "runs", "run", "starts", "kernel_taps", "table", "band", "bands", "images",
    "splits", "filter_block", "filter_blocks", "x_line", "x_size", "grad_pixel", "grad_size", "prefetched",
)  # fmt: skip

_BAND_PIXELS = 128  # of which the gradients for a tile's filters stay near


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None: it takes every convolution."""
    return None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    filters, run = problem.out_channels // problem.groups, _run(problem)
    tiles = channel_vector_tiles(filters, max(4, run), problem.itemsize)
    if run == 9 and (7, 2) in tiles:
        tiles = [*tiles, (9, 2)]  # three taps of three colours
    return [{"rows": rows, "vectors": vectors} for rows, vectors in tiles]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    filters, run = problem.out_channels // problem.groups, _run(problem)
    pixels = problem.batch * problem.groups * math.prod(problem.conv_size)
    runs = math.prod(problem.weight_shape[1:]) // run
    tiles = runs * -(-run // rows) * -(-filters // (vectors * host().lanes(problem.itemsize)))
    # Measured beside the other algorithms: panels of the gradient pass through L1 once for every few elements.
    each = 1.2 * (step_ns(rows, vectors, apart=False) + per_tile_ns(rows, vectors) / _BAND_PIXELS)
    copied = problem.itemsize * (
        _blocks(problem, params)[1] * math.prod(problem.in_shape) + math.prod(problem.out_shape)
    )
    return pixels * tiles * each + COPY_NS * copied


def make(problem: ConvProblem, params: Params, threads: int) -> WeightIm2col:
    """The kernel, to be compiled or loaded when it is first run."""
    return WeightIm2col(problem, params, threads)


def _run(problem: ConvProblem) -> int:
    """Elements of a column that are neighbours: those of a filter row, or with dilation of one tap."""
    channels = problem.in_channels // problem.groups
    return channels * (problem.kernel_size[1] if problem.dilation[1] == 1 else 1)


def _blocks(problem: ConvProblem, params: Params) -> Pair:
    """Filters of a block, which takes a quarter of L2, and how many blocks there are."""
    most = host().l2 // 4 // (problem.itemsize * math.prod(problem.weight_shape[1:]))
    return equal_blocks(
        problem.out_channels // problem.groups, most, params["vectors"] * host().lanes(problem.itemsize)
    )


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_im2col(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, rest = index % g.splits, index // g.splits
        k, group = rest % g.filter_blocks * g.filter_block, rest // g.filter_blocks
        filters, all_bands, starts = min(g.filter_block, g.filters - k), g.images * g.bands, ints(g.starts, g.runs, 1)
        panel, block = scratch + ITEM * g.x_size, scratch + ITEM * (g.x_size + g.grad_size)
        x += ITEM * group * g.channels * g.x_channel
        grad += ITEM * (group * g.filters + k) * g.grad_channel
        fill(block, g.runs * g.run * g.filter_block, 0.0, ITEM)
        stop, turns = (split + 1) * all_bands // g.splits, -(-filters // WIDE) * g.runs * -(-g.run // ROWS)
        for band in range(split * all_bands // g.splits, stop):
            n, first = band // g.bands, band % g.bands * g.band
            last = min(first + g.band, g.out_height)
            pad_rows(x + ITEM * n * g.x_batch, g, first, last, g.channels, scratch, g.x_line, g.channels, ITEM)
            copy_gradient(grad + ITEM * n * g.grad_batch, g, first, last, filters, panel, g.grad_pixel, ITEM)
            turn = 0
            for kk in range(0, filters, WIDE):
                for run in range(g.runs):
                    for e in range(0, g.run, ROWS):
                        if g.prefetched and band + 1 < stop:
                            prefetch_share(x, grad, g, band + 1, g.channels, filters, turn, turns, ITEM)
                            turn += 1
                        o = block + ITEM * ((run * g.run + e) * g.filter_block + kk)
                        contract(
                            (scratch + ITEM * (starts[run, 0] + e), 1, g.step), (panel + ITEM * kk, g.grad_pixel),
                            (g.table, last - first, g.out_width), (o, g.filter_block, LANES),
                            (o, g.filter_block, min(ROWS, g.run - e), WIDE), 0, ROWS, VECS, ITEM, 0,
                        )  # fmt: skip
        length, taps = g.runs * g.run, g.kernel_taps
        result = out + ITEM * (split * g.elements + (group * g.filters + k) * length)
        for c in range(g.channels):
            source = block + ITEM * c * g.filter_block
            transpose(source, g.channels * g.filter_block, result + ITEM * c * taps, length, taps, filters, ITEM)

    return weight_im2col


class WeightIm2col(WeightKernel):
    """im2col + GEMM for the gradient of the weights of one problem."""

    layout_copies = "input, padded, and gradient of the output, a band of rows at a time"

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function = _compiled(params["rows"], params["vectors"], self.item, self.lanes, source_stamp())
        self.filter_block, self.filter_blocks = _blocks(problem, params)
        height, width = problem.conv_size
        self.band = min(height, max(1, _BAND_PIXELS // width))
        self.bands = -(-height // self.band)
        self.blocks = problem.groups * self.filter_blocks
        self.split_sum(problem.batch * self.bands, self.blocks)

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p, (height, width) = self.problem, self.problem.conv_size
        (R, S), (sh, sw), (dh, dw) = p.kernel_size, p.stride, p.dilation
        channels, span_h, run = p.in_channels // p.groups, (R - 1) * dh + 1, _run(p)
        x_line, grad_pixel = ((width - 1) * sw + (S - 1) * dw + 1) * channels, odd_lines(self.filter_block, self.lanes)
        x_size, grad_size = whole_lines(x_line * ((self.band - 1) * sh + span_h)), self.band * width * grad_pixel
        block = math.prod(p.weight_shape[1:]) * self.filter_block
        table = [(row * sh * x_line, row * width * grad_pixel) for row in range(self.band)]
        starts = [r * dh * x_line + s * dw * channels for r in range(R) for s in range(0, S, run // channels)]
        return record(
            GEOMETRY, self.blocks * self.splits, self.item * (x_size + grad_size + block),
            {"table": np.array(table, np.int64), "starts": np.array(starts, np.int64)},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3], grad_batch=grad[0], grad_channel=grad[1],
            grad_row=grad[2], grad_column=grad[3], in_height=p.in_size[0], in_width=p.in_size[1], out_height=height,
            out_width=width, channels=channels, filters=p.out_channels // p.groups, elements=self.elements,
            stride_h=sh, stride_w=sw, top=p.padding[0][0], left=p.padding[1][0], span_h=span_h, step=sw * channels,
            runs=len(starts), run=run, kernel_taps=R * S, band=self.band, bands=self.bands, images=p.batch,
            splits=self.splits, filter_block=self.filter_block, filter_blocks=self.filter_blocks, x_line=x_line,
            x_size=x_size, grad_pixel=grad_pixel, grad_size=grad_size, prefetched=int(x[1] == grad[1] == 1),
        )  # fmt: skip

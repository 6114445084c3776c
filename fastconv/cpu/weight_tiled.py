"""Gradient of the weights, tiled: blocks of the result stay in cache while bands of both images pass by.

A weight's gradient is a sum over images and output pixels of the output's gradient times the pixel that the
weight was multiplied by. Filters are the rows of the register tile, input channels its vectors, and the
steps of the sum are pixels; a tap only shifts the input. A job owns a block of filters by channels, with
all taps; it copies band after band of output rows, and the input that they read, padded, into scratch,
where the microkernel finds every tap's pixels, and adds each band to its block.

Where there are few blocks, each is cut into splits of the bands, which add up in order afterwards. Blocks,
bands and splits depend on the problem and the caches, so the bits do not change with the number of threads.
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
from fastconv.cpu.weight_kernel import (
    COPY_NS,
    WeightKernel,
    copy_gradient,
    equal_blocks,
    odd_lines,
    prefetch_share,
    store_block,
)
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "grad_batch", "grad_channel", "grad_row", "grad_column",
    "in_height", "in_width", "out_height", "out_width", "channels", "filters", "elements",
    "stride_h", "stride_w", "top", "left", "span_h", "shifts", "kernel_taps", "merged", "table",
    "band", "bands", "images", "splits", "channel_block", "channel_blocks", "filter_block", "filter_blocks",
    "x_pixel", "x_line", "x_size", "grad_pixel", "grad_size", "prefetched",
)  # fmt: skip

_BAND_PIXELS = 256  # so many steps pay for loading and storing a register tile


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None: it takes every convolution."""
    return None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    tiles = channel_vector_tiles(channels, max(4, filters), problem.itemsize)
    return [{"rows": rows, "vectors": vectors} for rows, vectors in tiles]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    pixels = problem.batch * math.prod(problem.conv_size)
    in_pixels = pixels if math.prod(problem.kernel_size) == 1 else problem.batch * math.prod(problem.in_size)
    (_, channel_blocks), (_, filter_blocks) = _blocks(problem, params)
    tiles = -(-filters // rows) * -(-channels // (vectors * host().lanes(problem.itemsize)))
    each = pixels * step_ns(rows, vectors, apart=False) + -(-pixels // _BAND_PIXELS) * per_tile_ns(rows, vectors)
    copied = problem.itemsize * (filter_blocks * in_pixels * channels + channel_blocks * pixels * filters)
    return problem.groups * (tiles * math.prod(problem.kernel_size) * each + COPY_NS * copied)


def _blocks(problem: ConvProblem, params: Params) -> tuple[Pair, Pair]:
    """Channels of a block and how many blocks there are, and the same of filters; a block takes a quarter of L2."""
    side = math.isqrt(host().l2 // 4 // (problem.itemsize * math.prod(problem.kernel_size)))
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    wide = params["vectors"] * host().lanes(problem.itemsize)
    return equal_blocks(channels, side, wide), equal_blocks(filters, side, params["rows"])


def make(problem: ConvProblem, params: Params, threads: int) -> WeightTiled:
    """The kernel, to be compiled or loaded when it is first run."""
    return WeightTiled(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_tiled(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, rest = index % g.splits, index // g.splits
        c, rest = rest % g.channel_blocks * g.channel_block, rest // g.channel_blocks
        k, group = rest % g.filter_blocks * g.filter_block, rest // g.filter_blocks
        channels, filters = min(g.channel_block, g.channels - c), min(g.filter_block, g.filters - k)
        shifts, all_bands = ints(g.shifts, g.kernel_taps, 1), g.images * g.bands
        x += ITEM * (group * g.channels + c) * g.x_channel
        grad += ITEM * (group * g.filters + k) * g.grad_channel
        block = scratch + ITEM * (g.x_size + g.grad_size)
        fill(block, g.kernel_taps * g.filter_block * g.channel_block, 0.0, ITEM)
        stop = (split + 1) * all_bands // g.splits
        turns = -(-channels // WIDE) * -(-filters // ROWS) * g.kernel_taps
        for band in range(split * all_bands // g.splits, stop):
            n, first = band // g.bands, band % g.bands * g.band
            last = min(first + g.band, g.out_height)
            pixels, panel = scratch, scratch + ITEM * g.x_size
            pad_rows(x + ITEM * n * g.x_batch, g, first, last, channels, pixels, g.x_line, g.x_pixel, ITEM)
            copy_gradient(grad + ITEM * n * g.grad_batch, g, first, last, filters, panel, g.grad_pixel, ITEM)
            lines, steps = (1, (last - first) * g.out_width) if g.merged else (last - first, g.out_width)
            turn = 0
            for cc in range(0, channels, WIDE):
                for kk in range(0, filters, ROWS):
                    for tap in range(g.kernel_taps):
                        if g.prefetched and band + 1 < stop:
                            prefetch_share(x, grad, g, band + 1, channels, filters, turn, turns, ITEM)
                            turn += 1
                        o = block + ITEM * ((tap * g.filter_block + kk) * g.channel_block + cc)
                        contract(
                            (panel + ITEM * kk, 1, g.grad_pixel),
                            (pixels + ITEM * (shifts[tap, 0] + cc), g.stride_w * g.x_pixel),
                            (g.table, lines, steps), (o, g.channel_block, LANES),
                            (o, g.channel_block, min(ROWS, filters - kk), WIDE), 0, ROWS, VECS, ITEM, 0,
                        )  # fmt: skip
        result = out + ITEM * (split * g.elements + ((group * g.filters + k) * g.channels + c) * g.kernel_taps)
        store_block(
            block, g.filter_block, g.channel_block, filters, channels, result, g.channels, g.kernel_taps, ITEM
        )  # fmt: skip

    return weight_tiled


class WeightTiled(WeightKernel):
    """Tiled gradient of the weights for one problem."""

    layout_copies = "input, padded, and gradient of the output, a band of rows at a time"

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function = _compiled(params["rows"], params["vectors"], self.item, self.lanes, source_stamp())
        (self.channel_block, self.channel_blocks), (self.filter_block, self.filter_blocks) = _blocks(problem, params)
        height, width = problem.conv_size
        self.band = min(height, max(1, _BAND_PIXELS // width))
        self.bands = -(-height // self.band)
        blocks = problem.groups * self.channel_blocks * self.filter_blocks
        self.blocks = blocks
        self.split_sum(problem.batch * self.bands, blocks)

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p = self.problem
        (height, width), (R, S), (sh, sw), (dh, dw) = p.conv_size, p.kernel_size, p.stride, p.dilation
        size, top, left = p.in_size, p.padding[0][0], p.padding[1][0]
        if (R, S) == (1, 1) and p.padding == ((0, 0), (0, 0)):
            # Only the pixels that the stride does not pass over.
            x, (sh, sw), size = (*x[:2], x[2] * sh, x[3] * sw), (1, 1), p.conv_size
        span_h, span_w = (R - 1) * dh + 1, (S - 1) * dw + 1
        # An odd number of cache lines from pixel to pixel spreads them over all sets of the cache.
        x_pixel, grad_pixel = (odd_lines(n, self.lanes) for n in (self.channel_block, self.filter_block))
        x_line = ((width - 1) * sw + span_w) * x_pixel
        x_size, grad_size = x_line * ((self.band - 1) * sh + span_h), self.band * width * grad_pixel
        block = whole_lines(math.prod(p.kernel_size) * self.filter_block * self.channel_block)
        table = [(row * width * grad_pixel, row * sh * x_line) for row in range(self.band)]
        shifts = [r * dh * x_line + s * dw * x_pixel for r in range(R) for s in range(S)]
        return record(
            GEOMETRY, self.blocks * self.splits, self.item * (x_size + grad_size + block),
            {"table": np.array(table, np.int64), "shifts": np.array(shifts, np.int64)},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3], grad_batch=grad[0], grad_channel=grad[1],
            grad_row=grad[2], grad_column=grad[3], in_height=size[0], in_width=size[1], out_height=height,
            out_width=width, channels=p.in_channels // p.groups, filters=p.out_channels // p.groups,
            elements=self.elements, stride_h=sh, stride_w=sw, top=top, left=left, span_h=span_h,
            kernel_taps=R * S, merged=int(sh == sw == span_w == 1), band=self.band, bands=self.bands, images=p.batch,
            splits=self.splits, channel_block=self.channel_block, channel_blocks=self.channel_blocks,
            filter_block=self.filter_block, filter_blocks=self.filter_blocks,
            x_pixel=x_pixel, x_line=x_line, x_size=x_size, grad_pixel=grad_pixel, grad_size=grad_size,
            prefetched=int(x[1] == grad[1] == 1),
        )  # fmt: skip

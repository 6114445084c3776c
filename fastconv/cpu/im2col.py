"""im2col + GEMM: panels of the column matrix in cache, multiplied by the microkernel.

The column matrix has a row for each element of a filter (K = R*S*C/groups of them) and a column for each
output pixel; the convolution is weights times columns (Chellapilla et al., 2006). It is never built
whole: each thread builds a panel of as many pixels as fit in half of L2, multiplies it, and reuses it.

Channels-last, a panel holds one pixel after the other: pixels are the rows of the register tile, filters
its vectors. Contiguous (NCHW), it holds one filter element after the other: filters are the rows, pixels
the vectors, and weights that come raw are used as they are. There the columns of a 1x1 convolution with
stride 1 are the image itself, and nothing is copied.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.contract import contract
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Params, fields, record, share_evenly
from fastconv.cpu.memory import copy, fill
from fastconv.cpu.pack import (
    FilterPacker,
    RowPacker,
    filter_blocks,
    packing_elements,
    packing_fields,
    packing_ns,
    row_strides,
    weights_of_block,
    whole_lines,
)
from fastconv.cpu.ranges import inside
from fastconv.cpu.tiles import filter_vector_tiles, per_tile_ns, pixel_vector_tiles, step_ns
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "height", "width", "out_batch", "out_filter", "out_pixel",
    "out_width", "pixels", "channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "top", "left",
    "dilation_h", "dilation_w", "groups", "filters", "panel", "panels", "blocks", "blocks_per_job",
    "block_jobs", "step_channel", "step_tap", "a_row", "a_step", "a_block", "a_group", "in_place",
    "raw", "length", "kernel_taps", "panel_elements", "taps", "epilogue",
)  # fmt: skip

_ONE_TAP = np.zeros((1, 2), np.int64)  # a panel is one sum with no offsets


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "it does not pool" if problem.pool else None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    tiles = pixel_vector_tiles if problem.memory_format == "contiguous" else filter_vector_tiles
    return [{"rows": rows, "vectors": vectors} for rows, vectors in tiles(problem)]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    wide = vectors * host().lanes(problem.itemsize)
    pixels, filters = math.prod(problem.conv_size), problem.out_channels // problem.groups
    length = math.prod(problem.weight_shape[1:])
    if problem.memory_format == "contiguous":
        tiles, packing = -(-pixels // wide) * -(-filters // rows), 0.0
    else:
        tiles, packing = -(-filters // wide) * -(-pixels // rows), packing_ns(problem)
    build = 0.0 if _is_image(problem) else 0.35 * length * pixels * (1 if problem.stride[1] == 1 else 3)
    each = tiles * (length * step_ns(rows, vectors) + per_tile_ns(rows, vectors)) + build
    return problem.batch * problem.groups * each + packing


def make(problem: ConvProblem, params: Params, threads: int) -> ConvKernel:
    """The kernel, to be compiled or loaded when it is first run."""
    form = _PixelVectors if problem.memory_format == "contiguous" else _PixelRows
    return form(problem, params, threads)


def _is_image(problem: ConvProblem) -> bool:
    """Whether the columns are the (contiguous) image itself."""
    unpadded = problem.padding == ((0, 0), (0, 0))
    return problem.memory_format == "contiguous" and problem.kernel_size == problem.stride == (1, 1) and unpadded


@inline
def _split(g, index):
    """The image, group, first pixel, pixels and range of filter blocks of a job."""
    block_job, rest = index % g.block_jobs, index // g.block_jobs
    first, rest = rest % g.panels * g.panel, rest // g.panels
    first_block = block_job * g.blocks_per_job
    last_block = min(first_block + g.blocks_per_job, g.blocks)
    return rest // g.groups, rest % g.groups, first, min(g.panel, g.pixels - first), first_block, last_block


@inline
def _build_rows(x, g, first, count, panel, ITEM):
    """Columns of pixels [first, first + count), one pixel after the other, as (r, s, c)."""
    length = g.kernel_h * g.kernel_w * g.channels
    for i in range(count):
        oh, ow = (first + i) // g.out_width, (first + i) % g.out_width
        h, w = oh * g.stride_h - g.top, ow * g.stride_w - g.left
        s0, s1 = inside(w, g.dilation_w, g.width, g.kernel_w)
        for r in range(g.kernel_h):
            target = panel + ITEM * (i * length + r * g.kernel_w * g.channels)
            row = h + r * g.dilation_h
            if row < 0 or row >= g.height or s0 == s1:
                fill(target, g.kernel_w * g.channels, 0.0, ITEM)
                continue
            fill(target, s0 * g.channels, 0.0, ITEM)
            fill(target + ITEM * s1 * g.channels, (g.kernel_w - s1) * g.channels, 0.0, ITEM)
            source = x + ITEM * (row * g.x_row + (w + s0 * g.dilation_w) * g.x_column)
            target += ITEM * s0 * g.channels
            if g.dilation_w == 1 and g.x_channel == 1 and g.x_column == g.channels:
                copy(source, 1, target, (s1 - s0) * g.channels, ITEM)
            else:
                for s in range(s1 - s0):
                    copy(source + ITEM * s * g.dilation_w * g.x_column, g.x_channel,
                         target + ITEM * s * g.channels, g.channels, ITEM)  # fmt: skip


@inline
def _build_vectors(x, g, first, count, panel, ITEM):
    """Columns of pixels [first, first + count), one filter element after the other, zeros after the last."""
    for c in range(g.channels):
        for r in range(g.kernel_h):
            for s in range(g.kernel_w):
                step = c * g.step_channel + (r * g.kernel_w + s) * g.step_tap
                target, done = panel + ITEM * step * g.panel, 0
                while done < count:
                    oh, ow = (first + done) // g.out_width, (first + done) % g.out_width
                    run = min(count - done, g.out_width - ow)
                    row = oh * g.stride_h - g.top + r * g.dilation_h
                    column = ow * g.stride_w - g.left + s * g.dilation_w
                    i0, i1 = inside(column, g.stride_w, g.width, run)
                    if row < 0 or row >= g.height:
                        i0, i1 = run, run
                    fill(target, i0, 0.0, ITEM)
                    source = x + ITEM * (c * g.x_channel + row * g.x_row + (column + i0 * g.stride_w) * g.x_column)
                    copy(source, g.stride_w * g.x_column, target + ITEM * i0, i1 - i0, ITEM)
                    fill(target + ITEM * i1, run - i1, 0.0, ITEM)
                    done += run
                    target += ITEM * run
                fill(target, g.panel - count, 0.0, ITEM)


@cache
def _pixel_rows(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    BLOCK = VECS * LANES

    @job_kernel(GEOMETRY)
    def im2col_rows(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, group, first, pixels, first_block, last_block = _split(g, index)
        _build_rows(x + ITEM * (n * g.x_batch + group * g.channels * g.x_channel), g, first, pixels, scratch, ITEM)
        for block in range(first_block, last_block):
            b = weights_of_block(weight, g, group, block, scratch + ITEM * g.panel_elements, BLOCK, ITEM)
            start = bias + ITEM * (group * g.blocks + block) * BLOCK
            filters = min(BLOCK, g.filters - block * BLOCK)
            o = out + ITEM * (n * g.out_batch + group * g.filters + block * BLOCK + first * g.out_pixel)
            for p in range(0, pixels, ROWS):
                contract(
                    (scratch + ITEM * p * g.length, g.length, 1), (b, BLOCK), (g.taps, 1, g.length), (start, 0, LANES),
                    (o + ITEM * p * g.out_pixel, g.out_pixel, min(ROWS, pixels - p), filters),
                    g.epilogue, ROWS, VECS, ITEM, 0,
                )  # fmt: skip

    return im2col_rows


@cache
def _pixel_vectors(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def im2col_vectors(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, group, first, pixels, first_block, last_block = _split(g, index)
        image = x + ITEM * (n * g.x_batch + group * g.channels * g.x_channel)
        panel, step = scratch, g.panel
        if g.in_place:
            panel, step = image + ITEM * first, g.x_channel
        else:
            _build_vectors(image, g, first, pixels, scratch, ITEM)
        for tile in range(0, pixels, WIDE):
            # In place, the last tile moves back onto pixels that it or another job does as well, for the
            # image ends there: they get the same values twice.
            p = min(tile, pixels - WIDE) if g.in_place else tile
            for block in range(first_block, last_block):
                k = group * g.filters + block * ROWS
                o = out + ITEM * (n * g.out_batch + k * g.out_filter + first)
                contract(
                    (weight + ITEM * (group * g.a_group + block * g.a_block), g.a_row, g.a_step),
                    (panel + ITEM * p, step),
                    (g.taps, 1, g.length),
                    (bias + ITEM * k * LANES, LANES, 0),
                    (o + ITEM * p, g.out_filter, min(ROWS, g.filters - block * ROWS), pixels - p),
                    g.epilogue, ROWS, VECS, ITEM, 0,
                )  # fmt: skip

    return im2col_vectors


class _Im2col(ConvKernel):
    """What both forms share: panels of pixels times blocks of filters."""

    tile: int  # pixels of a register tile
    block: int  # filters of a register tile

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.vectors = params["rows"], params["vectors"]
        self.length = math.prod(problem.weight_shape[1:])
        self.pixels = math.prod(problem.conv_size)

    def panel(self) -> int:
        """Pixels of a panel: half of L2, but two panels for each thread where there are enough pixels."""
        fitting = host().l2 // 2 // (self.length * self.item)
        shared = self.problem.batch * self.problem.groups * self.pixels // (2 * self.threads)
        return self.tile * max(1, min(fitting, shared, self.pixels) // self.tile)

    def fill(
        self, panel: int, x: tuple[int, ...], out: tuple[int, ...], out_pixel: int, packed: int = 0, **form: int
    ) -> Geometry:
        p = self.problem
        panels, blocks = -(-self.pixels // panel), filter_blocks(p, self.block)
        images = p.batch * p.groups
        # Jobs that share pixels build the same panel, so filters are split only to occupy every thread.
        block_jobs = min(blocks, max(1, -(-self.threads // max(1, images * panels))))
        blocks_per_job = -(-blocks // block_jobs)
        tiles, per_job = -(-self.pixels // self.tile), panel // self.tile
        if form.get("in_place"):
            per_job, blocks_per_job = share_evenly(tiles, blocks, (per_job, blocks_per_job), images, self.threads)
        else:
            per_job, _ = share_evenly(tiles, 1, (per_job, 1), images * block_jobs, self.threads)
        panel = per_job * self.tile
        panels, block_jobs = -(-self.pixels // panel), -(-blocks // blocks_per_job)
        slab = 0 if form.get("in_place") else whole_lines(panel * self.length) * self.item
        slab += self.item * packed
        return record(
            GEOMETRY, images * panels * block_jobs, slab, {"taps": _ONE_TAP},
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3], height=p.in_size[0], width=p.in_size[1],
            out_batch=out[0], out_filter=out[1], out_pixel=out_pixel, out_width=p.conv_size[1], pixels=self.pixels,
            channels=p.in_channels // p.groups, kernel_h=p.kernel_size[0], kernel_w=p.kernel_size[1],
            stride_h=p.stride[0], stride_w=p.stride[1], top=p.padding[0][0], left=p.padding[1][0],
            dilation_h=p.dilation[0], dilation_w=p.dilation[1], groups=p.groups,
            panel_elements=whole_lines(panel * self.length), **packing_fields(p), panel=panel, panels=panels,
            blocks=blocks, blocks_per_job=blocks_per_job, block_jobs=block_jobs, epilogue=self.epilogue_address, **form,
        )  # fmt: skip


class _PixelRows(_Im2col):
    """Channels-last: pixels are the rows of a tile, filters its vectors."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.tile, self.block = self.rows, self.vectors * self.lanes
        self.function = _pixel_rows(self.rows, self.vectors, self.item, self.lanes, source_stamp())
        self.pack = FilterPacker(problem, self.block, self.lanes)
        self.layout_copies = "columns, in panels"

    def writes(self, out: tuple[int, ...]) -> bool:
        return out[1] == 1 and out[2] == self.problem.conv_size[1] * out[3]

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        return self.fill(self.panel(), x, out, out[3], packing_elements(self.problem, self.block))


class _PixelVectors(_Im2col):
    """Contiguous: filters are the rows of a tile, pixels its vectors."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.tile, self.block = self.vectors * self.lanes, self.rows
        self.function = _pixel_vectors(self.rows, self.vectors, self.item, self.lanes, source_stamp())
        self.pack = RowPacker(problem, self.block, self.lanes)
        self.layout_copies = "none" if _is_image(problem) and self.pixels >= self.tile else "columns, in panels"

    def writes(self, out: tuple[int, ...]) -> bool:
        return out[3] == 1 and out[2] == self.problem.conv_size[1]

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        dense = x[3] == 1 and x[2] == p.in_size[1]
        in_place = dense and _is_image(p) and self.pixels >= self.tile
        strides = row_strides(p, self.block)
        # The elements of a column follow the weights' order, so that weights are read with one stride.
        step = min(strides["a_channel"], strides["a_tap"])
        form = {name: strides[name] for name in ("a_row", "a_block", "a_group")}
        form |= {"a_step": step, "step_channel": strides["a_channel"] // step, "step_tap": strides["a_tap"] // step}
        return self.fill(self.panel(), x, out, 1, in_place=int(in_place), **form)

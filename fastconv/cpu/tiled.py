"""Tiled convolution: a band of output rows stays in cache from the padded input to the pooled result.

A job copies the input rows of its band, padded, into scratch; convolves them into a second piece of
scratch, a block of channels at a time; and applies pooling on the way out. Bias and activation happen in
the microkernel's registers. With pooling, the unpooled map never reaches memory.

In one form, pixels are the rows of the register tile and filters its vectors; the band is laid out
channels-last, whatever the image is. In the other, for contiguous (NCHW) images, filters are the rows and
pixels the vectors, and weights that come raw need no packing: the band has a fixed pitch so that vectors
run across the ends of rows, and is split into phases by the stride so that neighbouring outputs read
neighbouring inputs. Its vectors are seldom aligned, which costs more than the other form's transposition
unless the weights are large and raw.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray

from fastconv.cpu import bands
from fastconv.cpu.bands import GEOMETRY
from fastconv.cpu.contract import contract
from fastconv.cpu.emit import LINE_BYTES
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Params
from fastconv.cpu.memory import call, ints
from fastconv.cpu.pack import weights_of_block
from fastconv.cpu.panels import pad_rows, pad_vectors
from fastconv.cpu.ranges import inside
from fastconv.cpu.tiles import filter_vector_tiles, pixel_vector_tiles
from fastconv.cpu.transpose import move
from fastconv.jit import inline, job_kernel
from fastconv.problem import ConvProblem

cost = bands.cost


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None: it takes every forward convolution."""
    return None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU, with the channels whole or in blocks whose weights fit in cache.

    ``pixel_vectors`` says which form of the kernel runs: 0 channels-last, either one contiguous, or where
    filters would leave many lanes of their vectors empty.
    """
    filters, lanes = problem.out_channels // problem.groups, host().lanes(problem.itemsize)
    few = filters < 0.6 * -(-filters // lanes) * lanes
    forms = (0, 1) if problem.memory_format == "contiguous" or few else (0,)
    return [
        {"rows": rows, "vectors": vectors, "channels": channels, "pixel_vectors": form}
        for form in forms
        for rows, vectors in (pixel_vector_tiles if form else filter_vector_tiles)(problem)
        for channels in bands.channel_blocks(problem, rows, vectors, form)
    ]


def make(problem: ConvProblem, params: Params, threads: int) -> ConvKernel:
    """The kernel, to be compiled or loaded when it is first run."""
    if params["pixel_vectors"]:
        return bands.PixelVectors(problem, params, threads, _pixel_vectors)
    return bands.PixelRows(problem, params, threads, _pixel_rows)


@inline
def _split(g, index):
    """The image, group, block range and output rows of a job."""
    chunk, rest = index % g.chunks, index // g.chunks
    first, rest = rest % g.bands * g.height, rest // g.bands
    group, n = rest % g.groups, rest // g.groups
    last_block = min(g.blocks, (chunk + 1) * g.blocks_per_job)
    return n, group, chunk * g.blocks_per_job, last_block, first, min(first + g.height, g.out_height)


@inline
def _is_missing(g, index, scratch):
    """Whether the band of a job is not what the last job on this thread has left in the panel; notes that it will be.

    The panel comes after a cache line that holds the number of its band.
    """
    note, band = ints(scratch, 1, 1), index // g.chunks + 1
    if g.channel_block == g.channels and note[0, 0] == band:
        return False
    note[0, 0] = band
    return True


@inline
def _conv_rows(g, first, last):
    """Rows of the convolution that output rows [first, last) need."""
    if g.window == 0:
        return first, last
    begin = max(0, first * g.pool_stride - g.pool_padding)
    return begin, min(g.conv_height, (last - 1) * g.pool_stride - g.pool_padding + g.pool_span)


@inline
def _taps_inside(g, row):
    """First and number of the taps of a convolution row that are not in the padding above or below."""
    first, last = inside(row * g.stride_h - g.top, g.dilation_h, g.in_height, g.kernel_h)
    across = g.n_taps // g.kernel_h
    return first * across, (last - first) * across


@inline
def _finish(g, maps, map_row, map_column, map_filter, filters, out, first, last, top, ITEM):
    """Write output rows [first, last) of one block of filters, pooled if the problem says so."""
    if g.window:
        origin = maps - ITEM * top * map_row
        call(
            g.pool, (origin, map_row, map_column, map_filter, g.conv_height, g.conv_width, filters,
                     out, g.out_row, g.out_column, g.out_filter, 0, first, last, g.window),
        )  # fmt: skip
    else:
        for row in range(first, last):
            move(
                maps + ITEM * (row - first) * map_row, map_column, map_filter,
                out + ITEM * row * g.out_row, g.out_column, g.out_filter, g.conv_width, filters, ITEM,
            )  # fmt: skip


@cache
def _pixel_rows(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    BLOCK = VECS * LANES

    @job_kernel(GEOMETRY)
    def tiled_rows(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, group, first_block, last_block, first, last = _split(g, index)
        top, bottom = _conv_rows(g, first, last)
        panel, missing = scratch + LINE_BYTES, _is_missing(g, index, scratch)
        packed = panel + ITEM * g.panel_size
        maps = packed + ITEM * g.packed_size
        image = x + ITEM * (n * g.x_batch + group * g.channels * g.x_channel)
        result = out + ITEM * (n * g.out_batch + group * g.filters * g.out_filter)
        for c in range(0, g.channels, g.channel_block):
            channels = min(g.channel_block, g.channels - c)
            source = image + ITEM * c * g.x_channel
            if missing:
                pad_rows(source, g, top, bottom, channels, panel, g.panel_row, g.channel_block, ITEM)
            epilogue = g.epilogue if c + channels == g.channels else 0
            steps = channels * g.merged
            for block in range(first_block, last_block):
                w = weights_of_block(weight, g, group, block, packed, BLOCK, ITEM) + ITEM * c * BLOCK
                start = bias + ITEM * (group * g.blocks + block) * BLOCK
                filters = min(BLOCK, g.filters - block * BLOCK) if g.straight else BLOCK
                for row in range(top, bottom):
                    target = maps + ITEM * ((block - first_block) * g.map_size + (row - top) * g.map_row)
                    if g.straight:
                        target = result + ITEM * (block * BLOCK + row * g.out_row)
                    first_tap, n_taps = _taps_inside(g, row)
                    a = panel + ITEM * (row - top) * g.stride_h * g.panel_row
                    for p in range(0, g.conv_width, ROWS):
                        o = target + ITEM * p * g.map_column
                        contract(
                            (a + ITEM * p * g.stride_w * g.channel_block, g.stride_w * g.channel_block, 1),
                            (w, BLOCK),
                            (g.taps + 16 * first_tap, n_taps, steps),
                            (o, g.map_column, LANES) if c else (start, 0, LANES),
                            (o, g.map_column, min(ROWS, g.conv_width - p), filters),
                            epilogue, ROWS, VECS, ITEM, 0,
                        )  # fmt: skip
        if not g.straight:
            for block in range(first_block, last_block):
                _finish(
                    g, maps + ITEM * (block - first_block) * g.map_size, g.map_row, g.map_column, 1,
                    min(BLOCK, g.filters - block * BLOCK), result + ITEM * block * BLOCK * g.out_filter,
                    first, last, top, ITEM,
                )  # fmt: skip

    return tiled_rows


@cache
def _pixel_vectors(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def tiled_vectors(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, group, first_block, last_block, first, last = _split(g, index)
        top, bottom = _conv_rows(g, first, last)
        pixels = (bottom - top - 1) * g.pitch + g.conv_width
        panel, missing = scratch + LINE_BYTES, _is_missing(g, index, scratch)
        maps = panel + ITEM * g.panel_size
        image = x + ITEM * (n * g.x_batch + group * g.channels * g.x_channel)
        result = out + ITEM * (n * g.out_batch + group * g.filters * g.out_filter)
        for c in range(0, g.channels, g.channel_block):
            channels = min(g.channel_block, g.channels - c)
            if missing:
                pad_vectors(image + ITEM * c * g.x_channel, g, top, bottom, channels, panel, ITEM)
            epilogue = g.epilogue if c + channels == g.channels else 0
            for p in range(0, pixels, WIDE):
                for block in range(first_block, last_block):
                    k = group * g.filters + block * ROWS
                    o = maps + ITEM * ((block - first_block) * g.map_size + p)
                    contract(
                        (weight + ITEM * (group * g.a_group + block * g.a_block + c * g.a_step), g.a_row, g.a_step),
                        (panel + ITEM * p, g.panel_channel),
                        (g.taps, g.n_taps, channels),
                        (o, g.map_filter, LANES) if c else (bias + ITEM * k * LANES, LANES, 0),
                        (o, g.map_filter, min(ROWS, g.filters - block * ROWS), WIDE),
                        epilogue, ROWS, VECS, ITEM, 0,
                    )  # fmt: skip
        for block in range(first_block, last_block):
            _finish(
                g, maps + ITEM * (block - first_block) * g.map_size, g.pitch, 1, g.map_filter,
                min(ROWS, g.filters - block * ROWS), result + ITEM * block * ROWS * g.out_filter,
                first, last, top, ITEM,
            )  # fmt: skip

    return tiled_vectors

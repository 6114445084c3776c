"""Depthwise convolution and small groups.

With one channel in a group, a vector of filters that share a broadcast input would be mostly empty.
Channels-last, the input of a depthwise convolution is therefore a vector too: the microkernel multiplies
vectors of neighbouring channels where they lie, over the taps that fall inside the image
(`geometry.lines`), with no workspace.

Where vectors are pixels, groups cost nothing. So contiguous (NCHW) images, and groups of a few channels or
filters in either format, have the kernel of `tiled` in its form with pixel vectors, with register tiles of
as few rows as a group has filters.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba import carray

from fastconv.cpu import bands, tiled
from fastconv.cpu.contract import contract
from fastconv.cpu.geometry import lines
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Params, fields, record, split
from fastconv.cpu.memory import ints
from fastconv.cpu.pack import ChannelPacker
from fastconv.cpu.tiles import FMA_NS, per_tile_ns, pixel_vector_tiles
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "lines", "line_count", "lines_per_job", "line_jobs", "taps", "blocks", "channels",
    "x_batch", "x_step", "out_batch", "epilogue", "n_weights",
)  # fmt: skip

_MOST_CHANNELS = 8  # of a group: beyond, filters fill enough of a vector
_ROW_TILES = {32: [(7, 2), (4, 4), (14, 1)], 16: [(4, 2), (7, 1), (2, 4)]}


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    channels = problem.in_channels // problem.groups
    if problem.groups == 1:
        return "it has one group"
    return f"its groups have {channels} channels, more than {_MOST_CHANNELS}" if channels > _MOST_CHANNELS else None


def space(problem: ConvProblem) -> list[Params]:
    """Register tiles that suit vectors of channels, where there are enough, and rows of few filters."""
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    lanes = host().lanes(problem.itemsize)
    found = []
    if problem.memory_format == "channels_last" and channels == filters == 1 and not problem.pool:
        tiles = [tile for tile in _ROW_TILES[host().registers] if tile[1] * lanes <= problem.groups]
        found = [{"rows": rows, "vectors": vectors, "channels": 1, "pixel_vectors": 0} for rows, vectors in tiles]
    tiles = pixel_vector_tiles(problem)
    return found or [
        {"rows": rows, "vectors": vectors, "channels": channels, "pixel_vectors": 1} for rows, vectors in tiles
    ]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    if params["pixel_vectors"]:
        return bands.cost(problem, params)
    rows, vectors = params["rows"], params["vectors"]
    height, width = problem.conv_size
    tiles = height * -(-width // rows) * -(-problem.out_channels // (vectors * host().lanes(problem.itemsize)))
    taps = math.prod(problem.kernel_size)
    # Each multiplication has a load of its own, and each row of a tap an address.
    each = taps * FMA_NS * (1.3 * (rows + 1) * vectors + 1.6 * rows) + per_tile_ns(rows, vectors)
    return problem.batch * tiles * each


def make(problem: ConvProblem, params: Params, threads: int) -> ConvKernel:
    """The kernel, to be compiled or loaded when it is first run."""
    if params["pixel_vectors"]:
        return tiled.make(problem, params, threads)
    return Depthwise(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    BLOCK = VECS * LANES

    @job_kernel(GEOMETRY)
    def depthwise(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        first_line, n = index % g.line_jobs * g.lines_per_job, index // g.line_jobs
        last_line = min(first_line + g.lines_per_job, g.line_count)
        table = ints(g.lines, g.line_count, 8)
        for block in range(g.blocks):
            # The last block moves back onto channels already done, which get the same values again.
            c = min(block * BLOCK, g.channels - BLOCK)
            for line in range(first_line, last_line):
                x_line, out_line, pixels, x_row, out_row, tap, n_taps, steps = table[line]
                o = out + ITEM * (n * g.out_batch + out_line + c)
                for p in range(0, pixels, ROWS):
                    contract(
                        (x + ITEM * (n * g.x_batch + x_line + p * x_row + c), x_row, g.x_step),
                        (weight + ITEM * block * g.n_weights, BLOCK),
                        (g.taps + 16 * tap, n_taps, steps),
                        (bias + ITEM * c, 0, LANES),
                        (o + ITEM * p * out_row, out_row, min(ROWS, pixels - p), BLOCK),
                        g.epilogue, ROWS, VECS, ITEM, 1,
                    )  # fmt: skip

    return depthwise


class Depthwise(ConvKernel):
    """Channels-last depthwise convolution, one filter for each channel."""

    lane_axis = 1

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.block = params["rows"], params["vectors"] * self.lanes
        self.function = _compiled(self.rows, params["vectors"], self.item, self.lanes, source_stamp())
        self.pack = ChannelPacker(problem, self.block)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        found = lines(p, x, out, self.block, self.rows, merged=True)
        count = len(found.lines)
        line_bytes = math.prod(p.in_shape[1:]) * self.item // count
        per_job, _ = split(count, line_bytes, 1, 0, p.batch, self.wanted_jobs(4))
        line_jobs = -(-count // per_job)
        return record(
            GEOMETRY, p.batch * line_jobs, 0, {"lines": found.lines, "taps": found.taps},
            line_count=count, lines_per_job=per_job, line_jobs=line_jobs, blocks=-(-p.out_channels // self.block),
            channels=p.out_channels, x_batch=x[0], x_step=p.dilation[1] * x[3], out_batch=out[0],
            epilogue=self.epilogue_address, n_weights=math.prod(p.kernel_size) * self.block,
        )  # fmt: skip

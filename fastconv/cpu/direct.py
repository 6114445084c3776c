"""Direct convolution: the microkernel walks the input where it lies, with no workspace.

A register tile is ROWS pixels of one line by VECS vectors of filters; the sum runs over the taps that
fall inside the image and over the channels. Padding costs nothing: `geometry.lines` splits the map into
rectangles whose pixels all see the same taps, so the taps outside are never visited.

The input may have any strides. The output is written as vectors of filters where those are neighbours
in memory (channels-last), and through a tile of scratch where they are not.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba import carray

from fastconv.cpu.contract import contract
from fastconv.cpu.geometry import Lines, lines, tiles_and_steps
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Params, fields, record, split
from fastconv.cpu.memory import ints
from fastconv.cpu.pack import (
    FilterPacker,
    filter_blocks,
    packing_elements,
    packing_fields,
    packing_ns,
    weights_of_block,
    whole_lines,
)
from fastconv.cpu.tiles import FMA_NS, filter_vector_tiles, per_tile_ns, step_ns
from fastconv.cpu.transpose import move
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem, MemoryFormat
from fastconv.sizes import Pair

GEOMETRY = fields(
    "lines", "line_count", "of_image", "images", "lines_per_job", "line_jobs", "taps", "blocks", "blocks_per_job",
    "block_jobs", "groups", "filters", "raw", "length", "kernel_taps", "tile", "x_batch", "x_group", "x_step",
    "out_batch", "out_filter", "epilogue",
)  # fmt: skip


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return "it does not pool" if problem.pool else None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    return [{"rows": rows, "vectors": vectors} for rows, vectors in filter_vector_tiles(problem)]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    return cost_into(problem, params, problem.memory_format)


def cost_into(problem: ConvProblem, params: Params, out_format: MemoryFormat) -> float:
    """`cost` with a result of another memory format."""
    rows, vectors = params["rows"], params["vectors"]
    blocks = problem.groups * filter_blocks(problem, vectors * host().lanes(problem.itemsize))
    tiles, steps = tiles_and_steps(problem, rows)
    channels = problem.in_channels // problem.groups
    each = steps * channels * step_ns(rows, vectors) + tiles * per_tile_ns(rows, vectors)
    if problem.memory_format == "contiguous":  # channels lie a plane apart: a cache line brings one row of the tile
        each += steps * channels * 4 * FMA_NS
    if out_format == "contiguous":  # results are scattered
        each += tiles * rows * vectors * 12 * FMA_NS
    return blocks * each + packing_ns(problem)


def make(problem: ConvProblem, params: Params, threads: int) -> Direct:
    """The kernel, to be compiled or loaded when it is first run."""
    return Direct(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    BLOCK = VECS * LANES

    @job_kernel(GEOMETRY)
    def direct(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        line_job, rest = index % g.line_jobs, index // g.line_jobs
        block_job, group = rest % g.block_jobs, rest // g.block_jobs
        table, image_lines = ints(g.lines, g.line_count, 8), g.images * g.of_image
        first_line = line_job * g.lines_per_job
        last_line = min(first_line + g.lines_per_job, image_lines + g.line_count - g.of_image)
        first_block = block_job * g.blocks_per_job
        last_block = min(first_block + g.blocks_per_job, g.blocks)
        dense = g.out_filter == 1
        for block in range(first_block, last_block):
            w = weights_of_block(weight, g, group, block, scratch + ITEM * g.tile, BLOCK, ITEM)
            start = bias + ITEM * (group * g.blocks + block) * BLOCK
            filters = min(BLOCK, g.filters - block * BLOCK)
            for line in range(first_line, last_line):
                n, row = (
                    (line // g.of_image, line % g.of_image)
                    if line < image_lines
                    else (0, line - image_lines + g.of_image)
                )
                x_line, out_line, pixels, x_row, out_row, tap, n_taps, steps = table[row]
                x_line += n * g.x_batch + group * g.x_group
                out_line += n * g.out_batch + (group * g.filters + block * BLOCK) * g.out_filter
                for p in range(0, pixels, ROWS):
                    rows = min(ROWS, pixels - p)
                    a, o = x + ITEM * (x_line + p * x_row), out + ITEM * (out_line + p * out_row)
                    contract(
                        (a, x_row, g.x_step), (w, BLOCK), (g.taps + 16 * tap, n_taps, steps), (start, 0, LANES),
                        (o, out_row, rows, filters) if dense else (scratch, BLOCK, rows, BLOCK),
                        g.epilogue, ROWS, VECS, ITEM, 0,
                    )  # fmt: skip
                    if not dense:
                        move(scratch, BLOCK, 1, o, out_row, g.out_filter, rows, filters, ITEM)

    return direct


class Direct(ConvKernel):
    """Direct convolution of one problem."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.vectors = params["rows"], params["vectors"]
        self.block = self.vectors * self.lanes
        self.function = _compiled(self.rows, self.vectors, self.item, self.lanes, source_stamp())
        self.blocks = filter_blocks(problem, self.block)
        self.pack = FilterPacker(problem, self.block, self.lanes)

    def geometry(self, x_strides: tuple[int, ...], out_strides: tuple[int, ...]) -> Geometry:
        p = self.problem
        channels = p.in_channels // p.groups
        merged = p.groups == p.dilation[1] == x_strides[1] == 1 and x_strides[3] == channels
        images, least = self.images(x_strides), self.least_lines
        found = lines(p, x_strides, out_strides, self.block, self.rows, merged, images, least)
        packing = packing_fields(p)
        return self.fill(found, x_strides, out_strides, channels, p.in_size, packing_elements(p, self.block), packing)

    @property
    def least_lines(self) -> int:
        """So many lines let the threads share the work evenly."""
        return 1 if self.problem.raw else -(-self.wanted_jobs(8) // (self.problem.groups * self.blocks))

    def images(self, x_strides: tuple[int, ...]) -> int:
        """How many images a line may run across: where channels are far apart, a line's pixels should be neighbours."""
        return self.problem.batch if x_strides[1] == 1 else 1

    def fill(
        self, found: Lines, x_strides: tuple[int, ...], out_strides: tuple[int, ...], channels: int, size: Pair,
        packed: int, packing: dict[str, int],
    ) -> Geometry:  # fmt: skip
        """The record for lines of an input of `channels` per group and `size`; `packed` is scratch for weights."""
        p, count = self.problem, len(found.lines)
        all_lines = p.batch * found.of_image + count - found.of_image
        line_bytes = p.batch * channels * math.prod(size) * self.item // max(1, all_lines)
        block_bytes = packing["length"] * self.block * self.item
        wanted = self.wanted_jobs(4)
        lines_per_job, blocks_per_job = split(all_lines, line_bytes, self.blocks, block_bytes, p.groups, wanted, p.raw)
        tile = 0 if out_strides[1] == 1 else whole_lines(self.rows * self.block)
        slab = self.item * (tile + packed)
        line_jobs, block_jobs = -(-all_lines // lines_per_job), -(-self.blocks // blocks_per_job)
        return record(
            GEOMETRY, p.groups * line_jobs * block_jobs, slab, {"lines": found.lines, "taps": found.taps},
            line_count=count, of_image=found.of_image, images=p.batch, lines_per_job=lines_per_job, line_jobs=line_jobs,
            blocks_per_job=blocks_per_job, block_jobs=block_jobs,
            groups=p.groups, blocks=self.blocks, tile=tile, **packing,
            x_batch=x_strides[0], x_group=channels * x_strides[1], x_step=x_strides[1],
            out_batch=out_strides[0], out_filter=out_strides[1],
            epilogue=self.epilogue_address,
        )  # fmt: skip

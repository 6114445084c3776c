"""Depthwise convolution and groups of a few channels, channels-last: a register tile slides along the image's rows.

Vectors are channels where they lie, whole groups in each, so no lane is idle and nothing is copied
(`fastconv.cpu.slide`). A job is some output rows of some blocks of channels of one image.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Params, fields, record, split
from fastconv.cpu.pack import ChannelPacker
from fastconv.cpu.ranges import inside
from fastconv.cpu.slide import slide
from fastconv.cpu.tiles import FMA_NS, per_tile_ns
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "zeros", "rows_per_job", "row_jobs", "blocks", "blocks_per_job", "block_jobs", "channels",
    "in_height", "in_width", "out_height", "out_width", "kernel_h", "stride_h", "dilation_h", "top", "left",
    "x_batch", "x_row", "x_column", "out_batch", "out_row", "out_column", "epilogue",
)  # fmt: skip

_MOST_TAPS = 7  # along a row: each has code of its own
_GROUPS = (1, 2, 4, 8, 16)
_TILES = {32: [(7, 2), (14, 1), (4, 4)], 16: [(4, 2), (7, 1)]}


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    if problem.memory_format != "channels_last":
        return "its vectors are channels, which lie apart"
    if channels != filters or channels not in _GROUPS or channels > host().lanes(problem.itemsize):
        return f"its groups have {channels} channels and {filters} filters, not as many, one of {_GROUPS}"
    if problem.pool:
        return "it does not pool"
    if problem.kernel_size[1] > _MOST_TAPS or problem.stride[1] > 2 or problem.dilation[1] > 1:
        return f"its rows have more than {_MOST_TAPS} taps, a stride above 2, or dilation"
    return None


def _lanes(problem: ConvProblem) -> int:
    """Elements of a vector: those of a register, or fewer for few channels, or those of a large group."""
    lanes, group = host().lanes(problem.itemsize), problem.in_channels // problem.groups
    while lanes > problem.out_channels or lanes > group >= 8:
        lanes //= 2  # of a large group, a channel is spread by the load itself, which beats a wider vector
    return lanes


def space(problem: ConvProblem) -> list[Params]:
    """Register tiles of no more channels than there are."""
    vectors = problem.out_channels // _lanes(problem)
    return [{"pixels": pixels, "vectors": v} for pixels, v in _TILES[host().registers] if v <= max(1, vectors)]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: multiply-adds or loads and shuffles, whichever is more, for each tile."""
    pixels, vectors = params["pixels"], params["vectors"]
    (kernel_h, taps), stride, group = problem.kernel_size, problem.stride[1], problem.in_channels // problem.groups
    (height, width), lanes = problem.conv_size, _lanes(problem)
    blocks = -(-problem.out_channels // (vectors * lanes))
    tiles = problem.batch * height * -(-width // pixels) * blocks
    loads = (pixels - 1) * stride + 2 * taps
    wide = max(0.55, lanes / host().lanes(problem.itemsize))  # two narrow vectors take about the time of a wide one
    row = wide * group * vectors * max(pixels * taps, (1 if group == 1 else 1.5) * loads) + 10
    return tiles * (FMA_NS * 1.1 * kernel_h * row + per_tile_ns(pixels, vectors))


def make(problem: ConvProblem, params: Params, threads: int) -> Sliding:
    """The kernel, to be compiled or loaded when it is first run."""
    return Sliding(problem, params, threads)


@cache
def _compiled(PIXELS: int, VECS: int, TAPS: int, STRIDE: int, GROUP: int, LANES: int, ITEM: int, stamp: str) -> Any:
    BLOCK = VECS * LANES
    W_ROW = TAPS * GROUP * BLOCK

    @job_kernel(GEOMETRY)
    def sliding(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        block_job, rest = index % g.block_jobs, index // g.block_jobs
        first_row, n = rest % g.row_jobs * g.rows_per_job, rest // g.row_jobs
        first_block = block_job * g.blocks_per_job
        for block in range(first_block, min(first_block + g.blocks_per_job, g.blocks)):
            # The last block moves back onto channels already done, which get the same values again.
            c = min(block * BLOCK, g.channels - BLOCK)
            for i in range(first_row, min(first_row + g.rows_per_job, g.out_height)):
                top = i * g.stride_h - g.top
                r, last = inside(top, g.dilation_h, g.in_height, g.kernel_h)
                image = x + ITEM * (n * g.x_batch + (top + r * g.dilation_h) * g.x_row + c)
                w = weight + ITEM * W_ROW * (block * g.kernel_h + r)
                o = out + ITEM * (n * g.out_batch + i * g.out_row + c)
                for p in range(0, g.out_width, PIXELS):
                    left = p * STRIDE - g.left
                    slide(
                        (image + ITEM * left * g.x_column, g.dilation_h * g.x_row, g.x_column, last - r),
                        (-left, g.in_width - left, g.zeros),
                        (w, W_ROW, GROUP * BLOCK, BLOCK),
                        bias + ITEM * c,
                        (o + ITEM * p * g.out_column, g.out_column, g.out_width - p),
                        g.epilogue, PIXELS, VECS, TAPS, STRIDE, GROUP, LANES, ITEM,
                    )  # fmt: skip

    return sliding


class Sliding(ConvKernel):
    """Depthwise or grouped convolution of channels-last images."""

    lane_axis = 1

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        lanes, vectors = _lanes(problem), params["vectors"]
        self.block = vectors * lanes
        self.function = _compiled(
            params["pixels"], vectors, problem.kernel_size[1], problem.stride[1],
            problem.in_channels // problem.groups, lanes, self.item, source_stamp(),
        )  # fmt: skip
        self.pack = ChannelPacker(problem, self.block)
        self.zeros = np.zeros(self.block, problem.dtype)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        (height, width), blocks = p.conv_size, -(-p.out_channels // self.block)
        row_bytes = p.stride[0] * p.in_size[1] * p.in_channels * self.item
        block_bytes = p.weight_shape[1] * p.kernel_size[0] * p.kernel_size[1] * self.block * self.item
        rows, per_job = split(height, row_bytes, blocks, block_bytes, p.batch, self.wanted_jobs(4))
        row_jobs, block_jobs = -(-height // rows), -(-blocks // per_job)
        return record(
            GEOMETRY, p.batch * row_jobs * block_jobs, 0, {"zeros": self.zeros},
            rows_per_job=rows, row_jobs=row_jobs, blocks=blocks, blocks_per_job=per_job, block_jobs=block_jobs,
            channels=p.out_channels, in_height=p.in_size[0], in_width=p.in_size[1], out_height=height, out_width=width,
            kernel_h=p.kernel_size[0], stride_h=p.stride[0], dilation_h=p.dilation[0],
            top=p.padding[0][0], left=p.padding[1][0], x_batch=x[0], x_row=x[2], x_column=x[3],
            out_batch=out[0], out_row=out[2], out_column=out[3], epilogue=self.epilogue_address,
        )  # fmt: skip

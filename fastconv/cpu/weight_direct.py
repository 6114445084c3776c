"""Direct gradient of the weights: both images are read where they lie, channels-last, with no copies.

For each tap, a register tile of filters by input channels sums over the output pixels whose tap falls inside
the image: a line of them for every output row, listed in a table, so that padding is never visited. A job
owns a column of such tiles, with all taps, and goes through the lines in chunks that stay in cache while its
tiles pass over them. Where there are few jobs, each is cut into splits of the chunks, which add up in order
afterwards.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.contract import contract
from fastconv.cpu.host import host
from fastconv.cpu.kernel import Geometry, Params, fields, record
from fastconv.cpu.memory import fill, ints
from fastconv.cpu.tiles import channel_vector_tiles, per_tile_ns, step_ns
from fastconv.cpu.weight_kernel import WeightKernel, equal_blocks, store_block
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

GEOMETRY = fields(
    "x_column", "grad_column", "grad_channel", "channels", "filters", "elements", "kernel_taps",
    "lines", "runs", "chunks", "splits", "channel_tiles", "filter_block", "filter_blocks",
)  # fmt: skip

_FAR_BYTES = 14 << 20  # so much does not stay in a shared cache
_FAR_NS = 0.1  # to read a byte from memory, in pieces that no prefetcher follows


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    lanes, channels = host().lanes(problem.itemsize), problem.in_channels // problem.groups
    if problem.memory_format != "channels_last":
        return "its vectors are channels, which must be neighbours: it needs channels-last images"
    return None if channels % lanes == 0 else f"it needs a multiple of {lanes} channels per group, not {channels}"


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU that divide the channels."""
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    vectors = channels // host().lanes(problem.itemsize)
    tiles = channel_vector_tiles(channels, max(4, filters), problem.itemsize)
    return [{"rows": r, "vectors": v} for r, v in tiles if vectors % v == 0] or [{"rows": 8, "vectors": 1}]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    taps, pixels = math.prod(problem.kernel_size), problem.batch * math.prod(problem.conv_size)
    tiles = -(-filters // rows) * channels // (vectors * host().lanes(problem.itemsize))
    # Pixels lie far apart, often at multiples of a page, and L1 cannot hold them; with several taps, L2 does.
    each = (1.1 if taps == 1 else 1.0) * pixels * step_ns(rows, vectors, apart=False) + per_tile_ns(rows, vectors)
    read = problem.itemsize * pixels * problem.groups * (channels + filters)
    return problem.groups * taps * tiles * each + read * (_FAR_NS if read > _FAR_BYTES else _FAR_NS / 5)


def make(problem: ConvProblem, params: Params, threads: int) -> WeightDirect:
    """The kernel, to be compiled or loaded when it is first run."""
    return WeightDirect(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_direct(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, rest = index % g.splits, index // g.splits
        k, rest = rest % g.filter_blocks * g.filter_block, rest // g.filter_blocks
        c, group = rest % g.channel_tiles * WIDE, rest // g.channel_tiles
        filters, runs = min(g.filter_block, g.filters - k), ints(g.runs, g.kernel_taps, 3)
        fill(scratch, g.kernel_taps * g.filter_block * WIDE, 0.0, ITEM)
        a = grad + ITEM * (group * g.filters + k) * g.grad_channel
        b = x + ITEM * (group * g.channels + c)
        for chunk in range(split * g.chunks // g.splits, (split + 1) * g.chunks // g.splits):
            for kk in range(0, filters, ROWS):
                for tap in range(g.kernel_taps):
                    line, count, steps = runs[tap]
                    first, last = chunk * count // g.chunks, (chunk + 1) * count // g.chunks
                    o = scratch + ITEM * (tap * g.filter_block + kk) * WIDE
                    contract(
                        (a + ITEM * kk * g.grad_channel, g.grad_channel, g.grad_column), (b, g.x_column),
                        (g.lines + 16 * (line + first), last - first, steps), (o, WIDE, LANES),
                        (o, WIDE, min(ROWS, filters - kk), WIDE), 0, ROWS, VECS, ITEM, 0,
                    )  # fmt: skip
        result = out + ITEM * (split * g.elements + ((group * g.filters + k) * g.channels + c) * g.kernel_taps)
        store_block(scratch, g.filter_block, WIDE, filters, WIDE, result, g.channels, g.kernel_taps, ITEM)

    return weight_direct


class WeightDirect(WeightKernel):
    """Direct gradient of the weights for one problem."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.wide = params["rows"], params["vectors"] * self.lanes
        self.function = _compiled(self.rows, params["vectors"], self.item, self.lanes, source_stamp())
        channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        self.channel_tiles, self.taps = channels // self.wide, math.prod(problem.kernel_size)
        # What a job adds up takes an eighth of L2, and the pixels of a chunk half of it.
        most = host().l2 // 8 // (self.item * self.taps * self.wide)
        self.filter_block, self.filter_blocks = equal_blocks(filters, most, self.rows)
        pixels = problem.batch * math.prod(problem.conv_size)
        fitting = host().l2 // 2 // (self.item * (self.wide + self.filter_block))
        rows = problem.batch * problem.conv_size[0]
        self.blocks = problem.groups * self.channel_tiles * self.filter_blocks
        self.split_sum(rows, self.blocks)
        self.chunks = max(min(rows, -(-pixels // fitting)), self.splits)

    def reads(self, x: tuple[int, ...]) -> bool:
        return x[1] == 1

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p = self.problem
        lines, runs = _lines(p, x, grad)
        return record(
            GEOMETRY, self.blocks * self.splits, self.item * self.taps * self.filter_block * self.wide,
            {"lines": lines, "runs": runs}, x_column=p.stride[1] * x[3], grad_column=grad[3],
            grad_channel=grad[1], channels=p.in_channels // p.groups, filters=p.out_channels // p.groups,
            elements=self.elements, kernel_taps=self.taps, chunks=self.chunks, splits=self.splits,
            channel_tiles=self.channel_tiles, filter_block=self.filter_block, filter_blocks=self.filter_blocks,
        )  # fmt: skip


def _lines(p: ConvProblem, x: tuple[int, ...], grad: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lines of each tap: (offset into grad, offset into x), and (first line, lines, steps)."""
    axes = zip(p.kernel_size, p.in_size, p.conv_size, p.stride, p.padding, p.dilation, strict=True)
    downs, alongs = ([_inside(tap, *axis) for tap in range(taps)] for taps, *axis in axes)
    images = np.arange(p.batch)[:, None]
    found, runs, first = [np.zeros((0, 2), np.int64)], [], 0
    for (i0, i1, h), (j0, j1, w) in product(downs, alongs):
        rows, steps = np.arange(i0, max(i0, i1) if j1 > j0 else i0), max(0, j1 - j0)
        in_grad = images * grad[0] + rows * grad[2] + j0 * grad[3]
        in_x = images * x[0] + (h + rows * p.stride[0]) * x[2] + (w + j0 * p.stride[1]) * x[3]
        found.append(np.stack([in_grad, in_x], axis=-1).reshape(-1, 2))
        runs.append((first, in_x.size, steps))
        first += in_x.size
    return np.concatenate(found), np.array(runs, np.int64)


def _inside(tap: int, size: int, out: int, stride: int, padding: Pair, dilation: int) -> tuple[int, int, int]:
    """Outputs [first, last) whose tap is inside the image, and the pixel that output 0 reads with it."""
    origin = tap * dilation - padding[0]
    return max(0, -(origin // stride)), min(out, (size - 1 - origin) // stride + 1), origin

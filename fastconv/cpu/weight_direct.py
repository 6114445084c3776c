"""Direct gradient of the weights: both images are read where they lie, channels-last, with no copies.

For each tap, a register tile of filters by input channels sums over all output pixels whose tap falls inside
the image: a line of them for every output row, listed in a table, so that padding is never visited. Where
there are few tiles, each is cut into splits of the lines, which add up in order afterwards.
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
from fastconv.cpu.tiles import channel_vector_tiles, per_tile_ns, step_ns
from fastconv.cpu.transpose import move
from fastconv.cpu.weight_kernel import SPLITS, WeightKernel
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import ConvProblem, Pair

GEOMETRY = fields(
    "x_column", "grad_column", "grad_channel", "channels", "filters", "elements", "kernel_taps",
    "lines", "runs", "splits", "channel_tiles", "filter_tiles",
)  # fmt: skip


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
    tiles = -(-filters // rows) * channels // (vectors * host().lanes(problem.itemsize))
    # Pixels lie far apart, often at multiples of a page, which L1 cannot hold.
    each = 1.5 * problem.batch * math.prod(problem.conv_size) * step_ns(rows, vectors) + per_tile_ns(rows, vectors)
    return problem.groups * math.prod(problem.kernel_size) * tiles * each


def make(problem: ConvProblem, params: Params, threads: int) -> WeightDirect:
    """Compile or load the kernel."""
    return WeightDirect(problem, params, threads)


@cache
def _compiled(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    WIDE = VECS * LANES

    @job_kernel(GEOMETRY)
    def weight_direct(x, grad, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        split, rest = index % g.splits, index // g.splits
        k, rest = rest % g.filter_tiles * ROWS, rest // g.filter_tiles
        c, group = rest % g.channel_tiles * WIDE, rest // g.channel_tiles
        rows, runs = min(ROWS, g.filters - k), ints(g.runs, g.kernel_taps, 3)
        zeros = scratch + ITEM * ROWS * WIDE
        fill(zeros, LANES, 0.0, ITEM)
        a = grad + ITEM * (group * g.filters + k) * g.grad_channel
        b = x + ITEM * (group * g.channels + c)
        for tap in range(g.kernel_taps):
            line, count, steps = runs[tap]
            first, last = split * count // g.splits, (split + 1) * count // g.splits
            contract(
                (a, g.grad_channel, g.grad_column), (b, g.x_column),
                (g.lines + 16 * (line + first), last - first, steps), (zeros, 0, 0),
                (scratch, WIDE, rows, WIDE), 0, ROWS, VECS, ITEM, 0,
            )  # fmt: skip
            o = split * g.elements + ((group * g.filters + k) * g.channels + c) * g.kernel_taps + tap
            move(scratch, WIDE, 1, out + ITEM * o, g.channels * g.kernel_taps, g.kernel_taps, rows, WIDE, ITEM)

    return weight_direct


class WeightDirect(WeightKernel):
    """Direct gradient of the weights for one problem."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.wide = params["rows"], params["vectors"] * self.lanes
        self.function = _compiled(self.rows, params["vectors"], self.item, self.lanes, source_stamp())
        channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        self.channel_tiles, self.filter_tiles = channels // self.wide, -(-filters // self.rows)
        self.tiles = problem.groups * self.channel_tiles * self.filter_tiles
        self.sum_after(max(1, min(problem.batch * problem.conv_size[0], -(-SPLITS // self.tiles))))

    def reads(self, x: tuple[int, ...]) -> bool:
        return x[1] == 1

    def geometry(self, x: tuple[int, ...], grad: tuple[int, ...]) -> Geometry:
        p = self.problem
        lines, runs = _lines(p, x, grad)
        return record(
            GEOMETRY, self.tiles * self.splits, self.item * (self.rows * self.wide + self.lanes),
            {"lines": lines, "runs": runs}, x_column=p.stride[1] * x[3], grad_column=grad[3],
            grad_channel=grad[1], channels=p.in_channels // p.groups, filters=p.out_channels // p.groups,
            elements=self.elements, kernel_taps=math.prod(p.kernel_size), splits=self.splits,
            channel_tiles=self.channel_tiles, filter_tiles=self.filter_tiles,
        )  # fmt: skip


def _lines(p: ConvProblem, x: tuple[int, ...], grad: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lines of each tap: (offset into grad, offset into x), and (first line, lines, steps)."""
    lines: list[tuple[int, int]] = []
    runs = []
    axes = zip(p.kernel_size, p.in_size, p.conv_size, p.stride, p.padding, p.dilation, strict=True)
    downs, alongs = ([_inside(tap, *axis) for tap in range(taps)] for taps, *axis in axes)
    for i0, i1, h in downs:
        for j0, j1, w in alongs:
            first, steps = len(lines), max(0, j1 - j0)
            for n in range(p.batch) if steps else ():
                for i in range(i0, i1):
                    row = h + i * p.stride[0]
                    at_x = n * x[0] + row * x[2] + (w + j0 * p.stride[1]) * x[3]
                    lines.append((n * grad[0] + i * grad[2] + j0 * grad[3], at_x))
            runs.append((first, len(lines) - first, steps))
    return np.array(lines or [(0, 0)], np.int64), np.array(runs, np.int64)


def _inside(tap: int, size: int, out: int, stride: int, padding: Pair, dilation: int) -> tuple[int, int, int]:
    """Outputs [first, last) whose tap is inside the image, and the pixel that output 0 reads with it."""
    origin = tap * dilation - padding[0]
    return max(0, -(origin // stride)), min(out, (size - 1 - origin) // stride + 1), origin

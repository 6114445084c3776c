"""Direct pooling: windows are reduced where they lie (`fastconv.cpu.windows`), with no workspace.

One job is some output rows of some channels of one image.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray

from fastconv.cpu.kernel import Geometry, Params, fields, record
from fastconv.cpu.memory import call
from fastconv.cpu.pool_kernel import PoolKernel, split_pooling, unsupported
from fastconv.cpu.window import window_record
from fastconv.cpu.windows import pooling, way
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import PoolProblem

__all__ = ["cost", "make", "space", "unsupported"]

GEOMETRY = fields(
    "function", "window", "indices", "height", "width", "channels", "out_height", "rows_per_job", "row_jobs",
    "channels_per_job", "channel_jobs", "x_batch", "x_channel", "x_row", "x_column",
    "out_batch", "out_channel", "out_row", "out_column",
)  # fmt: skip


def space(problem: PoolProblem) -> list[Params]:
    """Nothing to choose."""
    return [{}]


def cost(problem: PoolProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: memory traffic, rows of contiguous planes, and taps."""
    if problem.pool.mode == "lp" and problem.pool.norm_type not in (1.0, 2.0):
        return 500 + 20 * problem.flops
    per_tap = 0.5 if problem.return_indices and problem.memory_format == "contiguous" else 0.03
    rows = 0 if problem.memory_format == "channels_last" else problem.batch * problem.channels * problem.out_size[0]
    return 500 + 0.018 * problem.bytes + 6 * rows + per_tap * problem.flops


def make(problem: PoolProblem, params: Params, threads: int) -> PoolKernel:
    """The kernel, to be compiled or loaded when it is first run."""
    return DirectPool(problem, params, threads)


@cache
def _compiled(ITEM: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def pool(x, indices, _bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        row_job, rest = index % g.row_jobs, index // g.row_jobs
        channel_job, n = rest % g.channel_jobs, rest // g.channel_jobs
        first, c = row_job * g.rows_per_job, channel_job * g.channels_per_job
        o = n * g.out_batch + c * g.out_channel
        call(g.function, (
            x + ITEM * (n * g.x_batch + c * g.x_channel), g.x_row, g.x_column, g.x_channel,
            g.height, g.width, min(g.channels_per_job, g.channels - c),
            out + ITEM * o, g.out_row, g.out_column, g.out_channel,
            indices + 8 * o if g.indices else 0, first, min(first + g.rows_per_job, g.out_height), g.window,
        ))  # fmt: skip

    return pool


class DirectPool(PoolKernel):
    """Direct pooling of one problem."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.function = _compiled(self.item, source_stamp())

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p = self.problem
        rows, channels = split_pooling(p, self.threads)
        chosen = way(p.pool, p.in_size, (x[3], x[1]), (out[3], out[1]), channels, p.return_indices)
        row_jobs, channel_jobs = -(-p.out_size[0] // rows), -(-p.channels // channels)
        return record(
            GEOMETRY, p.batch * row_jobs * channel_jobs, 0,
            {"window": window_record(p.pool, p.in_size), "function": pooling(p.pool, chosen, self.item)},
            indices=p.return_indices,
            height=p.in_size[0], width=p.in_size[1], channels=p.channels, out_height=p.out_size[0],
            rows_per_job=rows, row_jobs=row_jobs, channels_per_job=channels, channel_jobs=channel_jobs,
            x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3],
            out_batch=out[0], out_channel=out[1], out_row=out[2], out_column=out[3],
        )  # fmt: skip

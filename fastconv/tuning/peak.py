"""What this machine can do at best: multiply-adds per second, and bytes copied per second.

Those of the CPU are measured, not looked up, so that "% of peak" compares numbers from the same run. Those of a GPU,
whose clock is its own business, are computed from what it says of itself.
"""

from __future__ import annotations

from functools import cache
from time import perf_counter_ns
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.contract import contract
from fastconv.cpu.host import host
from fastconv.cpu.kernel import Geometry, fields, record
from fastconv.cpu.launch import image_launcher
from fastconv.cpu.memory import copy
from fastconv.cpu.region import workspace
from fastconv.cpu.threads import usable_threads
from fastconv.jit import job_kernel, source_stamp
from fastconv.problem import Problem

_FMA = fields("taps", "steps")
_COPY = fields("elements")
_STEPS = 10_000  # multiply-adds of each accumulator in one job: some 50 microseconds
_JOBS = 4  # for each thread
_COPY_BYTES = 128 << 20
_CHUNK_BYTES = 1 << 20


@cache
def _fma_kernel(ROWS: int, VECS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    ROW = VECS * LANES

    @job_kernel(_FMA)
    def fma_peak(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        # Steps of 0 make every operand loop-invariant: the loop is multiply-adds on registers only. Each
        # accumulator is stored to a place of its own, or the compiler would leave it out.
        contract(
            (x, 1, 0), (weight, 0), (g.taps, 1, g.steps), (bias, 0, 0), (scratch, ROW, ROWS, ROW),
            0, ROWS, VECS, ITEM, 0,
        )  # fmt: skip

    return fma_peak


@cache
def _copy_kernel(ITEM: int, stamp: str) -> Any:
    @job_kernel(_COPY)
    def copy_peak(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        elements = carray(geometry, 1)[0].elements
        copy(x + ITEM * index * elements, 1, out + ITEM * index * elements, elements, ITEM)

    return copy_peak


def _best_ns(kernel: Any, geometry: Geometry, arrays: tuple, threads: int, seconds: float) -> int:
    """Shortest launch on (x, weight, bias, out) within some time; at least 5 of them, the first one not counted."""
    memory = workspace(geometry.slab, threads)
    tail = (memory.ctypes.data, geometry.slab, geometry.record.ctypes.data, geometry.jobs, threads)
    times: list[int] = []
    while len(times) < 6 or sum(times) < 1e9 * seconds:
        start = perf_counter_ns()
        image_launcher()(kernel.address, arrays, *tail)
        times.append(perf_counter_ns() - start)
    return min(times[1:])


_best_gflops: dict[tuple[str, int], float] = {}


def best_gflops(dtype: str = "float32", threads: int = 1) -> float:
    """The best of all measurements of `fma_gflops` in this process; takes one of 0.2 seconds if there is none.

    On a busy machine threads seldom run together, so what one thread can do counts for several too.
    """
    for team in {1, threads}:
        if (dtype, team) not in _best_gflops:
            fma_gflops(dtype, team, seconds=0.2)
    return max(_best_gflops[dtype, 1], _best_gflops[dtype, threads])


def ceiling(problem: Problem, threads: int) -> float | None:
    """The most that a problem's device does in GFLOP/s: `best_gflops`, or a GPU's limit; None if that is not known."""
    if problem.device == "cpu":
        return best_gflops(problem.dtype, threads)
    from fastconv.cuda.properties import first

    gpu = first()
    return None if gpu is None else gpu.fma_gflops(problem.dtype)


def now(problem: Problem, threads: int) -> float | None:
    """`fma_gflops` on the CPU, which other programs use too; a GPU is taken to be free."""
    return fma_gflops(problem.dtype, threads) if problem.device == "cpu" else ceiling(problem, threads)


def fma_gflops(dtype: str = "float32", threads: int = 1, seconds: float = 0.02) -> float:
    """Measure the peak of fused multiply-adds now, in GFLOP/s (one is two operations).

    Parameters
    ----------
    dtype : {"float32", "float64"}
    threads : int, default 1
        Threads at work together; at most Numba's limit are used.
    seconds : float, default 0.02
        How long to try; the best launch counts.

    Notes
    -----
    Enough independent accumulators to hide the latency of the instruction, with operands in registers.
    """
    item, team = np.dtype(dtype).itemsize, usable_threads(threads)
    rows, vectors = (4, 4) if host().registers == 32 else (5, 2)
    lanes = host().lanes(item)
    vector = np.full(vectors * lanes, 1e-3, dtype)
    arrays = (np.ones((1, 1, 1, rows), dtype), vector[None, None, None], vector, np.empty((1, 1, 1, 1), dtype))
    slab = rows * vectors * lanes * item
    geometry = record(_FMA, _JOBS * team, slab, {"taps": np.zeros((1, 2), np.int64)}, steps=_STEPS)
    kernel = _fma_kernel(rows, vectors, item, lanes, source_stamp())
    ns = _best_ns(kernel, geometry, arrays, team, seconds)
    now = 2 * rows * vectors * lanes * _STEPS * geometry.jobs / ns
    _best_gflops[dtype, threads] = max(now, _best_gflops.get((dtype, threads), 0.0))
    return now


def copy_bandwidth(threads: int = 1) -> float:
    """Measured bandwidth of a copy that fits no cache, in bytes per second, read and written ones counted.

    Takes 256 MiB of memory for a fraction of a second.
    """
    threads, item = usable_threads(threads), 4
    x, no_bias = np.ones((1, 1, 1, _COPY_BYTES // item), np.float32), np.empty(0, np.float32)
    geometry = record(_COPY, _COPY_BYTES // _CHUNK_BYTES, 0, {}, elements=_CHUNK_BYTES // item)
    kernel = _copy_kernel(item, source_stamp())
    ns = _best_ns(kernel, geometry, (x, x, no_bias, np.empty_like(x)), threads, seconds=0.2)
    return 2e9 * _COPY_BYTES / ns

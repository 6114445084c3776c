"""Runs the jobs of a kernel, on this thread or spread over Numba's threads.

This is the only parallel code of the CPU library. Jobs are handed out by an atomic counter, so a thread
that is slowed down does fewer of them; which thread did a job never changes its result.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastconv.cpu.memory import call, ints
from fastconv.jit import inline, jit, source_stamp

COUNTER_BYTES = 64  # the head of every workspace: the counter has a cache line to itself
_ALIGN = 64


@intrinsic
def _fetch_add(typingctx, address, value):
    """Atomically add to the int64 at `address`; return what it held before."""

    def codegen(context, builder, _signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@inline
def _work(function, x, weight, bias, out, scratch, geometry, counter, jobs):
    index = _fetch_add(counter, 1)
    while index < jobs:
        call(function, (x, weight, bias, out, scratch, geometry, index))
        index = _fetch_add(counter, 1)


@cache
def conv_launcher(dtype: str) -> Any:
    """The compiled ``launch(function, x, weight, bias, out, workspace, slab, geometry, jobs, threads)``.

    `x` and `out` have 4 axes and any strides, `weight` and `bias` are flat, `slab` is the scratch of one
    thread in bytes. The signature is explicit, so a contiguous and a strided array run the same code.
    """
    return _launcher(dtype, types.Array(getattr(types, dtype), 1, "C", readonly=True))


@cache
def pool_launcher(dtype: str) -> Any:
    """As `conv_launcher`, with int64 indices of 4 axes and any strides in the place of `weight`."""
    return _launcher(dtype, types.Array(types.int64, 4, "A"))


def _launcher(dtype: str, second: types.Array) -> Any:
    stamp = source_stamp()

    def launch(function, x, weight, bias, out, workspace, slab, geometry, jobs, threads):
        _ = stamp
        base = (np.int64(workspace.ctypes.data) + _ALIGN - 1) // _ALIGN * _ALIGN
        scratch = base + COUNTER_BYTES
        xp, wp, bp = np.int64(x.ctypes.data), np.int64(weight.ctypes.data), np.int64(bias.ctypes.data)
        op, gp = np.int64(out.ctypes.data), np.int64(geometry.ctypes.data)
        if threads == 1:
            for index in range(jobs):
                call(function, (xp, wp, bp, op, scratch, gp, index))
        else:
            ints(base, 1, 1)[0, 0] = 0
            for thread in prange(threads):
                _work(function, xp, wp, bp, op, scratch + np.int64(thread) * slab, gp, base, jobs)

    real, word = getattr(types, dtype), types.int64
    image, bias = types.Array(real, 4, "A", readonly=True), types.Array(real, 1, "C", readonly=True)
    raw = types.Array(types.uint8, 1, "C")
    signature = types.void(word, image, second, bias, types.Array(real, 4, "A"), raw, word, raw, word, word)
    return jit(signature, parallel=True)(launch)


def workspace(slab: int, threads: int) -> np.ndarray:
    """Memory for a launch: the job counter, one slab of scratch for each thread, and room for alignment."""
    return np.empty(_ALIGN + COUNTER_BYTES + threads * slab, np.uint8)


class _Process:
    """Facts of this process that decide whether a launch may use threads."""

    forked = False  # GNU OpenMP aborts a forked child whose parent had started a team
    workqueue: bool | None = None  # None until Numba has chosen its threading layer


def _after_fork() -> None:
    _Process.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_one_at_a_time = threading.Lock()


def usable_threads(wanted: int) -> int:
    """Threads that a launch may use now: at most `wanted` and Numba's limit, 1 in a forked child."""
    return 1 if wanted == 1 or _Process.forked else min(wanted, numba.get_num_threads())


def execute(launcher: Any, *arguments: Any) -> None:
    """Call a compiled launcher; `arguments` end with the number of threads.

    Numba's workqueue layer, the only one that is always there, aborts the process when two threads
    start parallel regions at the same time (numba#8563), so with it they take turns.
    """
    if arguments[-1] == 1 or _Process.workqueue is False:
        launcher(*arguments)
        return
    with _one_at_a_time:
        launcher(*arguments)
    _Process.workqueue = numba.threading_layer() == "workqueue"

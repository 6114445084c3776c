"""Runs the jobs of a kernel, on this thread or spread over Numba's threads.

This is the only parallel code of the CPU library. Each thread begins with a range of neighbouring jobs, the same
in every run, so that it finds in its own cache what it wrote or read the last time; a thread that has done its own
range takes jobs from the others'. Which thread did a job never changes its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.arrays import aligned
from fastconv.cpu.denormals import Mode, enter, leave
from fastconv.cpu.memory import call, data_of, words
from fastconv.cpu.threads import check_stacks, usable_threads
from fastconv.jit import CFunction, address_kernel, inline, jit, source_stamp

COUNTER_BYTES = 64  # each thread's counter has a cache line to itself
_HEAD_BYTES = 128  # of the workspace of several threads: up to 16 words that `_launch` hands them, of which it uses 14


@intrinsic
def fetch_add(typingctx, address, value):
    """Atomically add to the int64 at `address`; return what it held before."""

    def codegen(context, builder, _signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _call_for_int(typingctx, function):
    """What the C function without arguments at an address returns, an ``int``."""

    def codegen(context, builder, _signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        result = builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return builder.sext(result, ir.IntType(64))

    return types.int64(types.int64), codegen


@inline
def _begin(scratch, slab):
    """The first word of scratch is zero when a thread begins, so that jobs can leave notes there for the next."""
    if slab:
        words(scratch)[0] = 0


@inline
def _serially(function, arrays, scratch, slab, geometry, jobs, mode):
    _begin(scratch, slab)
    before = enter(mode)
    for index in range(jobs):
        call(function, (*arrays, scratch, geometry, index))
    leave(mode, before)


@inline
def first_job(thread, jobs, threads):
    """Where the range of a thread begins, and that of the one before ends."""
    return jobs * thread // threads


@inline
def _in_ranges(function, arrays, workspace, slab, geometry, mode, jobs, thread, threads):
    counters = workspace + _HEAD_BYTES
    scratch = counters + threads * COUNTER_BYTES + thread * slab
    _begin(scratch, slab)
    before = enter(mode)
    for turn in range(threads):
        owner = (thread + turn) % threads
        counter, last = counters + COUNTER_BYTES * owner, first_job(owner + 1, jobs, threads)
        index = fetch_add(counter, 1)
        while index < last:
            call(function, (*arrays, scratch, geometry, index))
            index = fetch_add(counter, 1)
    leave(mode, before)


@inline
def _launch(region, limit, worker, workspace, task):
    """Have each of several threads do its part; the last words of `task` are jobs and threads.

    Numba's threading layer runs ``worker(args, count, steps, data)`` as it runs the kernel of a generalized ufunc: for
    ``count`` neighbouring threads, with each of the addresses in ``args`` moved by as many of its ``steps`` as there
    are threads before. There is one such address, the workspace's, moved by a byte for each thread.

    All of Numba's threads take part, though some find nothing to do: OpenMP ends those that it does not need, and
    workqueue gives the work of fewer to a single one.
    """
    jobs, threads, team = task[-2], task[-1], _call_for_int(limit)
    head = words(workspace)
    head[0], head[1], head[2] = workspace, team, 1
    for i in range(len(task)):
        head[3 + i] = task[i]
    for thread in range(threads):
        words(workspace + _HEAD_BYTES + COUNTER_BYTES * thread)[0] = first_job(thread, jobs, threads)
    call(region, (worker, workspace, workspace + 8, workspace + 16, workspace, 0, 1, team))


@cache
def _threading_layer() -> tuple[int, int]:
    """Addresses of functions of Numba's threading layer, chosen now: to run a parallel region, and for its threads.

    ``numba_parallel_for(function, args, dims, steps, data, inner dimensions, number of args, threads)`` is what Numba
    compiles a parallel loop to. Calling it takes a second less to compile, and no GIL.
    """
    check_stacks(numba.config.NUMBA_NUM_THREADS - 1)
    numba.get_num_threads()
    region, limit = map(llvm.address_of_symbol, ("numba_parallel_for", "get_num_threads"))
    if region is None or limit is None:
        raise RuntimeError(f"Numba {numba.__version__} runs parallel regions in a way that fastconv does not know")
    return region, limit


@cache
def _takes_turns() -> bool:
    """Whether parallel regions must be started one at a time.

    Numba's workqueue layer, the only one that is always there, aborts the process when two threads start them at the
    same time (numba#8563).
    """
    return numba.threading_layer() == "workqueue"


_one_at_a_time = threading.Lock()


class Launcher:
    """Runs the jobs of kernels that take so many arrays; each of its functions is compiled when it is needed.

    Arrays are handed over by ``id``, from which the compiled function reads where their data is: much faster than
    asking an array in Python, or than Numba's look at it.

    Parameters
    ----------
    worker, serial, parallel : callable
        To be compiled: ``serial(function, *arrays, scratch, slab, geometry, jobs, mode)``, and
        ``parallel(region, limit, worker, function, *arrays, workspace, slab, geometry, mode, jobs, threads)``, which
        has the threads of a `workspace` run ``worker(args, count, steps, data)``. `mode` has the bits of a
        `denormals.Mode`.
    arrays : int
    """

    def __init__(self, worker: CFunction, serial: Callable, parallel: Callable, arrays: int) -> None:
        self.worker, self._serial, self._parallel, self._arrays = worker, serial, parallel, arrays

    @cached_property
    def serial(self) -> Any:
        """The compiled function for this thread alone."""
        return jit(self._serial, types.void(*[types.int64] * (6 + self._arrays)))

    @cached_property
    def parallel(self) -> Any:
        """The compiled function for several threads."""
        return jit(self._parallel, types.void(*[types.int64] * (10 + self._arrays)))

    def __call__(
        self, function: int, arrays: tuple, memory: int, slab: int, geometry: int, jobs: int, threads: int
    ) -> None:
        """Run `jobs` jobs of the kernel at the address `function`; `memory` is the address of a `workspace`."""
        ids = map(id, arrays)
        if threads == 1:
            self.serial(function, *ids, memory, slab, geometry, jobs, Mode.bits)
            return
        start = (*_threading_layer(), self.worker.address, function)
        if _takes_turns():
            with _one_at_a_time:
                self.parallel(*start, *ids, memory, slab, geometry, Mode.bits, jobs, threads)
        else:
            self.parallel(*start, *ids, memory, slab, geometry, Mode.bits, jobs, threads)


@cache
def image_launcher() -> Launcher:
    """For kernels of four arrays: (x, weight, bias, out), or what else they have in the place of the middle two."""
    stamp = source_stamp()

    @address_kernel(4)
    def worker(args, count, steps, data):
        _ = stamp
        task, first = words(data), words(args)[0] - data
        arrays = (task[4], task[5], task[6], task[7])
        for thread in range(first, first + words(count)[0]):
            if thread < task[13]:
                _in_ranges(task[3], arrays, task[8], task[9], task[10], task[11], task[12], thread, task[13])

    def serial(function, x, y, z, out, scratch, slab, geometry, jobs, mode):
        _ = stamp
        arrays = (data_of(x), data_of(y), data_of(z), data_of(out))
        _serially(function, arrays, scratch, slab, geometry, jobs, mode)

    def parallel(region, limit, worker, function, x, y, z, out, workspace, slab, geometry, mode, jobs, threads):
        _ = stamp
        arrays = (data_of(x), data_of(y), data_of(z), data_of(out))
        _launch(region, limit, worker, workspace, (function, *arrays, workspace, slab, geometry, mode, jobs, threads))

    return Launcher(worker, serial, parallel, 4)


@cache
def _record_launcher() -> Launcher:
    """For `fastconv.jit.record_kernel`s, which find their arrays in the record."""
    stamp = source_stamp()

    @address_kernel(4)
    def worker(args, count, steps, data):
        _ = stamp
        task, first = words(data), words(args)[0] - data
        for thread in range(first, first + words(count)[0]):
            if thread < task[9]:
                _in_ranges(task[3], (), task[4], task[5], task[6], task[7], task[8], thread, task[9])

    def serial(function, scratch, slab, record, jobs, mode):
        _ = stamp
        _serially(function, (), scratch, slab, record, jobs, mode)

    def parallel(region, limit, worker, function, workspace, slab, record, mode, jobs, threads):
        _ = stamp
        _launch(region, limit, worker, workspace, (function, workspace, slab, record, mode, jobs, threads))

    return Launcher(worker, serial, parallel, 0)


def run_jobs(function: Any, record: np.ndarray, jobs: int, slab: int = 0) -> None:
    """Run the jobs of a kernel that finds everything in its record.

    Parameters
    ----------
    function : fastconv.jit.CFunction
        Compiled by `fastconv.jit.record_kernel`.
    record : structured array of one element
        What the jobs read, addresses of arrays among it; the caller keeps those arrays alive.
    jobs : int
        Independent pieces of work, each large enough to be worth a thread.
    slab : int, default 0
        Bytes of scratch for each thread.
    """
    if jobs:
        threads = usable_threads(min(jobs, numba.config.NUMBA_NUM_THREADS))
        memory = workspace(slab, threads)
        _record_launcher()(function.address, (), memory.ctypes.data, slab, record.ctypes.data, jobs, threads)


def workspace(slab: int, threads: int) -> np.ndarray:
    """Memory for a launch, at a cache line: for several threads a head and a counter for each; then their slabs."""
    return aligned(workspace_size(slab, threads), np.uint8)


def workspace_size(slab: int, threads: int) -> int:
    """Bytes of a `workspace`."""
    return threads * slab + (_HEAD_BYTES + threads * COUNTER_BYTES if threads > 1 else 0)

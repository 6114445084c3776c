"""What runs the jobs of a launch: a loop on one thread, or a parallel region of Numba's threading layer.

This is the only parallel code of the CPU library. Each thread begins with a range of neighbouring jobs, the same
in every run, so that it finds in its own cache what it wrote or read the last time; a thread that has done its own
range takes jobs from the others'. Which thread did a job never changes its result.

The memory of a launch on several threads begins with a head, up to 16 words for all of them, and a counter of jobs for
each; then come their slabs of scratch. That of a launch on one thread is its slab. A launch may find memory for more
threads than it gets: then there are fewer counters and slabs, or only one slab, at the beginning.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.arrays import aligned
from fastconv.cpu.denormals import enter, leave
from fastconv.cpu.memory import call, words
from fastconv.cpu.threads import check_stacks
from fastconv.jit import inline

COUNTER_BYTES = 64  # each thread's counter has a cache line to itself
_HEAD_BYTES = 128
_crowd = np.zeros(2, np.int64)  # launches that are in `run_together` now, and the threads that Numba has


def workspace(slab: int, threads: int) -> np.ndarray:
    """Memory for a launch, at a cache line, with `slab` bytes of scratch for each thread."""
    return aligned(workspace_size(slab, threads), np.uint8)


def workspace_size(slab: int, threads: int) -> int:
    """Bytes of a `workspace`."""
    return threads * slab + (_HEAD_BYTES + threads * COUNTER_BYTES if threads > 1 else 0)


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
def run_alone(function, scratch, slab, mode, geometry, jobs, arrays):
    """All jobs on this thread; `mode` has the bits of a `denormals.Mode`."""
    _begin(scratch, slab)
    before = enter(mode)
    for index in range(jobs):
        call(function, (*arrays, scratch, geometry, index))
    leave(mode, before)


@inline
def _first_job(thread, jobs, threads):
    """Where the range of a thread begins, and that of the one before ends."""
    return jobs * thread // threads


@inline
def _run_in_ranges(function, workspace, slab, mode, geometry, jobs, threads, arrays, thread):
    """A thread's own jobs, then what others have left."""
    counters = workspace + _HEAD_BYTES
    scratch = counters + threads * COUNTER_BYTES + thread * slab
    _begin(scratch, slab)
    before = enter(mode)
    for turn in range(threads):
        owner = (thread + turn) % threads
        counter, last = counters + COUNTER_BYTES * owner, _first_job(owner + 1, jobs, threads)
        index = fetch_add(counter, 1)
        while index < last:
            call(function, (*arrays, scratch, geometry, index))
            index = fetch_add(counter, 1)
    leave(mode, before)


@inline
def run_together(region, limit, crowd, worker, task):
    """All jobs on several threads at most, each of which does its `run_part` of the region.

    `task` is (function, workspace, slab, mode, geometry, jobs, threads, *arrays), as `run_part` finds it in the head.
    At the address `crowd` is how many launches are in here, and how many threads there are for all of them. Each
    divides its jobs among its share of the threads, as it is at the beginning; where there are as many launches as
    threads, the next one computes alone.
    """
    threads = min(task[6], words(crowd)[1] // (fetch_add(crowd, 1) + 1))
    if threads > 1:
        _run_in_region(region, _call_for_int(limit), worker, (*task[:6], threads, *task[7:]))
    else:
        run_alone(*task[:6], task[7:])
    fetch_add(crowd, -1)


@inline
def _run_in_region(region, team, worker, task):
    """Numba's threading layer runs ``worker(args, count, steps, data)`` as the kernel of a generalized ufunc.

    It does so for ``count`` neighbouring threads, with each of the addresses in ``args`` moved by as many of its
    ``steps`` as there are threads before. There is one such address, the workspace's, moved by a byte for each thread.

    All threads that the caller may use take part, though some find nothing to do: OpenMP ends those that it does not
    need and would leave the caller's own limit lowered, and workqueue gives the work of fewer to a single one.
    """
    workspace, jobs, threads = task[1], task[5], task[6]
    head = words(workspace)
    head[0], head[1], head[2] = workspace, team, 1
    for i in range(len(task)):
        head[3 + i] = task[i]
    for thread in range(threads):
        words(workspace + _HEAD_BYTES + COUNTER_BYTES * thread)[0] = _first_job(thread, jobs, threads)
    call(region, (worker, workspace, workspace + 8, workspace + 16, workspace, 0, 1, team))


@inline
def task_array(data, number):
    """One of the arrays of the task that a worker got as `data`."""
    return words(data)[10 + number]


@inline
def run_part(args, count, data, arrays):
    """What a worker does with its arguments: the parts of some threads."""
    task, first = words(data), words(args)[0] - data
    for thread in range(first, first + words(count)[0]):
        if thread < task[9]:
            _run_in_ranges(task[3], task[4], task[5], task[6], task[7], task[8], task[9], arrays, thread)


@cache
def threading_layer() -> tuple[int, int, int]:
    """Addresses for `run_together`: of a function that runs a parallel region, one for its threads, and `_crowd`.

    The functions are of Numba's threading layer, which is chosen now.

    ``numba_parallel_for(function, args, dims, steps, data, inner dimensions, number of args, threads)`` is what Numba
    compiles a parallel loop to. Calling it takes a second less to compile, and no GIL.
    """
    check_stacks(numba.config.NUMBA_NUM_THREADS - 1)
    numba.get_num_threads()
    _crowd[1] = numba.config.NUMBA_NUM_THREADS
    region, limit = map(llvm.address_of_symbol, ("numba_parallel_for", "get_num_threads"))
    if region is None or limit is None:
        raise RuntimeError(f"Numba {numba.__version__} runs parallel regions in a way that fastconv does not know")
    return region, limit, _crowd.ctypes.data


@cache
def takes_turns() -> bool:
    """Whether parallel regions must be started one at a time.

    Numba's workqueue layer, the only one that is always there, aborts the process when two threads start them at the
    same time (numba#8563).
    """
    return numba.threading_layer() == "workqueue"

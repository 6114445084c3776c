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

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastconv.arrays import aligned
from fastconv.cpu.denormals import Mode, enter, leave
from fastconv.cpu.memory import call, ints
from fastconv.cpu.threads import usable_threads
from fastconv.jit import inline, jit, source_stamp

COUNTER_BYTES = 64  # at the head of a workspace, each thread's counter has a cache line to itself


@intrinsic
def fetch_add(typingctx, address, value):
    """Atomically add to the int64 at `address`; return what it held before."""

    def codegen(context, builder, _signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@inline
def _begin(scratch, slab):
    """The first word of scratch is zero when a thread begins, so that jobs can leave notes there for the next."""
    if slab:
        ints(scratch, 1, 1)[0, 0] = 0


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
def _in_ranges(function, arrays, scratch, slab, geometry, counters, jobs, thread, threads, mode):
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
def _start_counters(counters, jobs, threads):
    for thread in range(threads):
        ints(counters + COUNTER_BYTES * thread, 1, 1)[0, 0] = first_job(thread, jobs, threads)


class _Layer:
    """What Numba's threading layer, chosen when the first of several threads is needed, allows."""

    workqueue: bool | None = None  # not known yet


_one_at_a_time = threading.Lock()


class Launcher:
    """Runs the jobs of kernels that take certain arrays; each of its two functions is compiled when it is needed.

    The signatures are explicit, so contiguous and strided arrays run the same code. Addresses are passed as
    integers, which cost less than arrays.

    Parameters
    ----------
    arrays : tuple of Numba types
    serial, parallel : callable
        ``serial(function, *arrays, scratch, slab, geometry, jobs, mode)`` and
        ``parallel(function, *arrays, workspace, slab, geometry, jobs, threads, mode)``, to be compiled: `slab` is
        the scratch of one thread in bytes, for `workspace` see there; `mode` has the bits of a `denormals.Mode`.
    """

    def __init__(self, arrays: tuple, serial: Callable, parallel: Callable) -> None:
        self._arrays, self._serial, self._parallel = arrays, serial, parallel

    @cached_property
    def serial(self) -> Any:
        """The compiled function for this thread alone."""
        return jit(types.void(types.int64, *self._arrays, *[types.int64] * 5))(self._serial)

    @cached_property
    def parallel(self) -> Any:
        """The compiled function for several threads."""
        return jit(types.void(types.int64, *self._arrays, *[types.int64] * 6), parallel=True)(self._parallel)

    def __call__(
        self, function: int, arrays: tuple, memory: int, slab: int, geometry: int, jobs: int, threads: int
    ) -> None:
        """Run `jobs` jobs of the kernel at the address `function`; `memory` is the address of a `workspace`."""
        if threads == 1:
            self.serial(function, *arrays, memory, slab, geometry, jobs, Mode.bits)
        elif _Layer.workqueue is False:
            self.parallel(function, *arrays, memory, slab, geometry, jobs, threads, Mode.bits)
        else:
            # Numba's workqueue layer, the only one that is always there, aborts the process when two threads
            # start parallel regions at the same time (numba#8563), so with it they take turns.
            with _one_at_a_time:
                self.parallel(function, *arrays, memory, slab, geometry, jobs, threads, Mode.bits)
            _Layer.workqueue = numba.threading_layer() == "workqueue"


@cache
def conv_launcher(dtype: str) -> Launcher:
    """For kernels of (x, weight, bias, out): all have 4 axes and any strides, but `bias`, which is flat."""
    return _image_launcher(dtype, types.Array(getattr(types, dtype), 4, "A", readonly=True))


@cache
def pool_launcher(dtype: str) -> Launcher:
    """As `conv_launcher`, with int64 indices of 4 axes and any strides in the place of `weight`."""
    return _image_launcher(dtype, types.Array(types.int64, 4, "A", readonly=True))


@cache
def lp_launcher(dtype: str) -> Launcher:
    """As `conv_launcher`, with a third image in the place of `bias`."""
    image = types.Array(getattr(types, dtype), 4, "A", readonly=True)
    return _image_launcher(dtype, image, image)


def _image_launcher(dtype: str, second: types.Array, third: types.Array | None = None) -> Launcher:
    stamp = source_stamp()

    def serial(function, x, second, third, out, scratch, slab, geometry, jobs, mode):
        _ = stamp
        xp, yp, zp = np.int64(x.ctypes.data), np.int64(second.ctypes.data), np.int64(third.ctypes.data)
        _serially(function, (xp, yp, zp, np.int64(out.ctypes.data)), scratch, slab, geometry, jobs, mode)

    def parallel(function, x, second, third, out, workspace, slab, geometry, jobs, threads, mode):
        _ = stamp
        xp, yp, zp = np.int64(x.ctypes.data), np.int64(second.ctypes.data), np.int64(third.ctypes.data)
        arrays = (xp, yp, zp, np.int64(out.ctypes.data))
        _start_counters(workspace, jobs, threads)
        for thread in prange(threads):
            scratch = workspace + threads * COUNTER_BYTES + np.int64(thread) * slab
            _in_ranges(function, arrays, scratch, slab, geometry, workspace, jobs, np.int64(thread), threads, mode)

    real = getattr(types, dtype)
    image, flat = types.Array(real, 4, "A", readonly=True), types.Array(real, 1, "C", readonly=True)
    return Launcher((image, second, third or flat, types.Array(real, 4, "A")), serial, parallel)


@cache
def _record_launcher() -> Launcher:
    """For `fastconv.jit.record_kernel`s, which find their arrays in the record."""
    stamp = source_stamp()

    def serial(function, scratch, slab, record, jobs, mode):
        _ = stamp
        _serially(function, (), scratch, slab, record, jobs, mode)

    def parallel(function, workspace, slab, record, jobs, threads, mode):
        _ = stamp
        _start_counters(workspace, jobs, threads)
        for thread in prange(threads):
            scratch = workspace + threads * COUNTER_BYTES + np.int64(thread) * slab
            _in_ranges(function, (), scratch, slab, record, workspace, jobs, np.int64(thread), threads, mode)

    return Launcher((), serial, parallel)


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
    """Memory for a launch, at a cache line: a counter of jobs for each of several threads, then a slab for each."""
    return aligned(workspace_size(slab, threads), np.uint8)


def workspace_size(slab: int, threads: int) -> int:
    """Bytes of a `workspace`."""
    return threads * (slab + (COUNTER_BYTES if threads > 1 else 0))

"""Starts the jobs of a kernel, on this thread or spread over Numba's threads; `fastconv.cpu.region` runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numba
import numpy as np
from numba import types

from fastconv.cpu.denormals import Mode
from fastconv.cpu.memory import data_of
from fastconv.cpu.region import (
    run_alone,
    run_part,
    run_together,
    takes_turns,
    task_array,
    threading_layer,
    workspace,
)
from fastconv.cpu.threads import usable_threads
from fastconv.jit import CFunction, address_kernel, jit, source_stamp

_one_at_a_time = threading.Lock()


class Launcher:
    """Starts the jobs of kernels that take so many arrays; each of its functions is compiled when it is needed.

    Arrays are handed over by ``id``, from which the compiled function reads where their data is: much faster than
    asking an array in Python, or than Numba's look at it.

    Parameters
    ----------
    worker, serial, parallel : callable
        To be compiled: ``serial(function, scratch, slab, mode, geometry, jobs, *arrays)``, and
        ``parallel(region, limit, crowd, worker, function, workspace, slab, mode, geometry, jobs, threads, *arrays)``,
        which has threads run ``worker(args, count, steps, data)``.
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
        return jit(self._parallel, types.void(*[types.int64] * (11 + self._arrays)))

    def __call__(
        self, function: int, arrays: tuple, memory: int, slab: int, geometry: int, jobs: int, threads: int
    ) -> None:
        """Run `jobs` jobs of the kernel at the address `function` on so many `threads` at most.

        `memory` is the address of a `workspace` for as many.
        """
        launch = (function, memory, slab, Mode.bits, geometry, jobs)
        if threads == 1:
            self.serial(*launch, *map(id, arrays))
            return
        start = (*threading_layer(), self.worker.address)
        if takes_turns():
            with _one_at_a_time:
                self.parallel(*start, *launch, threads, *map(id, arrays))
        else:
            self.parallel(*start, *launch, threads, *map(id, arrays))


@cache
def image_launcher() -> Launcher:
    """For kernels of four arrays: (x, weight, bias, out), or what else they have in the place of the middle two."""
    stamp = source_stamp()

    @address_kernel(4)
    def worker(args, count, steps, data):
        _ = stamp
        arrays = (task_array(data, 0), task_array(data, 1), task_array(data, 2), task_array(data, 3))
        run_part(args, count, data, arrays)

    def serial(function, scratch, slab, mode, geometry, jobs, x, y, z, out):
        _ = stamp
        arrays = (data_of(x), data_of(y), data_of(z), data_of(out))
        run_alone(function, scratch, slab, mode, geometry, jobs, arrays)

    def parallel(region, limit, crowd, worker, function, workspace, slab, mode, geometry, jobs, threads, x, y, z, out):
        _ = stamp
        arrays = (data_of(x), data_of(y), data_of(z), data_of(out))
        run_together(region, limit, crowd, worker, (function, workspace, slab, mode, geometry, jobs, threads, *arrays))

    return Launcher(worker, serial, parallel, 4)


@cache
def _record_launcher() -> Launcher:
    """For `fastconv.jit.record_kernel`s, which find their arrays in the record."""
    stamp = source_stamp()

    @address_kernel(4)
    def worker(args, count, steps, data):
        _ = stamp
        run_part(args, count, data, ())

    def serial(function, scratch, slab, mode, record, jobs):
        _ = stamp
        run_alone(function, scratch, slab, mode, record, jobs, ())

    def parallel(region, limit, crowd, worker, function, workspace, slab, mode, record, jobs, threads):
        _ = stamp
        run_together(region, limit, crowd, worker, (function, workspace, slab, mode, record, jobs, threads))

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

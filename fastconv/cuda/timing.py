"""How long work takes on a GPU, by events on its default stream; in the simulator, by the host's clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from fastconv.cuda import driver
from fastconv.cuda.toolkit import SIMULATED, cuda

_BACKLOG_BYTES = 64 << 20  # cleared in some tens of microseconds
_MOST_CLEARED = 200  # times: the driver's queue is not endless


class Timer:
    """Times calls that start kernels on the default stream of a GPU.

    A kernel may take less time than its start, which is the host's work. So the GPU is kept busy, clearing memory, for
    as long as the host needs to start all that is timed: the events around that see the GPU's time alone.

    Parameters
    ----------
    device : int
        Its context is current, here and whenever the timer is called.
    """

    def __init__(self, device: int) -> None:
        if SIMULATED:
            return
        self._context = driver.primary_context(device)
        self._events = driver.Events(self._context)
        self._memory = cuda.device_array(_BACKLOG_BYTES, "uint8")
        self._clear()
        self._clear_ns = max(1.0, self._elapsed_ns(self._clear))

    def __call__(self, call: Callable[[], Any], repeats: int) -> float:
        """Nanoseconds of each of so many calls; one before them is not timed."""
        start = perf_counter_ns()
        call()
        host_ns = perf_counter_ns() - start
        if SIMULATED:
            start = perf_counter_ns()
            _repeat(call, repeats)
            return max(1, perf_counter_ns() - start) / repeats
        for _ in range(min(_MOST_CLEARED, math.ceil(repeats * host_ns / self._clear_ns))):
            self._clear()
        call()  # not timed: it brings back into the caches what clearing took out of them
        return max(1.0, self._elapsed_ns(lambda: _repeat(call, repeats))) / repeats

    def _clear(self) -> None:
        driver.clear(self._memory.__cuda_array_interface__["data"][0], _BACKLOG_BYTES, self._context)

    def _elapsed_ns(self, work: Callable[[], Any]) -> float:
        self._events.record(0)
        work()
        self._events.record(1)
        return self._events.elapsed_ns()


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()

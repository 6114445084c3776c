"""The threads of a simulated block as greenlets: they switch where they wait for each other, and nowhere else.

Numba's simulator has a thread of Python for each, whose barriers poll; that takes most of the time of a test. Between
barriers, lanes run one after the other in an order that changes, so that what they should have waited for shows.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel, kernelapi

from fastconv.cuda import ptx_bulk_simulated, ptx_hopper_simulated, ptx_simulated


class Lane(greenlet):
    """A thread of a block, with what the simulator asks of one."""

    def __init__(self, run: Callable[[], None], manager: Any, block: tuple[int, ...], place: tuple[int, ...]) -> None:
        super().__init__(run)
        self._manager = manager
        self.blockIdx, self.threadIdx = kernelapi.Dim3(*block), kernelapi.Dim3(*place)
        x, y = manager._block_dim[:2]
        self.thread_id = place[0] + x * (place[1] + y * place[2])
        self.at_barrier = False

    def syncthreads(self) -> None:
        """Wait for all threads of the block that have not ended."""
        self.at_barrier = True
        self.parent.switch()


class Barrier:
    """`threading.Barrier` for lanes of one block; broken as soon as nobody else can come."""

    def __init__(self, parties: int, action: Callable[[], None]) -> None:
        self.parties, self.action = parties, action
        self.waiting: list[Lane] = []

    def wait(self, timeout: float) -> None:
        lane: Any = getcurrent()
        if len(self.waiting) < self.parties - 1:
            self.waiting.append(lane)
            lane.parent.switch()
        else:
            self.action()
            lane._manager.ready.extend(self.waiting)
            self.waiting.clear()


def _run(self: Any, grid_point: tuple[int, ...], *args: Any) -> None:
    """`BlockManager.run`: the lanes of a block until all have ended."""
    lanes = [Lane(lambda: self._f(*args), self, grid_point, point) for point in np.ndindex(*self._block_dim)]
    order = random.Random(repr(grid_point))
    self.ready = order.sample(lanes, len(lanes))
    while lanes:
        while self.ready:
            self.ready.pop().switch()  # a lane's error comes out here
        lanes = [lane for lane in lanes if not lane.dead]
        late = [lane for lane in lanes if not lane.at_barrier]
        if late:
            late[0].throw(threading.BrokenBarrierError)
        for lane in lanes:
            lane.at_barrier = False
        self.ready = order.sample(lanes, len(lanes))


def install() -> None:
    """Let all blocks of this process run this way."""
    names = SimpleNamespace(
        current_thread=getcurrent, Barrier=Barrier, Lock=threading.Lock, BrokenBarrierError=threading.BrokenBarrierError
    )
    kernel.BlockManager.run = _run
    for module in (kernelapi, ptx_simulated, ptx_hopper_simulated, ptx_bulk_simulated):
        module.threading = names

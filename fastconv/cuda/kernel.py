"""Kernels as objects: a function with its types, and a launch of it with everything decided but the addresses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fastconv.cuda import driver
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.replay import Recording, Start
from fastconv.cuda.toolkit import SIMULATED, Capability, SimulatedPointer, cubin, cuda

MOST_BLOCKS = 65_535  # along the second and third axis of a grid


class Kernel:
    """A function for the GPU; compiled, or loaded from disk, when it is first launched on a device.

    Parameters
    ----------
    function : callable
        Takes flat pointers first, then numbers and named tuples of them.
    arguments : tuple of Numba types
    variant : tuple of int or str
        The literals that the function closes over; its name, with them, is that of no other kernel.
    threads : int
        Of a block.
    blocks : int, optional
        Fewest blocks that a multiprocessor must be able to hold: a limit for registers.
    features : str, default ""
        "a" for code that runs on chips of exactly the device's compute capability.
    """

    def __init__(
        self, function: Callable, arguments: tuple, variant: tuple = (), *, threads: int, blocks: int | None = None,
        features: str = "",
    ) -> None:  # fmt: skip
        self.function, self.arguments, self.threads, self.features = function, arguments, threads, features
        self.name = "_".join(["fastconv", function.__name__, *map(str, variant)])
        self.bounds = threads if blocks is None else (threads, blocks)
        self._simulated = cuda.jit(function) if SIMULATED else None

    def cubin(self, capability: Capability) -> bytes:
        """Machine code for a compute capability; nothing needs a GPU."""
        return cubin(self.function, self.arguments, capability, name=self.name, launch_bounds=self.bounds)

    def simulate(self, grid: tuple[int, ...], shared: int, arguments: tuple) -> None:
        """Run in Numba's simulator, on `SimulatedPointer`s and numbers."""
        assert self._simulated is not None
        self._simulated[grid, self.threads, 0, shared](*arguments)


class Launch:
    """A kernel with its grid and numbers, ready for arrays.

    Parameters
    ----------
    kernel : Kernel
    grid : tuple of int
        Blocks along up to three axes.
    values : tuple
        The arguments after the pointers: numbers and named tuples of them.
    shared : int, default 0
        Bytes of dynamic shared memory of a block.

    Raises
    ------
    ValueError
        If a GPU has no such grid.
    """

    def __init__(self, kernel: Kernel, grid: tuple[int, ...], values: tuple, shared: int = 0) -> None:
        if max(grid[1:], default=0) > MOST_BLOCKS or grid[0] >= 1 << 31:
            raise ValueError(f"a GPU has no grid of {grid} blocks")
        self.kernel, self.grid, self.values, self.shared = kernel, grid, values, shared
        self._prepared: dict[int, driver.Prepared] = {}  # by device

    def __call__(self, arrays: Sequence[DeviceArray | None], stream: int = 0) -> None:
        """Start the kernel on arrays; None stands for an array that it does not read."""
        if not math.prod(self.grid):
            return
        wanted = len(self.kernel.arguments) - len(self.values)
        if len(arrays) != wanted:
            raise ValueError(f"the kernel {self.kernel.name} takes {wanted} arrays, got {len(arrays)}")
        start, addresses = self._start(arrays), [0 if a is None else a.pointer for a in arrays]
        start(addresses, stream)
        for recording in {a.owner for a in arrays if a is not None and type(a.owner) is Recording}:
            recording.started(start, addresses)

    def _start(self, arrays: Sequence[DeviceArray | None]) -> Start:
        """What starts the kernel on arrays like these at any addresses."""
        if SIMULATED:
            return partial(self._simulate, [a and replace(a, owner=None) for a in arrays])
        device = next(a.device for a in arrays if a is not None)
        prepared = self._prepared.get(device)
        if prepared is None:
            prepared = self._prepared[device] = driver.Prepared(self, device)
        return prepared

    def _simulate(self, arrays: list[DeviceArray | None], addresses: Sequence[int], stream: int) -> None:
        pointers = [
            SimulatedPointer(np.empty(0)) if a is None else replace(a, pointer=address).simulated()
            for a, address in zip(arrays, addresses, strict=True)
        ]
        self.kernel.simulate(self.grid, self.shared, (*pointers, *self.values))

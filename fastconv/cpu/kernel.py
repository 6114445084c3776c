"""What every CPU convolution kernel is to its callers: weights packed once, then runs on arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.arrays import empty
from fastconv.cpu.host import host
from fastconv.cpu.launch import conv_launcher, execute, usable_threads, workspace, workspace_size
from fastconv.problem import LEAKY_SLOPE, ConvProblem

Params = dict[str, int]

# (slope, low, high) of `contract`'s epilogue. A slope of 1 keeps -inf out of a product with 0.
_EPILOGUES = {
    "relu": (1.0, 0.0, np.inf),
    "relu6": (1.0, 0.0, 6.0),
    "leaky_relu": (LEAKY_SLOPE, -np.inf, np.inf),
}


@dataclass(frozen=True)
class Packed:
    """Weights and bias in the layout that one kernel reads, both flat."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Geometry:
    """What a launch needs besides arrays.

    Attributes
    ----------
    record : uint8 array
        The integers that a job reads; `tables` are the arrays whose addresses are among them.
    jobs : int
        Independent pieces of work.
    slab : int
        Bytes of scratch for each thread.
    """

    record: np.ndarray
    tables: tuple[np.ndarray, ...]
    jobs: int
    slab: int


def record(dtype: np.dtype, jobs: int, slab: int, tables: dict[str, np.ndarray], **values: int) -> Geometry:
    """Fill a geometry record: `tables` go in by address, and stay alive with it."""
    filled = np.zeros(1, dtype)
    for name, value in values.items():
        filled[name] = value
    for name, table in tables.items():
        filled[name] = table.ctypes.data
    return Geometry(filled.view(np.uint8), tuple(tables.values()), jobs, slab)


def fields(*names: str) -> np.dtype:
    """The dtype of a geometry record of int64 fields."""
    return np.dtype([(name, np.int64) for name in names])


def split(lines: int, pixels: int, blocks: int, outer: int, line_bytes: int, wanted: int) -> tuple[int, int]:
    """Cut a grid of `outer` x `lines` x `blocks` into jobs; return (lines, blocks) per job.

    The input of a job stays in half of L2 while its filter blocks pass over it, and there are at least
    `wanted` jobs where the grid allows it. `pixels` is how many a line has.
    """
    lines_per_job = max(1, min(lines, host().l2 // 2 // max(1, line_bytes)))
    blocks_per_job = blocks

    def jobs() -> int:
        return outer * -(-lines // lines_per_job) * -(-blocks // blocks_per_job)

    while jobs() < wanted and lines_per_job * blocks_per_job > 1:
        # A job of few pixels reads its weights for little work, so the filters are split before that.
        if lines_per_job > 1 and (lines_per_job * pixels > 64 or blocks_per_job == 1):
            lines_per_job = -(-lines_per_job // 2)
        else:
            blocks_per_job = -(-blocks_per_job // 2)
    return lines_per_job, blocks_per_job


class Kernel(ABC):
    """One algorithm bound to a problem: the part that convolution and pooling share.

    Attributes
    ----------
    function : numba CFunc
        The job (see `fastconv.jit.job_kernel`); held here, for its address dies with it.
    threads : int
        Threads asked for; fewer are used where there are fewer jobs.
    layout_copies : str
        Which arrays a run copies to another layout, for `Plan.explain`.
    """

    function: Any
    layout_copies = "none"

    def __init__(self, problem: Any, params: Params, threads: int) -> None:
        self.problem, self.params, self.threads = problem, params, threads
        self.item = problem.itemsize
        self.lanes = host().lanes(self.item)
        self._geometries: dict[tuple, Geometry | None] = {}
        self._workspaces: deque[np.ndarray] = deque()

    @abstractmethod
    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        """The record for arrays with these strides (n, c, h, w), in elements."""

    def writes(self, out: tuple[int, ...]) -> bool:
        """Whether results can be written to an array with these strides; if not, they are copied there."""
        return True

    def reads(self, x: tuple[int, ...]) -> bool:
        """Whether an input with these strides can be read; if not, it is copied first."""
        return True

    def wanted_jobs(self, per_thread: int) -> int:
        """Enough jobs to keep every thread busy to the end; one thread needs no cutting."""
        return per_thread * self.threads if self.threads > 1 else 1

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run on arrays in the problem's own memory format."""
        p = self.problem
        geometry = self.geometry(*(dense_strides(s, p.memory_format) for s in (p.in_shape, p.out_shape)))
        return min(self.threads, geometry.jobs) * geometry.slab

    def launch(self, launcher: Any, x: np.ndarray, second: np.ndarray, third: np.ndarray, out: np.ndarray) -> bool:
        """Run every job on these arrays; False, with nothing done, if they have strides it cannot take."""
        if not out.size:
            return True
        key = (x.strides, out.strides)
        try:
            geometry = self._geometries[key]
        except KeyError:
            geometry = self._geometries[key] = self._laid_out(*key)
        if geometry is None:
            return False
        threads = usable_threads(min(self.threads, geometry.jobs))
        memory = self._workspace(geometry.slab, threads)
        arrays = (x, second, third, out, memory)
        execute(launcher, self.function.address, *arrays, geometry.slab, geometry.record, geometry.jobs, threads)
        self._workspaces.append(memory)
        return True

    def _laid_out(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry | None:
        x, out = (tuple(s // self.item for s in strides) for strides in (x, out))
        return self.geometry(x, out) if self.reads(x) and self.writes(out) else None

    def _workspace(self, slab: int, threads: int) -> np.ndarray:
        try:
            memory = self._workspaces.pop()
        except IndexError:
            return workspace(slab, threads)
        return memory if memory.size >= workspace_size(slab, threads) else workspace(slab, threads)


class ConvKernel(Kernel):
    """A convolution algorithm bound to a problem: packs weights once, then runs on arrays.

    A subclass compiles its job function, packs weights, and lays out the integers that a job reads.
    """

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.epilogue = np.array(_EPILOGUES.get(problem.activation or "", (1, 0, 0)), problem.dtype)
        self._launcher = conv_launcher(problem.dtype)

    @abstractmethod
    def pack(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        """Weights (K, C/groups, R, S), any strides, and bias (K,) in the layout of this kernel."""

    @property
    def epilogue_address(self) -> int:
        """Where the activation's constants are, or 0 for none."""
        return self.epilogue.ctypes.data if self.problem.activation else 0

    def run(self, x: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        """Compute `out` from `x`; both (N, C, H, W) with the problem's sizes and dtype.

        Safe to call from several threads at once.
        """
        if not self.launch(self._launcher, x, packed.weight, packed.bias, out):
            copies = [empty(a.shape, a.dtype, self.problem.memory_format) for a in (x, out)]
            np.copyto(copies[0], x)
            self.launch(self._launcher, copies[0], packed.weight, packed.bias, copies[1])
            np.copyto(out, copies[1])


def dense_strides(shape: tuple[int, ...], format: str) -> tuple[int, ...]:
    """Strides in elements of an (N, C, H, W) array that fills its memory."""
    _, c, h, w = shape
    return (c * h * w, 1, w * c, c) if format == "channels_last" else (c * h * w, h * w, w, 1)

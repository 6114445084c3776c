"""What every CPU convolution kernel is to its callers: weights packed once, then runs on arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from fastconv.algorithms import Params
from fastconv.arrays import dense_strides, empty
from fastconv.cpu.denormals import Mode
from fastconv.cpu.host import host
from fastconv.cpu.launch import image_launcher
from fastconv.cpu.pack import Packed, Packer
from fastconv.cpu.region import workspace
from fastconv.cpu.threads import usable_threads
from fastconv.jit import CFunction
from fastconv.problem import EPILOGUES, ConvProblem

_EVEN = 1.15  # time until the last thread is done, as a multiple of the mean, that is good enough
_MOST_LAYOUTS = 64  # of arrays, remembered for each kernel


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
    fields : dtype
        Of the record.
    functions : dict of str to CFunction
        Those that a job calls. They are compiled, and their addresses put in the record, by `link`.
    """

    record: np.ndarray
    tables: tuple[np.ndarray, ...]
    jobs: int
    slab: int
    fields: np.dtype
    functions: dict[str, CFunction]

    @property
    def values(self) -> dict[str, int]:
        """The integers of the record, by name."""
        return dict(zip(self.fields.names or (), self.record.view(np.int64).tolist(), strict=True))

    def link(self) -> None:
        """Make the record ready to be read by jobs."""
        for name, function in self.functions.items():
            self.record.view(self.fields)[name] = function.address


def record(
    dtype: np.dtype, jobs: int, slab: int, tables: Mapping[str, np.ndarray | CFunction], **values: int
) -> Geometry:
    """Fill a geometry record: arrays and functions go in by address, and stay alive with it."""
    filled = np.zeros(1, dtype)
    arrays = {name: table for name, table in tables.items() if isinstance(table, np.ndarray)}
    functions = {name: table for name, table in tables.items() if isinstance(table, CFunction)}
    for name, value in values.items():
        filled[name] = value
    for name, array in arrays.items():
        filled[name] = array.ctypes.data
    return Geometry(filled.view(np.uint8), tuple(arrays.values()), jobs, slab, dtype, functions)


def fields(*names: str) -> np.dtype:
    """The dtype of a geometry record of int64 fields."""
    return np.dtype([(name, np.int64) for name in names])


def split(
    lines: int, line_bytes: int, blocks: int, block_bytes: int, outer: int, wanted: int, raw: bool = False
) -> tuple[int, int]:
    """Cut a grid of `outer` x `lines` x `blocks` into equal jobs; return (lines, blocks) per job.

    The input of a job stays in half of L2 while its filter blocks pass over it, and there are at least
    `wanted` jobs, four for each thread, where the grid allows it. With `raw` weights each job packs its own, so
    lines are not cut further only to share them evenly.
    """
    pieces, chunks = -(-lines // max(1, host().l2 // 2 // max(1, line_bytes))), 1
    while outer * pieces * chunks < wanted and pieces * chunks < lines * blocks:
        # Each piece reads all the weights again, each chunk all the input: cut where that is less.
        weights_again = pieces * blocks * block_bytes <= chunks * lines * line_bytes
        if pieces < lines and (weights_again or chunks == blocks):
            pieces = min(lines, 2 * pieces)
        else:
            chunks = min(blocks, 2 * chunks)
    turns = max(1, wanted // 4)  # a number of pieces that the threads can share evenly
    pieces = max(1, min(lines, -(-pieces // turns) * turns))
    per_job = max(1, -(-lines // pieces)), -(-blocks // chunks)
    return share_evenly(max(1, lines), blocks, per_job, outer, turns, most_pieces=1 if raw else 4)


def share_evenly(
    lines: int, blocks: int, per_job: tuple[int, int], outer: int, threads: int, most_pieces: int = 4
) -> tuple[int, int]:
    """Smaller jobs of a grid, (lines, blocks), where those given would leave threads idle at the end.

    As few as will do; the lines of a job are cut into `most_pieces` at most.
    """
    ideal = outer * lines * blocks / threads

    def cut(job: tuple[int, int]) -> tuple[float, int]:
        jobs, size = outer * -(-lines // job[0]) * -(-blocks // job[1]), job[0] * job[1]
        # No longer than if all jobs were whole, nor than all work shared and one job more (Graham 1969).
        return max(_EVEN, min(-(-jobs // threads) * size, ideal + size * (threads - 1) / threads) / ideal), jobs

    if threads == 1 or not ideal or cut(per_job)[0] <= _EVEN:
        return per_job
    pieces = -(-lines // per_job[0])
    fewer_lines = {-(-lines // n) for n in range(pieces, min(lines, most_pieces * pieces) + 1)}
    fewer_blocks = {-(-per_job[1] // n) for n in (1, 2, 3, 4)}
    return min([per_job, *product(sorted(fewer_lines), sorted(fewer_blocks))], key=cut)


class Launch:
    """A kernel with everything known but the arrays: strides, jobs, scratch.

    Safe to call from several threads at once: each call takes a workspace of its own.
    """

    __slots__ = ("_address", "_launcher", "_serial", "_tables", "_tail", "_threads", "_workspaces", "slab")

    def __init__(self, address: int, geometry: Geometry, threads: int) -> None:
        self._launcher, self._address, self._tables = image_launcher(), address, geometry
        self._threads, self.slab = max(1, min(threads, geometry.jobs)), geometry.slab
        self._serial = self._launcher.serial if self._threads == 1 else None
        geometry.link()
        self._tail = (geometry.record.ctypes.data, geometry.jobs)
        self._workspaces: deque[tuple[int, np.ndarray]] = deque()  # addresses, and what lies there

    def __call__(self, x: np.ndarray, second: np.ndarray, third: np.ndarray, out: np.ndarray) -> None:
        """Run every job on these arrays."""
        try:
            memory = self._workspaces.pop()
        except IndexError:
            new = workspace(self.slab, self._threads)
            memory = new.ctypes.data, new
        if self._serial is not None:
            ids = id(x), id(second), id(third), id(out)
            self._serial(self._address, memory[0], self.slab, Mode.bits, *self._tail, *ids)
        else:
            arrays, threads = (x, second, third, out), usable_threads(self._threads)
            self._launcher(self._address, arrays, memory[0], self.slab, *self._tail, threads)
        self._workspaces.append(memory)


class Kernel(ABC):
    """One algorithm bound to a problem: the part that convolution and pooling share.

    Attributes
    ----------
    function : fastconv.jit.CFunction
        The job (see `fastconv.jit.job_kernel`), compiled when it is first run; held here, for its address dies with it.
    threads : int
        Threads asked for; fewer are used where there are fewer jobs.
    layout_copies : str
        Which arrays a run copies to another layout, for `Plan.explain`.
    lane_axis : int or None
        The axis whose elements must be neighbours in input and result, if any.
    """

    function: Any
    layout_copies = "none"
    lane_axis: int | None = None

    def __init__(self, problem: Any, params: Params, threads: int) -> None:
        self.problem, self.params, self.threads = problem, params, threads
        self.item = problem.itemsize
        self.lanes = host().lanes(self.item)
        self._launches: dict[tuple, Launch | None] = {}

    @abstractmethod
    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        """The record for arrays with these strides (n, c, h, w), in elements."""

    def writes(self, out: tuple[int, ...]) -> bool:
        """Whether results can be written to an array with these strides; if not, they are copied there."""
        return self.lane_axis is None or out[self.lane_axis] == 1

    def reads(self, x: tuple[int, ...]) -> bool:
        """Whether an input with these strides can be read; if not, it is copied first."""
        return self.lane_axis is None or x[self.lane_axis] == 1

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Of the two arrays whose strides `geometry` takes."""
        return self.problem.in_shape, self.problem.out_shape

    def wanted_jobs(self, per_thread: int) -> int:
        """Enough jobs to keep every thread busy to the end; one thread needs no cutting."""
        return per_thread * self.threads if self.threads > 1 else 1

    def dense_geometry(self) -> Geometry:
        """`geometry` for arrays in the problem's own memory format."""
        return self.geometry(*(dense_strides(shape, self.problem.memory_format) for shape in self.shapes))

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run on arrays in the problem's own memory format."""
        return self.scratch_bytes(self.dense_geometry())

    def scratch_bytes(self, geometry: Geometry) -> int:
        """Scratch memory of all threads of one run."""
        return min(self.threads, geometry.jobs) * geometry.slab

    def launch(self, x: np.ndarray, out: np.ndarray) -> Launch | None:
        """What runs the jobs on arrays with these strides; None if the kernel cannot take them."""
        key = (x.strides, out.strides)
        try:
            return self._launches[key]
        except KeyError:
            if len(self._launches) >= _MOST_LAYOUTS:
                self._launches.clear()
            launch = self._launches[key] = self._launch(*key)
            return launch

    def _launch(self, x: tuple[int, ...], out: tuple[int, ...]) -> Launch | None:
        x, out = (tuple(s // self.item for s in strides) for strides in (x, out))
        if not (self.reads(x) and self.writes(out)):
            return None
        return Launch(self.function.address, self.geometry(x, out), self.threads)


class ConvKernel(Kernel):
    """A convolution algorithm bound to a problem: packs weights once, then runs on arrays.

    A subclass compiles its job function, chooses how weights are packed, and lays out the integers that a
    job reads.
    """

    pack: Packer

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.epilogue = np.array(EPILOGUES[problem.activation], problem.dtype)

    @property
    def epilogue_address(self) -> int:
        """Where the activation's constants are, or 0 for none."""
        return self.epilogue.ctypes.data if self.problem.activation else 0

    def run(self, x: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        """Compute `out` from `x`; both (N, C, H, W) with the problem's sizes and dtype.

        Safe to call from several threads at once.
        """
        if not out.size:
            return
        launch = self.launch(x, out)
        if launch is not None:
            launch(x, *packed, out)
            return
        dense, result = (empty(a.shape, a.dtype, self.problem.memory_format) for a in (x, out))
        np.copyto(dense, x)
        self.run(dense, packed, result)
        np.copyto(out, result)

    def convolve(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with weights and bias as they are."""
        self.run(x, self.pack(weight, bias), out)

    def bound(self, x: np.ndarray, out: np.ndarray) -> Callable[[np.ndarray, Packed, np.ndarray], None]:
        """`run` for arrays with the strides of these, which takes no time to find out what to do."""
        launch = self.launch(x, out) if out.size else None
        if launch is None:
            return self.run
        return lambda x, packed, out: launch(x, *packed, out)

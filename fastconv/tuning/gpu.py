"""Arrays on a GPU for the autotuner, and candidates that run on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from fastconv import algorithms
from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, Library, as_device_array, library_of
from fastconv.cuda.properties import FIRST, first
from fastconv.cuda.timing import Timer
from fastconv.cuda.toolkit import cuda, require
from fastconv.problem import ConvProblem, Problem
from fastconv.tuning.measure import Workload

_HALVES = ("float16", "bfloat16")
_STORED = ("float32", "float64", "int64", "int16")


def current() -> Any:
    """A context manager in which the first GPU is the current one.

    Raises
    ------
    ImportError
        If what a GPU needs is not installed.
    ValueError
        If there is no GPU.
    """
    require()
    if first() is None:
        raise ValueError("problems on a GPU are measured on one, and there is none here, or no driver for it")
    return cuda.gpus[FIRST]


class _Arena(Library):
    """A library that gives the same memory to every run, so that only kernels are timed, not Numba's allocations."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._made: list[tuple[tuple, Any]] = []
        self._used = 0

    def reset(self) -> None:
        """What was given may be given again: in a stream, the next run's kernels start when this one's are done."""
        self._used = 0

    def owns(self, x: Any) -> bool:
        return x is self

    def describe(self, x: Any) -> DeviceArray:
        return replace(self._library.describe(x), owner=self)

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        key = (shape, strides, dtype)
        if self._used == len(self._made) or self._made[self._used][0] != key:
            self._made[self._used :] = [(key, self._library.new(shape, strides, dtype, like))]
        self._used += 1
        return self._made[self._used - 1][1]


class _Sent:
    """An array of the host's, and the same elements on the GPU in the same order of memory."""

    def __init__(self, host: np.ndarray, dtype: str, format: str) -> None:
        self.host, self.dtype = host, dtype
        self._last = format == "channels_last" and host.ndim == 4
        self._flat = cuda.to_device(self._encoded(host))
        strides = dense_strides(host.shape, format) if host.ndim == 4 else (1,)
        self.array = replace(
            as_device_array(self._flat, "x", None, _STORED), shape=host.shape, strides=strides, dtype=dtype
        )

    def poison(self) -> None:
        """Write what no kernel writes."""
        if self.dtype == "int64":
            self.host.fill(-2)
        else:
            self.host.fill(np.nan)
        self._flat.copy_to_device(self._encoded(self.host))

    def fetch(self) -> None:
        """Bring the GPU's elements to the host's array."""
        flat = self._flat.copy_to_host()
        if self.dtype == "float16":
            flat = flat.view(np.float16)
        if self.dtype == "bfloat16":
            flat = (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        n, c, h, w = self.host.shape
        self.host[...] = flat.reshape(n, h, w, c).transpose(0, 3, 1, 2) if self._last else flat.reshape(n, c, h, w)

    def _encoded(self, host: np.ndarray) -> np.ndarray:
        """Elements in the order of memory; those of 16 bits as bits, which the values of `host` fit in."""
        flat = np.ascontiguousarray(host.transpose(0, 2, 3, 1) if self._last else host).reshape(-1)
        if self.dtype == "float16":
            return flat.astype(np.float16).view(np.int16)
        return (flat.view(np.uint32) >> 16).astype(np.uint16).view(np.int16) if self.dtype == "bfloat16" else flat


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """`x` with values that elements of `dtype` have; of finite values, to the nearest."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


class DeviceWorkload:
    """The arrays of a problem on the first GPU, whose context must be current.

    Where input and result together are larger than a quarter of the second cache, there are as many sets of them as
    fill it twice, and runs take them in turn: no run finds what it reads there, as in a network between whose layers
    other data passes.

    Attributes
    ----------
    host : Workload
        The same numbers, for the reference.
    timer : Timer
    """

    def __init__(self, problem: Problem, host: Workload) -> None:
        gpu = first()
        assert gpu is not None
        pieces = {name: array for name, array in vars(host).items() if array is not None}
        if problem.dtype in _HALVES:
            pieces = {name: rounded(array, problem.dtype) if name != "out" else array for name, array in pieces.items()}
        host.out.fill(np.nan)
        self.problem, self.host, self.timer = problem, Workload(**pieces), Timer(FIRST)
        moved = sum(problem.itemsize * array.size for name, array in pieces.items() if name not in ("weight", "bias"))
        count = 1 if moved <= gpu.l2 / 4 else max(2, math.ceil(2 * gpu.l2 / moved))
        self._sets = [
            {name: _Sent(array, self._dtype(name), self._format(name)) for name, array in pieces.items()}
            for _ in range(count)
        ]

    def _dtype(self, name: str) -> str:
        return "int64" if name == "indices" else self.problem.dtype

    def _format(self, name: str) -> str:
        weights = name == "weight" or (name == "out" and self.problem.operation == "conv_backward_weight")
        return "contiguous" if weights else self.problem.memory_format

    def prepare(self, candidate: algorithms.Candidate) -> tuple[Any, Turns]:
        """The candidate's kernel, and what runs it; weights are packed now, unless the problem has them as they are."""
        problem = self.problem
        kernel = algorithms.module_of(problem, candidate.algorithm).make(problem, dict(candidate.params), 1)
        packed = None
        if isinstance(problem, ConvProblem) and problem.direction == "forward" and not problem.raw:
            own = self._arrays(self._sets[0], self._arena())
            packed = kernel.pack(own["weight"], own.get("bias"))
        arena = self._arena()
        return kernel, Turns(arena, [self._run(kernel, self._arrays(one, arena), packed) for one in self._sets])

    def _run(self, kernel: Any, arrays: dict[str, DeviceArray], packed: Any) -> Callable[[], None]:
        x, out = arrays["x"], arrays["out"]
        if not isinstance(self.problem, ConvProblem):
            return partial(kernel.run, x, out, arrays.get("indices"))
        if self.problem.direction == "backward_weight":
            return partial(kernel.run, x, arrays["grad"], out)
        if packed is None:
            return partial(kernel.convolve, x, arrays["weight"], arrays.get("bias"), out)
        return partial(kernel.run, x, packed, out)

    def _arena(self) -> _Arena:
        library = library_of(self._sets[0]["x"].array.owner)
        assert library is not None
        return _Arena(library)

    @staticmethod
    def _arrays(sent: dict[str, _Sent], arena: _Arena) -> dict[str, DeviceArray]:
        """The arrays of a set, beside which kernels find their scratch memory in an arena."""
        return {name: replace(one.array, owner=arena) for name, one in sent.items()}

    def run_once(self, call: Turns) -> None:
        """Run on the first set, and bring its results to the host's arrays; nothing of a former run is left in them."""
        results = [self._sets[0][name] for name in ("out", "indices") if name in self._sets[0]]
        for result in results:
            result.poison()
        call.first()
        for result in results:
            result.fetch()


class Turns:
    """Runs of a candidate that take the sets of arrays in turn."""

    def __init__(self, arena: _Arena, runs: list[Callable[[], None]]) -> None:
        self._arena, self._runs, self._turn = arena, runs, cycle(runs)

    def __call__(self) -> None:
        self._arena.reset()
        next(self._turn)()

    def first(self) -> None:
        """Run on the first set."""
        self._arena.reset()
        self._runs[0]()

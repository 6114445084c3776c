"""From a problem to a kernel that is ready to run: wisdom, else the cost model, corrected by what was measured."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numba
import numpy as np

from fastconv import algorithms
from fastconv.algorithms import Candidate
from fastconv.arrays import check_room
from fastconv.jit import kept_over_forks
from fastconv.problem import ConvProblem, Problem
from fastconv.sizes import shown
from fastconv.tuning import learn, wisdom

Mode = Literal["heuristic", "measure", "wisdom"]

_RESULTS = {"forward": "out_shape", "backward_input": "in_shape", "backward_weight": "weight_shape"}
# Below this a parallel region costs more than it saves.
_WORTH_THREADS_NS = 10_000


@dataclass(frozen=True)
class Choice:
    """Which candidate computes a problem, and why.

    Attributes
    ----------
    candidate : Candidate
        Algorithm and parameters.
    source : {"wisdom", "cost model", "measured", "requested"}
        Who chose it; "requested" is an algorithm that the caller named.
    predicted_ns : float
        The cost model's time on one thread or a GPU, in nanoseconds.
    threads : int
        Threads that the kernel may use.
    entry : wisdom.Entry, optional
        The measurement behind the choice.
    max_workspace : int, optional
        The limit that it had to keep.
    """

    candidate: Candidate
    source: str
    predicted_ns: float
    threads: int
    entry: Any = None
    max_workspace: int | None = None


class WisdomError(LookupError):
    """In mode "wisdom", a problem that has never been tuned on this machine."""


def _checked(mode: str, name: str) -> str:
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise ValueError(f"{name} must be one of {get_args(Mode)}, got {shown(mode)}")
    return mode


class _State:
    mode = os.environ.get("FASTCONV_MODE", "heuristic")  # checked when it is used: an import should not fail
    lock = kept_over_forks(threading.RLock())


def set_mode(mode: Mode) -> None:
    """Say where choices come from.

    Parameters
    ----------
    mode : {"heuristic", "measure", "wisdom"}
        "heuristic", the default: wisdom, else the cost model; nothing is ever timed. "measure": a
        problem seen for the first time is tuned, then remembered on disk. "wisdom": wisdom, or an error.
        The environment variable ``FASTCONV_MODE`` sets the mode at import.

    Raises
    ------
    ValueError
        For another mode.
    """
    _State.mode = _checked(mode, "mode")
    forget()


def forget() -> None:
    """Drop remembered choices, so that the next calls see new wisdom."""
    for clear in list(_forgetters):
        clear()


_forgetters: list[Any] = []


def on_forget(clear: Any) -> None:
    """Register a cache that depends on choices; `clear` is called when they may have changed."""
    _forgetters.append(clear)


def choose(
    problem: Problem, algorithm: str | None = None, threads: int | None = None, max_workspace: int | None = None
) -> Choice:
    """Decide how to compute `problem` without compiling its kernel.

    Parameters
    ----------
    problem : Problem
    algorithm : str, optional
        Use this algorithm, with the best parameters known for it.
    threads : int, optional
        At most so many; as many as Numba was started with if not given. Numba's current limit counts at
        each run.
    max_workspace : int, optional
        Bytes of scratch memory that a call may take: the best of what fits, measured or predicted.

    Raises
    ------
    ValueError
        If the algorithm is unknown or does not support the problem, nothing fits in `max_workspace`, or
        ``FASTCONV_MODE`` is no mode.
    WisdomError
        In mode "wisdom", if the problem has not been tuned and there is something to choose.
    """
    _checked(_State.mode, "the environment variable FASTCONV_MODE")
    threads = _threads(problem, threads)
    entry, known = _known(problem, threads), "wisdom"
    if entry is None and algorithm is None and _State.mode != "heuristic" and _worth_measuring(problem):
        entry, known = _without_wisdom(problem, threads), "measured"
    if entry is not None and algorithm in (None, entry.candidate.algorithm):
        for candidate, on in _fastest_first(problem, entry, algorithm):
            if max_workspace is None or algorithms.workspace_bytes(problem, candidate, on) <= max_workspace:
                predicted = algorithms.predicted_ns(problem, candidate)
                return Choice(candidate, known, predicted, on, entry, max_workspace)
        if _State.mode == "wisdom" and algorithm is None:
            raise WisdomError(
                f"everything measured for {problem.descriptor} needs more than max_workspace={max_workspace}"
            )
    source = "cost model" if algorithm is None else "requested"
    return _by_model(problem, algorithm, threads, max_workspace, source)


def _threads(problem: Problem, threads: int | None) -> int:
    """Threads of the CPU that may be used."""
    return wisdom.usable_threads(problem, threads or numba.config.NUMBA_NUM_THREADS)


def _fastest_first(problem: Problem, entry: Any, algorithm: str | None) -> Iterator[tuple[Candidate, int]]:
    """The winner of an entry, and the others that were measured for it, with their threads."""
    yield entry.candidate, entry.run_threads
    for found in sorted(entry.current(), key=lambda m: m.ns):
        if algorithm in (None, found.candidate.algorithm) and algorithms.offered(problem, found.candidate):
            yield found.candidate, found.threads


def _by_model(problem: Problem, algorithm: str | None, threads: int, max_workspace: int | None, source: str) -> Choice:
    """The best predicted candidate that fits."""
    needed = []
    for candidate in algorithms.candidates(problem, algorithm, learn.correction(problem, threads)):
        predicted = algorithms.predicted_ns(problem, candidate)
        on = threads if predicted > _WORTH_THREADS_NS else 1
        choice = Choice(candidate, source, predicted, on, max_workspace=max_workspace)
        if max_workspace is None:
            return choice
        needed.append(algorithms.workspace_bytes(problem, candidate, choice.threads))
        if needed[-1] <= max_workspace:
            return choice
    raise ValueError(
        f"max_workspace must be at least {min(needed)} bytes for {problem.descriptor} on {threads} thread(s), "
        f"got {max_workspace}"
    )


def _worth_measuring(problem: Problem) -> bool:
    return problem.batch > 0 and len(algorithms.candidates(problem)) > 1


def _known(problem: Problem, threads: int) -> Any:
    """The measurement of a problem, else of the same one without bias and activation, which cost little."""
    similar = [problem]
    if isinstance(problem, ConvProblem) and (problem.bias or problem.activation):
        similar.append(replace(problem, bias=False, activation=None))
    found = (wisdom.lookup(p, threads) for p in similar)
    return next((entry for entry in found if entry is not None and algorithms.offered(problem, entry.candidate)), None)


def _without_wisdom(problem: Problem, threads: int) -> Any:
    if _State.mode == "wisdom":
        raise WisdomError(f"no wisdom for {problem.descriptor} with {threads} threads; run `fastconv tune` on it")
    from fastconv.tuning.search import tune  # compiles and times: only where that was asked for

    tune([problem], threads=threads)
    return wisdom.lookup(problem, threads)


def kernel_for(
    problem: Problem, algorithm: str | None = None, threads: int | None = None, max_workspace: int | None = None
) -> tuple[Any, Choice]:
    """The kernel that computes `problem`, and why it was chosen; it is compiled or loaded when it is first run.

    Kernels are kept and shared: the same problem gets the same object. Parameters and errors as `choose`.
    """
    if algorithm is not None and not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be None or the name of one, got {shown(algorithm)}")
    with _State.lock:
        return _kernel_for(problem, algorithm, _threads(problem, threads), max_workspace)


@lru_cache(maxsize=512)
def _kernel_for(problem: Problem, algorithm: str | None, threads: int, max_workspace: int | None) -> tuple[Any, Choice]:
    if problem.device == "cpu":
        _try_room(getattr(problem, _RESULTS[problem.direction]), np.dtype(problem.dtype))
    choice = choose(problem, algorithm, threads, max_workspace)
    code = algorithms.module_of(problem, choice.candidate.algorithm)
    return code.make(problem, dict(choice.candidate.params), choice.threads), choice


def _try_room(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise MemoryError where there is no memory for a result, before much thought is given to it."""
    check_room(math.prod(shape) * dtype.itemsize, shape)
    np.empty(shape, dtype)  # memory that nobody touches costs next to nothing


on_forget(_kernel_for.cache_clear)
wisdom.on_change(forget)

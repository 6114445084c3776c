"""What the measurements on this machine say of the cost model: a factor for each candidate of a new problem.

Tuning keeps the time of every candidate that it measured. Of one problem, only the ratios of measured to
predicted time count: how far each candidate's is from the mean of all. For another problem, a candidate's
is the mean of what it (and, counting less, its algorithm) had with the measured problems, each with the
weight of a Gaussian of its distance (kernel regression, Nadaraya 1964); the distance is between logarithms
of sizes. It is shrunk towards a factor of 1, the plain cost model, which so stays as it is where there is
nothing to go by.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.jit import kept_over_forks
from fastconv.problem import ConvProblem, PoolProblem, Problem
from fastconv.tuning import wisdom

_NEAR = 2.0  # octaves: measurements of problems much farther away count little
_OTHER_PARAMS = 0.1  # weight of an algorithm's other parameters
_PRIOR = 0.2  # weight of the plain cost model: that of so many measurements of the same problem
_MOST = 2.0  # of the logarithm of a ratio, so that an outlier does no harm

Correction = Callable[[Candidate], float]


def correction(problem: Problem, threads: int) -> Correction | None:
    """What to multiply the cost model's time of a candidate with, to compare it with those of other candidates.

    None where nothing of the kind has been measured on this machine.
    """
    measured = _measured(problem)
    return None if measured is None else measured.correction(_place(problem, threads))


def expected_ns(problem: Problem, candidate: Candidate, predicted_ns: float, threads: int) -> float | None:
    """The time to expect of a candidate on so many threads, or None where nothing of the kind has been measured."""
    measured = _measured(problem)
    return (
        None if measured is None else measured.expected_ns(_place(problem, threads), candidate, predicted_ns, threads)
    )


def _measured(problem: Any) -> _Measured | None:
    if not isinstance(problem, (ConvProblem, PoolProblem)):  # what cannot be tuned
        return None
    return _learned(problem.device).get(_kind(problem))


def _kind(problem: Problem) -> tuple[str, str, str]:
    return problem.operation, problem.memory_format, problem.device


def _place(problem: Problem, threads: int) -> np.ndarray:
    """Coordinates of a problem; the distance of two of one kind says how unlike they are."""
    if isinstance(problem, ConvProblem):
        channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        sizes = (channels, filters, problem.groups, *problem.kernel_size, math.prod(problem.conv_size))
        marks = (problem.raw, problem.groups > 1, problem.pool is not None)
    else:
        sizes = (problem.channels, *problem.pool.kernel_size, math.prod(problem.out_size), *problem.pool.stride)
        marks = (problem.return_indices, problem.pool.mode == "max", problem.pool.mode == "lp")
    stride = getattr(problem, "stride", (1, 1))
    values = [*sizes, max(1, problem.batch), threads, *stride, *stride, problem.itemsize, problem.itemsize]
    octaves = np.log2(np.array(values, float))  # products of sizes may be larger than int64
    return np.array([*octaves, *(2.0 * mark for mark in marks)])


class _Sums:
    """Measurements of one candidate, or of one algorithm: numbers of their runs, and deviations."""

    def __init__(self, rows: Iterable[tuple[int, float]]) -> None:
        self.runs, self.deviations = map(np.array, zip(*rows, strict=True))

    def __call__(self, near: np.ndarray) -> np.ndarray:
        """Sum of the deviations by weight, and sum of the weights."""
        weights = near[self.runs]
        return np.array([weights @ self.deviations, weights.sum()])


class _Measured:
    """The measurements of one kind; a run is those of one problem on one number of threads."""

    def __init__(self, runs: list[tuple[np.ndarray, int, list[wisdom.Measurement]]]) -> None:
        self.places, self.threads = np.array([place for place, *_ in runs]), np.array([n for _, n, _ in runs])
        rows: defaultdict[Any, list[tuple[int, float]]] = defaultdict(list)
        levels = []
        for run, (*_, found) in enumerate(runs):
            times = np.array([one.ns for one in found])
            logs = np.log(times / [one.predicted_ns for one in found])
            levels.append(np.average(logs, weights=(times.min() / times) ** 2))  # the slow ones were met seldom
            deviations = np.clip(logs - levels[-1], -_MOST, _MOST)
            for one, deviation in zip(found, deviations, strict=True):
                for key in (one.candidate, one.candidate.algorithm):
                    rows[key].append((run, deviation))
        self.levels = np.array(levels)
        self.sums = {key: _Sums(some) for key, some in rows.items()}

    def correction(self, place: np.ndarray) -> Correction:
        near = np.exp(-((self.places - place) ** 2).sum(axis=1) / (2 * _NEAR**2))

        def factor(candidate: Candidate) -> float:
            found = (self.sums.get(key) for key in (candidate, candidate.algorithm))
            own, algorithm = (np.zeros(2) if sums is None else sums(near) for sums in found)
            total, weight = own + _OTHER_PARAMS * algorithm
            return math.exp(total / (weight + _PRIOR))

        return factor

    def expected_ns(self, place: np.ndarray, candidate: Candidate, predicted_ns: float, threads: int) -> float | None:
        same = self.threads == threads
        if not same.any():
            return None
        return predicted_ns * self.correction(place)(candidate) * math.exp(np.median(self.levels[same]))


class _Last:
    """What was learned from the store as it last was, by device."""

    lock = kept_over_forks(threading.Lock())
    known: dict[str, tuple[Any, dict[tuple[str, str, str], _Measured]]] = {}  # noqa: RUF012 (shared by design)


def _learned(device: str) -> dict[tuple[str, str, str], _Measured]:
    index = wisdom.index(device)
    with _Last.lock:
        last, learned = _Last.known.get(device, (None, {}))
        if last is not index:
            learned = _learn(index.values())
            _Last.known[device] = index, learned
        return learned


def _learn(entries: Iterable[wisdom.Entry]) -> dict[tuple[str, str, str], _Measured]:
    runs = defaultdict(list)
    for entry in entries:
        problem, found = parse(entry.problem), entry.current()
        for threads in sorted({one.threads for one in found}):
            together = [one for one in found if one.threads == threads]
            if len(together) > 1:  # one alone says nothing about ratios
                runs[_kind(problem)].append((_place(problem, threads), threads, together))
    return {kind: _Measured(some) for kind, some in runs.items()}

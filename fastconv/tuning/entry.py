"""What was measured for one problem, and its form as JSON.

A file that holds entries may come from anybody and be damaged. So they are read strictly: every field must be of
its kind and of a size that it can have, or the whole entry is refused. Kernels trust the parameters that they are
given; whether those of an entry are offered by an algorithm is for `fastconv.algorithms.offered` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from fastconv import algorithms
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.tuning.validators import source_hash

_MOST = 2**53  # of any number: whole numbers up to here are exact in every JSON
_MOST_THREADS = 1 << 16
_LONGEST = 200  # characters of a text
_MOST_ITEMS = 1000
_NAME = re.compile(r"[a-zA-Z]\w{0,49}", re.ASCII)
_BRIEF = re.compile(r"[a-zA-Z]\w{0,49}( \w{1,50}=-?\d{1,15})*", re.ASCII)
_SIZES = re.compile(r"(?a:\D|\d{1,10}(?!\d))*")  # no number of more digits
_TIME = re.compile(r"(?a:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00)")  # so that texts sort as times do


class Measurement(NamedTuple):
    """The best time of one candidate on so many threads, and what the cost model says for one; whole nanoseconds."""

    candidate: Candidate
    threads: int
    ns: int
    predicted_ns: int


@dataclass(frozen=True)
class Entry:
    """What was measured for one problem.

    Attributes
    ----------
    problem : str
        Descriptor.
    threads : int
        Threads that were allowed, 1 for a problem on a GPU; with the descriptor, the key of the entry.
    candidate : Candidate
        The winner.
    run_threads : int
        Threads that the winner ran on: `threads`, or 1 where a parallel region costs more than it saves.
    ns, best_ns : float
        Median and minimum time of a run, in nanoseconds.
    spread : float
        (median - minimum) / minimum.
    gflops : float
    peak_fraction : float or None
        Rate at the minimum, in GFLOP/s, and its share of the FMA peak of `threads` threads, or of the GPU
        (`fastconv.cuda.properties.Properties.fma_gflops`); None where that is not known.
    workspace : int
        Scratch memory of a run, in bytes.
    runner_up : Candidate, optional
        The fastest of the others.
    margin : float, optional
        How much longer the runner-up's minimum is: 0.1 is 10%. Negative where an incumbent was kept
        because the difference was within the noise.
    time : str
        When, ISO 8601, UTC.
    measured : tuple of Measurement
        Of every candidate that took part, the slow ones from a few runs only.
    sources : dict of str to str
        Hash of the source (`validators.source_hash`) of each algorithm that took part.
    """

    problem: str
    threads: int
    candidate: Candidate
    run_threads: int
    ns: float
    best_ns: float
    spread: float
    gflops: float
    peak_fraction: float | None
    workspace: int
    runner_up: Candidate | None = None
    margin: float | None = None
    time: str = ""
    measured: tuple[Measurement, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def current(self) -> list[Measurement]:
        """`measured`, without kernels that were edited since."""
        problem = parse(self.problem)
        known = algorithms.names(problem.operation, problem.device)
        same = {a for a in known if self.sources.get(a) == source_hash(algorithms.source_of(problem, a))}
        return [found for found in self.measured if found.candidate.algorithm in same]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        second, measured = self.runner_up and _plain(self.runner_up), [_brief(m) for m in self.measured]
        return {**vars(self), "candidate": _plain(self.candidate), "runner_up": second, "measured": measured}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """The inverse of `as_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing or of the wrong kind. Unknown ones are passed over.
        """
        threads = _whole(values["threads"], 1, _MOST_THREADS)
        second, margin, share = values["runner_up"], values["margin"], values["peak_fraction"]
        measured = _items(values.get("measured", []), list)
        sources = _items(values.get("sources", {}), dict)
        return cls(
            _descriptor(values["problem"]), threads, _candidate(values["candidate"]),
            _whole(values["run_threads"], 1, threads), _number(values["ns"]), _number(values["best_ns"]),
            _number(values["spread"]), _number(values["gflops"]), None if share is None else _number(share),
            _whole(values["workspace"]), None if second is None else _candidate(second),
            None if margin is None else _number(margin, -1), _text(values["time"], _TIME),
            tuple(_measurement(found, threads) for found in measured),
            {_text(name, _NAME): _text(known) for name, known in sources.items()},
        )  # fmt: skip


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {"algorithm": candidate.algorithm, "params": dict(candidate.params)}


def _brief(found: Measurement) -> list[Any]:
    return [str(found.candidate), *found[1:]]


# Reading


def _whole(value: Any, least: int = 0, most: int = _MOST) -> int:
    if type(value) is not int or not least <= value <= most:  # a bool is an int to isinstance
        raise ValueError("not a whole number, or out of range")
    return value


def _number(value: Any, least: float = 0) -> float:
    if type(value) not in (int, float) or not least <= value <= _MOST:  # nor is NaN
        raise ValueError("not a number, or out of range")
    return float(value)


def _text(value: Any, pattern: re.Pattern | None = None) -> str:
    if type(value) is not str or len(value) > _LONGEST or not value.isprintable():
        raise ValueError("not a text, or too long")
    if pattern is not None and pattern.fullmatch(value) is None:
        raise ValueError("not a text of this kind")
    return value


def _items(value: Any, kind: Any) -> Any:
    if type(value) is not kind or len(value) > _MOST_ITEMS:
        raise ValueError("not a list or an object, or too long")
    return value


def scalars(value: Any) -> dict[str, Any]:
    """An object of texts, numbers, true, false and null, each of a moderate size.

    Raises
    ------
    ValueError
        If it is something else.
    """
    for name, one in _items(value, dict).items():
        _text(name)
        if isinstance(one, str):
            _text(one)
        elif one is not None and type(one) is not bool:
            _number(one, -_MOST)
    return value


def _descriptor(value: Any) -> str:
    if parse(_text(value, _SIZES)).descriptor != value:
        raise ValueError("not the descriptor as the problem writes it")
    return value


def _candidate(values: Any) -> Candidate:
    params = _items(_items(values, dict)["params"], dict)
    pairs = sorted((_text(name, _NAME), _whole(value, -_MOST)) for name, value in params.items())
    return Candidate(_text(values["algorithm"], _NAME), tuple(pairs))


def _measurement(values: Any, most: int) -> Measurement:
    text, threads, ns, predicted = _items(values, list)
    return Measurement(_brief_candidate(text), _whole(threads, 1, most), _whole(ns, 1), _whole(predicted, 1))


@lru_cache(maxsize=1024)
def _brief_candidate(value: Any) -> Candidate:
    """The inverse of ``str``; the same object for the same text, which many rows have."""
    algorithm, *pairs = _text(value, _BRIEF).split()
    split = (pair.split("=") for pair in pairs)
    return Candidate(algorithm, tuple((name, int(number)) for name, number in split))

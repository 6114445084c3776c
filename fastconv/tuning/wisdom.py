"""The measured winners, remembered on disk: one JSON line for each (problem, threads, machine).

The file is only ever appended to, a whole line at a time and under a lock, so that several processes
may tune at once and an interrupted run keeps what it has. A line says on which machine and with which
versions and kernel source it was measured; where those differ from here and now it is passed over, and
the most recent of the others counts. `$FASTCONV_WISDOM` names the file; without it, it lies in the
user's data directory (which takes the platformdirs package).
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fastconv import algorithms
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.jit import kept_over_forks
from fastconv.problem import DEVICES, Problem
from fastconv.tuning.validators import source_hash, validators

_INSTALL = "the wisdom store needs {}: pip install fastconv[tune]"


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
        descriptor, margin, share = values["problem"], values["margin"], values["peak_fraction"]
        parse(descriptor)
        return cls(
            descriptor, int(values["threads"]), _candidate(values["candidate"]), int(values["run_threads"]),
            float(values["ns"]), float(values["best_ns"]), float(values["spread"]), float(values["gflops"]),
            None if share is None else float(share), int(values["workspace"]),
            values["runner_up"] and _candidate(values["runner_up"]), None if margin is None else float(margin),
            str(values["time"]), tuple(map(_measurement, values.get("measured", ()))),
            dict(values.get("sources", {})),
        )  # fmt: skip


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {"algorithm": candidate.algorithm, "params": dict(candidate.params)}


def _candidate(values: dict[str, Any]) -> Candidate:
    return Candidate(values["algorithm"], tuple(sorted(values["params"].items())))


def _brief(found: Measurement) -> list[Any]:
    return [str(found.candidate), *found[1:]]


def _measurement(values: list[Any]) -> Measurement:
    text, threads, *ns = values
    algorithm, *params = text.split()
    pairs = (name.split("=") for name in params)
    candidate = Candidate(algorithm, tuple((name, int(value)) for name, value in pairs))
    measured, predicted = map(int, ns)
    if min(measured, predicted) < 1:
        raise ValueError(f"times must be positive, got {values}")
    return Measurement(candidate, int(threads), measured, predicted)


def path() -> Path | None:
    """Where the store is, or None if no place for it is known."""
    if named := os.environ.get("FASTCONV_WISDOM"):
        return Path(named)
    try:
        from platformdirs import user_data_dir
    except ImportError:
        return None
    return Path(user_data_dir("fastconv")) / "wisdom.jsonl"


def require() -> Path:
    """`path`, ready to be written to.

    Raises
    ------
    ImportError
        If platformdirs or filelock is not installed; says how to get them.
    """
    store = path()
    if store is None:
        raise ImportError(_INSTALL.format("platformdirs, or a file named by $FASTCONV_WISDOM"))
    if find_spec("filelock") is None:
        raise ImportError(_INSTALL.format("filelock"))
    return store


@contextmanager
def _locked() -> Any:
    store = require()
    from filelock import FileLock

    store.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{store}.lock"):
        yield store


# Reading


@dataclass(frozen=True)
class Row:
    """One line of the store: the entry and the machine that it was measured on."""

    entry: Entry
    machine: dict[str, Any]

    @property
    def stale(self) -> str | None:
        """Why the entry is not valid here and now, or None if it is."""
        try:
            here = validators(self.entry.problem, self.entry.candidate.algorithm)
        except ValueError as error:
            return str(error)
        differing = (name for name, value in here.items() if self.machine.get(name) != value)
        name = next(differing, None)
        return name and f"{name} was {self.machine.get(name)}, is {here[name]}"

    @property
    def text(self) -> str:
        """The line, without its end."""
        return json.dumps({**self.entry.as_dict(), "machine": self.machine}, separators=(",", ":"), sort_keys=True)


def _row(line: str) -> Row:
    values = json.loads(line)
    machine = values.pop("machine")
    if not isinstance(machine, dict):
        raise ValueError("machine is not an object")
    return Row(Entry.from_dict(values), machine)


def rows(store: Path) -> tuple[list[Row], list[int]]:
    """Readable rows of a file, oldest first, and the numbers of the lines that are damaged."""
    found, damaged = [], []
    for number, line in enumerate(store.read_bytes().split(b"\n"), 1):
        try:
            found += [_row(line.decode())] if line.strip() else []
        except (AttributeError, KeyError, TypeError, ValueError):
            damaged.append(number)
    return sorted(found, key=lambda row: row.entry.time), damaged


_EMPTY: dict[tuple[str, int], Entry] = {}


class _Index:
    """The file's rows in memory, read again when it has changed, and those valid here, by (descriptor, threads).

    Which are valid is found out by device, when it is first asked for: that of a GPU takes its driver.
    """

    lock = kept_over_forks(threading.Lock())
    seen: tuple | None = None
    rows: list[Row]
    valid: dict[str, dict[tuple[str, int], Entry]]
    warned: set[Path] = set()  # noqa: RUF012 (shared by design)


def _read(store: Path) -> list[Row]:
    """All readable rows; damaged lines are reported once for each file."""
    found, damaged = rows(store)
    if damaged and store not in _Index.warned:
        _Index.warned.add(store)
        warnings.warn(
            f"{store}: skipped {len(damaged)} damaged line(s), the first is line {damaged[0]}", RuntimeWarning,
            stacklevel=3,
        )  # fmt: skip
    return found


def index(device: str) -> dict[tuple[str, int], Entry]:
    """Valid entries of a device by descriptor and threads; the same object as long as the store is the same."""
    store = path()
    try:
        state = None if store is None else os.stat(store)
    except OSError:
        state = None
    if store is None or state is None:
        return _EMPTY
    seen = (store, state.st_mtime_ns, state.st_size, state.st_ino)
    with _Index.lock:
        if _Index.seen != seen:
            _Index.rows, _Index.valid, _Index.seen = _read(store), {}, seen
        if device not in _Index.valid:
            here = [row for row in _Index.rows if parse(row.entry.problem).device == device]
            usable = [row.entry for row in here if row.stale is None]
            _Index.valid[device] = {(e.problem, e.threads): e for e in usable}
        return _Index.valid[device]


def usable_threads(problem: Problem, threads: int) -> int:
    """How many of so many threads count for a problem, and are in the key of its entry: one starts a GPU's kernels."""
    return threads if problem.device == "cpu" else 1


def lookup(problem: Problem, threads: int) -> Entry | None:
    """The most recent valid measurement of a problem on this machine, or None."""
    return index(problem.device).get((problem.descriptor, usable_threads(problem, threads)))


def entries() -> list[Entry]:
    """Every valid entry of this machine, the most recent for each problem and thread count."""
    return [entry for device in DEVICES for entry in index(device).values()]


# Writing


_listeners: list[Callable[[], None]] = []


def on_change(callback: Callable[[], None]) -> None:
    """Have `callback` called whenever this process has changed the store."""
    _listeners.append(callback)


def append(entry: Entry) -> Entry:
    """Store an entry, stamped with the time and this machine; return it as stored.

    Raises
    ------
    ImportError
        If platformdirs or filelock is not installed.
    """
    problem = parse(entry.problem)
    took_part = dict.fromkeys(found.candidate.algorithm for found in entry.measured)
    sources = {name: source_hash(algorithms.source_of(problem, name)) for name in took_part}
    stamped = replace(entry, time=datetime.now(UTC).isoformat(timespec="microseconds"), sources=sources)
    with _locked() as store:
        _write(store, [Row(stamped, validators(stamped.problem, stamped.candidate.algorithm))])
    return stamped


def _write(store: Path, new: Iterable[Row]) -> None:
    """Add whole lines with one write; a line torn by a crash is ended first."""
    data = "".join(row.text + "\n" for row in new).encode()
    descriptor = os.open(store, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            data = data if os.read(descriptor, 1) == b"\n" else b"\n" + data
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    for callback in _listeners:
        callback()


def history() -> list[Row]:
    """Every readable row, of any machine: the most recent for each problem, thread count and machine."""
    store = path()
    latest: dict[tuple, Row] = {}
    for row in _read(store) if store is not None and store.exists() else []:
        latest[row.entry.problem, row.entry.threads, json.dumps(row.machine, sort_keys=True)] = row
    return list(latest.values())


def export(target: Path) -> int:
    """Write `history` to a file that `merge` reads; return how many rows it has."""
    found = history()
    target.write_text("".join(row.text + "\n" for row in found))
    return len(found)


def merge(source: Path) -> int:
    """Add the rows of another store that this one does not have; return how many those were.

    Raises
    ------
    OSError
        If `source` cannot be read.
    """
    candidates = _read(source)
    with _locked() as store:
        known = {row.text for row in _read(store)} if store.exists() else set()
        new = list({row.text: row for row in candidates if row.text not in known}.values())
        if new:
            _write(store, new)
    return len(new)


def clear() -> int:
    """Empty the store; return how many rows it had."""
    with _locked() as store:
        if not store.exists():
            return 0
        count = len(rows(store)[0])
        os.truncate(store, 0)
    for callback in _listeners:
        callback()
    return count

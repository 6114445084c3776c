"""The measured winners, remembered on disk: one JSON line for each (problem, threads, machine).

The file is only ever appended to, a whole line at a time and under a lock, so that several processes
may tune at once and an interrupted run keeps what it has. A line says on which machine and with which
versions and kernel source it was measured; where those differ from here and now it is passed over, and
the most recent of the others counts. `$FASTCONV_WISDOM` names the file; without it, it lies in the
user's data directory (which takes the platformdirs package).

Lines that are damaged are skipped, and a store that cannot be read is taken as empty, with one warning each.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.jit import kept_over_forks
from fastconv.problem import DEVICES, Problem
from fastconv.tuning import lines
from fastconv.tuning.entry import Entry, Measurement, scalars
from fastconv.tuning.validators import source_hash, validators

__all__ = ["Entry", "Measurement"]

_INSTALL = "the wisdom store needs {}: pip install fastconv[tune]"


def path() -> Path | None:
    """Where the store is, or None if no place for it is known."""
    if named := os.environ.get("FASTCONV_WISDOM"):
        return Path(named)
    try:
        from platformdirs import user_data_dir

        return Path(user_data_dir("fastconv")) / "wisdom.jsonl"
    except (ImportError, RuntimeError):  # not installed; a user without a home
        return None


def check_packages() -> None:
    """Raise ImportError if a package that the store needs is not installed; says how to get it."""
    if path() is None and find_spec("platformdirs") is None:
        raise ImportError(_INSTALL.format("platformdirs, or a file named by $FASTCONV_WISDOM"))
    if find_spec("filelock") is None:
        raise ImportError(_INSTALL.format("filelock"))


def require() -> Path:
    """`path`, of a store that is to be written to.

    Raises
    ------
    ImportError
        If platformdirs or filelock is not installed; says how to get them.
    OSError
        If the user has no home and no file is named.
    """
    check_packages()
    store = path()
    if store is None:
        raise OSError("there is no home directory for the wisdom store; let FASTCONV_WISDOM name a file")
    return store


@contextmanager
def _locked() -> Any:
    store = require()
    with lines.locked(store):
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
    def key(self) -> tuple[str, int, str]:
        """What only the most recent row counts of: problem, threads and machine."""
        return self.entry.problem, self.entry.threads, json.dumps(self.machine, sort_keys=True)

    @property
    def text(self) -> str:
        """The line, without its end."""
        return json.dumps({**self.entry.as_dict(), "machine": self.machine}, separators=(",", ":"), sort_keys=True)


def _row(line: bytes) -> Row:
    values = json.loads(line.decode())
    return Row(Entry.from_dict(values), scalars(values["machine"]))


def _readable(line: bytes | None) -> Row | None:
    """The row that a line is, or None if it is damaged."""
    try:
        return None if line is None else _row(line)
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError):
        return None


def rows(store: Path, regular: bool = True) -> tuple[list[Row], int, int]:
    """Readable rows of a file, oldest first; how many lines are damaged, and the number of the first of them, or 0.

    A last line without an end may be one that another process is writing; it is no damage.

    Raises
    ------
    OSError
        If the file cannot be read, or, if it has to be a regular one, is something else.
    """
    for _ in range(_LOOKS if regular else 1):
        before, found, damaged, first = _state(store), [], 0, 0
        for number, line in lines.read(store, regular):
            row = _readable(line)
            if row is not None:
                found.append(row)
            elif line is None or line.endswith(b"\n"):
                damaged, first = damaged + 1, first or number
        if not damaged or _state(store) == before:
            break  # else a writer may have put its line in the place of a torn one, half of which was read
    return sorted(found, key=lambda row: row.entry.time), damaged, first


_LOOKS = 3  # at a file that is damaged and changes
_EMPTY: dict[tuple[str, int], Entry] = {}


class _Index:
    """The file's rows in memory, read again when it has changed, and those valid here, by (descriptor, threads).

    Which are valid is found out by device, when it is first asked for: that of a GPU takes its driver.
    """

    lock = kept_over_forks(threading.Lock())
    seen: tuple | None = None
    rows: list[Row]
    valid: dict[str, dict[tuple[str, int], Entry]]
    unsaved: defaultdict[Path | None, list[Row]] = defaultdict(list)  # noqa: RUF012 (shared by design)
    warned: set[tuple] = set()  # noqa: RUF012 (shared by design)


def _warn_once(store: Path | None, kind: str, text: str) -> None:
    if (store, kind) not in _Index.warned:
        _Index.warned.add((store, kind))
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def _read(store: Path, regular: bool = True) -> list[Row]:
    """All readable rows; damaged lines are reported once for each file. Errors as `rows`."""
    found, damaged, first = rows(store, regular)
    if damaged:
        _warn_once(store, "damaged", f"{store}: skipped {damaged} damaged line(s), the first is line {first}")
    if store.stat().st_size > lines.MOST:
        text = f"{store}: read the last {lines.MOST >> 20} MiB only; export, clear and merge leave what counts"
        _warn_once(store, "large", text)
    return found


def _read_if_possible(store: Path) -> list[Row]:
    try:
        return _read(store)
    except OSError as error:
        _warn_once(store, "unreadable", f"the wisdom store cannot be read, and is taken as empty: {error}")
        return []


def _state(store: Path | None) -> tuple | None:
    """What changes when the file does, or None if there is none."""
    try:
        state = None if store is None else os.stat(store)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (error.errno,)
    return state and (state.st_mtime_ns, state.st_size, state.st_ino)


def index(device: str) -> dict[tuple[str, int], Entry]:
    """Valid entries of a device by descriptor and threads; the same object as long as the store is the same."""
    store = path()
    state, unsaved = _state(store), _Index.unsaved.get(store, [])
    if state is None and not unsaved:
        return _EMPTY
    seen = (store, state, len(unsaved))
    with _Index.lock:
        if _Index.seen != seen:
            saved = [] if store is None or state is None else _read_if_possible(store)
            _Index.rows, _Index.valid, _Index.seen = [*saved, *unsaved], {}, seen
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
    OSError
        If the store cannot be written. It is then as before, whatever a full disk had taken of the line.
    """
    row = _stamped(entry)
    _store(row)
    return row.entry


def remember(entry: Entry) -> Entry:
    """`append`; where the store cannot be written the entry counts in this process only, with one warning."""
    row = _stamped(entry)
    try:
        _store(row)
    except OSError as error:
        where = path()
        _Index.unsaved[where].append(row)
        _changed()
        _warn_once(where, "unwritable", f"measurements count for this process only, the wisdom store fails: {error}")
    return row.entry


def check_writable() -> None:
    """Raise what `append` would, as far as it is known beforehand: ImportError or OSError."""
    try:
        with _locked() as store:
            lines.append(store, b"", _readable)
    except OSError as error:
        what = "the wisdom store cannot be written; let FASTCONV_WISDOM name a file that can be"
        raise OSError(f"{what}: {error}") from error


def _stamped(entry: Entry) -> Row:
    problem = parse(entry.problem)
    took_part = dict.fromkeys(found.candidate.algorithm for found in entry.measured)
    sources = {name: source_hash(algorithms.source_of(problem, name)) for name in took_part}
    stamped = replace(entry, time=datetime.now(UTC).isoformat(timespec="microseconds"), sources=sources)
    return Row(stamped, validators(stamped.problem, stamped.candidate.algorithm))


def _store(row: Row) -> None:
    with _locked() as store:
        _write(store, [row])


def _write(store: Path, new: Iterable[Row]) -> None:
    lines.append(store, "".join(row.text + "\n" for row in new).encode(), _readable)
    _changed()


def _changed() -> None:
    _Index.seen = None
    for callback in _listeners:
        callback()


def history() -> list[Row]:
    """Every readable row, of any machine: the most recent for each problem, thread count and machine.

    Raises
    ------
    OSError
        If there is a store that cannot be read.
    """
    store = path()
    found = _read(store) if store is not None and store.exists() else []
    return list({row.key: row for row in found}.values())


def export(target: Path) -> int:
    """Write `history` to a file that `merge` reads; return how many rows it has.

    Raises
    ------
    OSError
        If the file cannot be written, or the store cannot be read.
    ValueError
        If `target` is the store.
    """
    found, store = history(), path()
    if store is not None and store.exists() and target.exists() and target.samefile(store):
        raise ValueError(f"target must be another file than the store, got {target}")
    target.write_text("".join(row.text + "\n" for row in found))
    return len(found)


def merge(source: Path) -> int:
    """Add the rows of another store that this one does not have; return how many those were.

    Raises
    ------
    OSError
        If `source` cannot be read, or the store cannot be written.
    """
    candidates = _read(source, regular=False)
    with _locked() as store:
        known = {row.text for row in _read(store)} if store.exists() else set()
        new = list({row.text: row for row in candidates if row.text not in known}.values())
        if new:
            _write(store, new)
    return len(new)


def clear() -> int:
    """Empty the store; return how many rows it had. Errors as `append`."""
    with _locked() as store:
        count = 0
        if store.exists():
            count = len(rows(store)[0])
            os.truncate(store, 0)
    _Index.unsaved.pop(store, None)
    _changed()
    return count

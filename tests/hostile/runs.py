"""Many calls of a function, in processes that may die of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hostile.child import number_of

_CHILD = Path(__file__).with_name("child.py")


@dataclass
class Outcome:
    """What came of the calls of one function."""

    name: str
    endings: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


def run(name: str, count: int, first: int = 0, threads: int = 2) -> Outcome:
    """Make calls `first` to `first + count` of a function; one that kills its process is wrong, and the rest go on."""
    outcome, last = Outcome(name), first + count
    while first < last:
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            command = [sys.executable, str(_CHILD), name, str(first), str(last - first), str(state)]
            environment = {**os.environ, "NUMBA_NUM_THREADS": str(threads), "TMPDIR": folder}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode == 0:
                _add(outcome, json.loads(done.stdout.splitlines()[-1]))
                break
            if not state.exists():
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            died = number_of(state)
        why = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
        outcome.wrong.append(f"{name} {died}: ended its process by {why}: {done.stderr[-2000:]}")
        outcome.endings["wrong"] += 1
        if died > first:  # the counts of a process that dies are lost
            _merge(outcome, run(name, died - first, first, threads))
        first = died + 1
    return outcome


def _add(outcome: Outcome, found: dict) -> None:
    outcome.endings.update(found["endings"])
    outcome.slowest = max(outcome.slowest, found["slowest"])
    outcome.wrong += [f"{outcome.name} {number}: {why}\n  {text}" for number, why, text in found["wrong"]]


def _merge(outcome: Outcome, other: Outcome) -> None:
    outcome.endings.update(other.endings)
    outcome.slowest = max(outcome.slowest, other.slowest)
    outcome.wrong += other.wrong

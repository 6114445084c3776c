"""Many calls of a function, in processes that may die of it."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hostile import process
from hostile.child import number_of


@dataclass
class Outcome:
    """What came of the calls of one function."""

    name: str
    endings: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


def search(names: list[str], examples: int) -> Outcome:
    """Let Hypothesis make so many calls of each function, all in one process."""
    outcome = Outcome(",".join(names))
    done = process("child", outcome.name, "hypothesis", examples, os.devnull, math.inf)
    if done.returncode:
        raise RuntimeError(f"a call ended its process with {done.returncode}:\n{done.stderr[-3000:]}")
    _add(outcome, json.loads(done.stdout.splitlines()[-1]))
    return outcome


def run(name: str, count: int, first: int = 0, seconds: float = math.inf) -> Outcome:
    """Make calls `first` to `first + count` of a function; one that kills its process is wrong, and the rest go on."""
    outcome, last = Outcome(name), first + count
    while first < last:
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            done = process("child", name, first, last - first, state, seconds, TMPDIR=folder)
            if done.returncode == 0:
                _add(outcome, json.loads(done.stdout.splitlines()[-1]))
                break
            if not state.exists():
                raise RuntimeError(f"calls of {name} failed:\n{done.stderr}")
            died = number_of(state)
        why = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
        outcome.wrong.append(f"{name} {died}: ended its process by {why}: {done.stderr[-2000:]}")
        outcome.endings["wrong"] += 1
        if died > first:  # the counts of a process that dies are lost
            _merge(outcome, run(name, died - first, first, seconds))
        first = died + 1
    return outcome


def _add(outcome: Outcome, found: dict) -> None:
    outcome.endings.update(found["endings"])
    outcome.slowest = max(outcome.slowest, found["slowest"])
    outcome.wrong += [f"{number}: {why}\n  {text}" for number, why, text in found["wrong"]]


def _merge(outcome: Outcome, other: Outcome) -> None:
    outcome.endings.update(other.endings)
    outcome.slowest = max(outcome.slowest, other.slowest)
    outcome.wrong += other.wrong

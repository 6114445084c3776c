"""A process that makes calls until one ends wrongly, or kills it.

    python -m hostile.child NAMES FIRST COUNT STATE SECONDS

Calls FIRST to FIRST + COUNT of functions of the inventory, or COUNT of them that Hypothesis makes if FIRST is that
word. The number of the call at hand is in the file STATE, so that it is known which one killed the process. Prints
JSON: endings, the slowest call, and what was wrong.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile.inventory import INVENTORY
from hostile.judge import Ending, judge

_HANG = 150  # seconds of one call, which may compile a kernel, until the process is killed
_ROOM = 3 << 30  # bytes that calls may take: arrays that are larger fail, and nobody's machine starts to swap
_TOLD = 20  # failures


def number_of(state: Path) -> int:
    """The call that a process was making."""
    return struct.unpack("q", state.read_bytes())[0]


def limit_memory(room: int) -> None:
    """Let this process have so many bytes of addresses more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.getrlimit(resource.RLIMIT_AS)[1]))


def calls(names: list[str], first: int, count: int, state: Path, seconds: float) -> dict[str, Any]:
    """Make the calls of each function, for so many seconds at most, and count how they ended."""
    with open(state, "w+b") as file:
        file.write(bytes(8))
        file.flush()
        here = mmap.mmap(file.fileno(), 8)
    endings = dict.fromkeys(Ending, 0)
    found: dict[str, Any] = {"wrong": [], "slowest": 0.0}
    end = time.monotonic() + seconds
    for name, number in product(names, range(first, first + count)):
        here[:] = struct.pack("q", number)
        signal.alarm(_HANG)
        call = INVENTORY[name](Random(f"{name} {number}"))
        verdict = judge(call)
        endings[verdict.ending] += 1
        found["slowest"] = max(found["slowest"], verdict.seconds)
        if verdict.ending is Ending.WRONG and len(found["wrong"]) < _TOLD:
            found["wrong"].append([f"{name} {number}", verdict.why, call.text()])
        del call  # the next one needs the memory that its layer may hold
        if time.monotonic() > end:
            break
    return {**found, "endings": {str(e): n for e, n in endings.items()}}


def search(name: str, examples: int) -> dict[str, Any]:
    """Let Hypothesis make calls of a function; what is wrong is made as small as it can be."""
    endings = dict.fromkeys(Ending, 0)
    wrong: list = []

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(r: Random) -> None:
        signal.alarm(_HANG)
        call = INVENTORY[name](r)
        verdict = judge(call)
        endings[verdict.ending] += 1
        assert verdict.ending is not Ending.WRONG, f"{name}: {verdict.why}\n  {call.text()}"

    try:
        check()
    except AssertionError as error:
        wrong.append([name, "", str(error)])
    return {"wrong": wrong, "slowest": 0.0, "endings": {str(e): n for e, n in endings.items()}}


def main() -> None:
    names, first, count, state, seconds = sys.argv[1:]
    warnings.simplefilter("ignore")
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
    limit_memory(_ROOM)
    if first == "hypothesis":
        each = [search(name, int(count)) for name in names.split(",")]
        ends = {str(e): sum(one["endings"][str(e)] for one in each) for e in Ending}
        found = {"wrong": [w for one in each for w in one["wrong"]], "slowest": 0.0, "endings": ends}
    else:
        found = calls(names.split(","), int(first), int(count), Path(state), float(seconds))
    print(json.dumps(found), flush=True)
    os._exit(0)  # memory between protected pages need not be given back


if __name__ == "__main__":
    main()

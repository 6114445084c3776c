"""A process that makes calls until one ends wrongly, or kills it.

    python tests/hostile/child.py NAME FIRST COUNT STATE

Calls FIRST to FIRST + COUNT of a function of the inventory. The number of the call at hand is in the file STATE, so
that it is known which one killed the process. Prints JSON: endings, the slowest call, and what was wrong.
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
import warnings
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

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


def calls(name: str, first: int, count: int, state: Path) -> dict[str, Any]:
    """Make the calls, and count how they ended."""
    with open(state, "w+b") as file:
        file.write(bytes(8))
        file.flush()
        here = mmap.mmap(file.fileno(), 8)
    endings = dict.fromkeys(Ending, 0)
    found: dict[str, Any] = {"wrong": [], "slowest": 0.0}
    for number in range(first, first + count):
        here[:] = struct.pack("q", number)
        signal.alarm(_HANG)
        call = INVENTORY[name](Random(f"{name} {number}"))
        verdict = judge(call)
        endings[verdict.ending] += 1
        found["slowest"] = max(found["slowest"], verdict.seconds)
        if verdict.ending is Ending.WRONG and len(found["wrong"]) < _TOLD:
            found["wrong"].append([number, verdict.why, call.text()])
    signal.alarm(0)
    return {**found, "endings": {str(e): n for e, n in endings.items()}}


def main() -> None:
    name, first, count, state = sys.argv[1:]
    warnings.simplefilter("ignore")
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
    limit_memory(_ROOM)
    found = calls(name, int(first), int(count), Path(state))
    print(json.dumps(found), flush=True)
    os._exit(0)  # memory between protected pages need not be given back


if __name__ == "__main__":
    main()

"""Times of whole processes: importing, and the first call with kernels already in Numba's disk cache."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_FIRST = """
import time, numpy as np, fastconv
x, w = np.ones({x}, np.float32), np.ones({w}, np.float32)
t = time.perf_counter()
{call}
print(time.perf_counter() - t)
"""
_FLOOR = """
import sys, time
sys.path.append({folder!r})
from empty import nothing
t = time.perf_counter()
nothing()
print(time.perf_counter() - t)
"""
_TINY = {"x": (1, 8, 8, 8), "w": (8, 8, 3, 3)}
_LAYER = {"x": (1, 64, 56, 56), "w": (64, 64, 3, 3)}
_CALL, _PLAN = "fastconv.conv2d(x, w, padding=1)", "fastconv.plan(x.shape, w, padding=1)(x)"
_MATTERS = {
    "import numba": _IMPORT.format("numba"),
    "import fastconv": _IMPORT.format("fastconv"),
    "floor: call of an empty cached Numba function": _FLOOR.format(folder=str(Path(__file__).parent)),
    "first conv2d, 8x8x8": _FIRST.format(**_TINY, call=_CALL),
    "first conv2d, 64 channels at 56x56": _FIRST.format(**_LAYER, call=_CALL),
    "first plan and call, 64 channels at 56x56": _FIRST.format(**_LAYER, call=_PLAN),
}
TITLE = "Start-up"
AIM = (
    "Import: no slower than numba's own import plus 0.1 s. First call with a warm disk cache: under 0.15 s. "
    "(Medians of new processes; a first call is timed after the import.)"
)


def environment() -> dict[str, str]:
    """This process's, but that Python keeps the bytecode of what it imports, as it does by default."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _seconds(code: str) -> float:
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True, timeout=300)
    return float(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median and minimum, in seconds, of each matter in ``options.rounds`` new processes, in turn.

    Returns
    -------
    dict
        "rows": {matter: {"median", "min"}}, "extra_import" (fastconv's over numba's) and "met".
    """
    for code in _MATTERS.values():
        _seconds(code)  # fills the disk caches
    times: dict[str, list[float]] = {name: [] for name in _MATTERS}
    for _ in range(options.rounds):
        for name, code in _MATTERS.items():
            times[name].append(_seconds(code))
    rows = {name: {"median": statistics.median(found), "min": min(found)} for name, found in times.items()}
    extra = rows["import fastconv"]["median"] - rows["import numba"]["median"]
    slowest = max(row["median"] for name, row in rows.items() if name.startswith("first"))
    return {"rows": rows, "extra_import": extra, "slowest_first": slowest, "met": extra <= 0.1 and slowest < 0.15}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Heading and lines."""
    lines = [[matter, f"{row['median']:.3f}", f"{row['min']:.3f}"] for matter, row in result["rows"].items()]
    return [["what", "median, s", "best, s"], *lines]


def verdict(result: dict[str, Any]) -> list[str]:
    """What was reached, in parts."""
    return [f"import {result['extra_import']:+.2f} s over numba's", f"first call {result['slowest_first']:.2f} s"]

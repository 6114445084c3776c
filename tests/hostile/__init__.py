"""Calls with bad, strange and merely unusual arguments, and the rules that every one of them must keep.

Generators make a call from a `random.Random`: Hypothesis's, which can shrink what it finds, Python's own for long runs,
or one that reads the bytes of a coverage-guided fuzzer. `inventory` has one for every public function.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def process(module: str, *arguments: object, python: str = sys.executable, **variables: str) -> Any:
    """Run a module of this package, in a process of its own on two threads; it returns as `subprocess.run`."""
    path = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", **variables, "PYTHONPATH": path}
    command = [python, "-m", f"hostile.{module}", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)

"""Runs code that may hang or abort in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_BENCH = Path(__file__).parents[1] / "bench"
LAYERS = ("omp", "tbb", "workqueue")


def run(*arguments: str, layer: str = "default", threads: int = 2, **variables: str) -> subprocess.CompletedProcess:
    """Run Python with these arguments; skip the test where Numba lacks the threading layer."""
    environment = {
        **os.environ,
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": str(threads),
        "LD_LIBRARY_PATH": f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}",  # where pip puts TBB
        **variables,
    }
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba finds no {layer}")
    assert done.returncode == 0, done.stderr
    return done


def scenario(
    name: str, layer: str = "default", threads: int = 2, script: str = "crowds.py", count: int = 60
) -> dict[str, Any]:
    """What a scenario of `bench/crowds.py`, or of another script like it, found."""
    lines = run(str(_BENCH / script), name, str(count), layer=layer, threads=threads).stdout.splitlines()
    found = json.loads(lines[-1])  # before it, Numba may have said something about TBB
    assert found["wrong"] == 0
    return found

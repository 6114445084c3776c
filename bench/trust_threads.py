"""What fastconv does among threads and processes: every scenario of `bench/crowds.py`, on every threading layer.

    python bench/trust_threads.py --markdown docs/trust.md

The limits hold on a machine with nothing else to do. Needs PyTorch, Dask, joblib and, for its layer, TBB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from crowds import CALLERS, KINDS
from pages import put
from report import circumstances, table

_CROWDS = Path(__file__).with_name("crowds.py")
_RUNS = [
    *[(scenario, layer) for scenario in ("threads", "limited") for layer in ("omp", "tbb", "workqueue")],
    ("threads", "one thread"),
    ("peer", ""),
    *[(scenario, "omp") for scenario in ("joblib", "dask", "torch")],
    *[(scenario, layer) for scenario in ("fork", "fork_amid_threads") for layer in ("omp", "tbb", "workqueue")],
    *[(scenario, "omp") for scenario in ("spawn", "forkserver", "fork_after_torch", "dataloader")],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=1000, help="of each caller")
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    rows = [row(scenario, layer, options) for scenario, layer in _RUNS]
    text = report(rows, options)
    print(text)
    if options.markdown:
        put(options.markdown, "threads", text)


def row(scenario: str, layer: str, options: argparse.Namespace) -> list[str]:
    """A line of the table: what one process found, or how it ended."""
    print(scenario, layer, file=sys.stderr)
    try:
        done = run(scenario, layer, options)
    except subprocess.TimeoutExpired:
        return [scenario, layer, "hangs", "", "", "", ""]
    if done.returncode:
        return [scenario, layer, f"exit status {done.returncode}", "", "", "", ""]
    found = json.loads(done.stdout.splitlines()[-1])
    return [scenario, layer, str(found["wrong"]), *times(found, fair(scenario, layer))]


def fair(scenario: str, layer: str) -> float:
    """The share of time that is fair: one thread leaves cores to other callers, PyTorch takes half of the machine."""
    cores = min(CALLERS, len(os.sched_getaffinity(0)))
    return 1 / cores if layer == "one thread" else 2.0 if scenario == "torch" else 1.0


def run(scenario: str, layer: str, options: argparse.Namespace) -> subprocess.CompletedProcess:
    """One scenario in a process of its own."""
    single = layer == "one thread"
    environment = {
        **os.environ,
        "NUMBA_THREADING_LAYER": "default" if single else layer or "omp",
        "NUMBA_NUM_THREADS": "1" if single else str(options.threads),
        "LD_LIBRARY_PATH": f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}",  # where pip puts TBB
    }
    command = [sys.executable, str(_CROWDS), scenario, str(options.calls)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def times(found: dict[str, Any], fair: float) -> list[str]:
    """The cells about times, empty where a scenario has none."""
    if "ratio" not in found:
        return [""] * 4
    return [f"{found['alone']:.2f}", f"{found['together']:.2f}", f"{found['ratio']:.2f}", f"{fair:.2g}"]


def report(rows: list[list[str]], options: argparse.Namespace) -> str:
    """The figures in Markdown."""
    facts = circumstances(options.threads, 1)
    known = facts["versions"] | {name: metadata.version(name) for name in ("dask", "joblib", "tbb")}
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    heading = ["scenario", "threading layer", "wrong results", "in turn, s", "at once, s", "ratio", "fair"]
    return "\n".join([
        "Written by `python bench/trust_threads.py --markdown docs/trust.md`, not by hand:",
        f"{facts['cpu']}, {options.threads} threads, {versions}, {facts['date']}.", "",
        f"Each of {CALLERS} callers (threads, or processes in turn) makes {options.calls} calls of {KINDS} kinds:",
        "convolutions, their gradients, pooling, columns and plans; every result must be, bit for bit, that of one",
        "thread. What hangs or dies is named. The ratio, a median of rounds, is the time of the calls at once over",
        "that of the same calls in turn, beside PyTorch for the scenario `torch`; `fair` is the ratio if nothing is",
        "lost, not even to Python's own lock, which callers hold between their calls. `limited` ones compute alone at",
        "once, and with all threads in turn; `peer` are the same calls of PyTorch's. The machine is shared: seconds,",
        "and ratios too, vary with what others run on it. `bench/crowds.py` has the scenarios.", "",
        table(heading, rows, left=2),
    ])  # fmt: skip


if __name__ == "__main__":
    main()

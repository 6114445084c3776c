"""Tables of what `bench/gpu.py` measured on GPUs."""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean
from typing import Any

from pages import has_part, put
from report import table

_PART = "gpu"  # of README
_HEADER = ["problem", "fastconv runs", "registers", "us", "of the ceiling", "cuDNN, us", "ratio"]
_SUMMARY = ["layers", "elements", "direction", "of cuDNN's speed", "least"]


def _lists(figures: dict[str, Any]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The rows of each section, kind and direction."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in figures["times"]:
        found.setdefault((row["section"], row["kind"], row["direction"]), []).append(row)
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    share = f"{row['ceiling']:.0%}" if row["ceiling"] else ""
    took = (f"{row['us'][row['best']]:.1f}", share, f"{row['us']['cuDNN']:.1f}", f"{row['ratio']:.2f}")
    return [row["problem"], row["best"], str(row.get("registers", "")), *took]


def _figures(figures: dict[str, Any]) -> list[str]:
    """What a run found, layer by layer."""
    wrong = [row for row in figures["checks"] if not row["good"]]
    lines = [f"## {figures['where']}", ""]
    lines += [figures["note"], ""] if figures.get("note") else []
    lines += [f"{len(figures['checks'])} candidates compared with float64, {len(wrong)} wrong.", ""]
    if figures.get("sanitizer"):
        lines += [f"compute-sanitizer: {figures['sanitizer']}.", ""]
    if figures.get("latency"):
        calls = ", ".join(f"{name} {took:.1f}" for name, took in figures["latency"].items())
        lines += [f"Microseconds of the host for a call on n1c8h8w8k8r3s3p1: {calls}.", ""]
    for key, rows in _lists(figures).items():
        lines += [f"### {', '.join(key)}", "", table(_HEADER, [_cells(row) for row in rows], left=2), ""]
    return lines


def summary(runs: list[dict[str, Any]]) -> str:
    """A row for each list of layers, with where they were measured."""
    rows = []
    for figures in runs:
        for key, found in _lists(figures).items():
            ratios = [row["ratio"] for row in found]
            rows.append([*key, f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}"])
    where = "; ".join(dict.fromkeys(figures["where"] for figures in runs))
    return f"{table(_SUMMARY, rows, left=3)}\n\n{where}."


def write_markdown(path: Path, runs: list[dict[str, Any]]) -> None:
    """The summary between the marks of a file, or a file of all figures."""
    if path.exists() and has_part(path.read_text(), _PART):
        put(path, _PART, summary(runs))
        return
    lines = ["# Kernels for GPUs", "", "Written by `bench/gpu.py`, which says how things are measured.", ""]
    lines += [summary(runs), "", *(line for figures in runs for line in _figures(figures))]
    path.write_text("\n".join(lines))

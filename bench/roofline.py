"""The roofline plot: rates over arithmetic intensity, under the measured FMA peak and bandwidth (Williams 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from sections import BEST, SECTIONS

from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLOTTED = {"resnet50": "tab:blue", "depthwise": "tab:orange", "grouped": "tab:green"}


def draw(stored: dict[str, dict[str, Any]], target: Path) -> list[Path]:
    """Draw the `PLOTTED` sections as `target` with the suffixes .svg and .png; returns these paths.

    Every problem is a dot, with a line to a ring where the best peer is.

    Raises
    ------
    ValueError
        If none of those sections was measured.
    """
    here = {name: stored[name] for name in PLOTTED if name in stored}
    if not here:
        raise ValueError(f"the plot needs figures of {', '.join(PLOTTED)}")
    figure, axes = plt.subplots(figsize=(11, 7), layout="constrained")
    for name, entry in here.items():
        _points(axes, name, entry["rows"])
    _roofs(axes, [row for entry in here.values() for row in entry["rows"].items()])
    facts = next(iter(here.values()))["circumstances"]
    axes.set(
        xscale="log", yscale="log", xlabel="operations per byte of input, weights and result", ylabel="GFLOP/s",
        title=f"fastconv (dots) and the best peer (rings), {facts['cpu']}, {facts['threads']} threads, {facts['date']}",
    )  # fmt: skip
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(loc="lower right")
    paths = [target.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _points(axes: Any, section: str, rows: dict[str, dict[str, Any]]) -> None:
    ours, colour = SECTIONS[section].ours[0], PLOTTED[section]
    for count, (word, peers) in enumerate(rows.items()):
        problem = parse(word)
        x = problem.flops / problem.bytes
        mine, best = (problem.flops / peers[name]["min"] / 1e9 for name in (ours, BEST))
        axes.plot([x, x], [mine, best], color=colour, lw=0.7)
        axes.plot(x, best, "o", color=colour, mfc="white", ms=5)
        axes.plot(x, mine, "o", color=colour, ms=5, label=None if count else SECTIONS[section].title)
        place = (4, 3) if mine >= best else (4, -7)
        axes.annotate(_label(problem), (x, mine), place, textcoords="offset points", fontsize=6)


def _label(problem: ConvProblem) -> str:
    r, s = problem.kernel_size
    channels = f"{problem.in_channels}" if problem.groups > 1 else f"{problem.in_channels}-{problem.out_channels}"
    stride = f"/{problem.stride[0]}" if problem.stride[0] > 1 else ""
    return f"{r}x{s}{stride} {channels} @{problem.in_size[0]}"


def _roofs(axes: Any, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """The best peak of all rounds, and the copies of the largest problem and of the one that copied fastest."""
    problems = [(parse(word), peers) for word, peers in rows]
    peak = max(p.flops / peers["FMA peak"]["min"] / 1e9 for p, peers in problems)
    rates = {p.bytes: p.bytes / peers["copy"]["min"] / 1e9 for p, peers in problems}
    low, high = axes.get_xlim()
    axes.plot([low, high], [peak, peak], "k-", lw=1)
    axes.annotate(f"FMA peak {peak:.0f} GFLOP/s", (low, peak), (4, 4), textcoords="offset points", fontsize=8)
    for rate, what in ((max(rates.values()), "cache"), (rates[max(rates)], f"{max(rates) >> 20} MiB")):
        end = min(high, peak / rate)
        if end > low:
            axes.plot([low, end], [rate * low, rate * end], "k--", lw=1)
            text = f"copy, {what}: {rate:.0f} GB/s"
            axes.annotate(text, (low, rate * low), (4, 4), textcoords="offset points", fontsize=8, rotation=35)
    axes.set_xlim(low, high)

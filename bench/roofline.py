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

_STEPS = ((1, 1), (-1, 1), (1, -1), (-1, -1))
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
    figure, axes = plt.subplots(figsize=(13, 8), layout="constrained")
    axes.set(xscale="log", yscale="log")
    labels = [label for name, entry in here.items() for label in _points(axes, name, entry["rows"])]
    _roofs(axes, [row for entry in here.values() for row in entry["rows"].items()])
    facts = next(iter(here.values()))["circumstances"]
    axes.set(
        xlabel="operations per byte of input, weights and result", ylabel="GFLOP/s",
        title=f"fastconv (dots) and the best peer (rings), {facts['cpu']}, {facts['threads']} threads, {facts['date']}",
    )  # fmt: skip
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(loc="lower right")
    figure.draw_without_rendering()  # settles the scales that labels are placed by
    _place(axes, labels)
    paths = [target.with_suffix(suffix) for suffix in (".svg", ".png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _points(axes: Any, section: str, rows: dict[str, dict[str, Any]]) -> list[tuple[str, float, float, str]]:
    """Draw a section; returns the labels of its dots: text, place and colour."""
    labels, ours, colour = [], SECTIONS[section].ours[0], PLOTTED[section]
    for count, (word, peers) in enumerate(rows.items()):
        problem = parse(word)
        x = problem.flops / problem.bytes
        mine, best = (problem.flops / peers[name]["min"] / 1e9 for name in (ours, BEST))
        axes.plot([x, x], [mine, best], color=colour, lw=0.7)
        axes.plot(x, best, "o", color=colour, mfc="white", ms=5)
        axes.plot(x, mine, "o", color=colour, ms=5, label=None if count else SECTIONS[section].title)
        labels.append((_label(problem), x, mine, colour))
    return labels


def _place(axes: Any, labels: list[tuple[str, float, float, str]]) -> None:
    """Write every label as near to its dot as the labels before leave room."""
    taken: list[tuple[float, float, float, float]] = []
    points = 72 / axes.figure.dpi
    for text, x, y, colour in sorted(labels, key=lambda label: label[2]):
        left, bottom = points * axes.transData.transform((x, y))
        for step in range(1, 200):
            dx, dy = _STEPS[step % len(_STEPS)][0] * (4 + step // 8), _STEPS[step % len(_STEPS)][1] * (step // 2)
            dx -= 3.2 * len(text) if dx < 0 else 0
            box = (left + dx, bottom + dy, left + dx + 3.2 * len(text), bottom + dy + 6)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        arrow = {"arrowstyle": "-", "lw": 0.3, "color": colour}
        axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", fontsize=5.5, color=colour, arrowprops=arrow)


def _label(problem: ConvProblem) -> str:
    r, s = problem.kernel_size
    channels = f"{problem.in_channels}" if problem.groups > 1 else f"{problem.in_channels}-{problem.out_channels}"
    stride = f"/{problem.stride[0]}" if problem.stride[0] > 1 else ""
    return f"{r}x{s}{stride} {channels} @{problem.in_size[0]}"


def _roofs(axes: Any, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """The best FMA peak of all rounds, and the fastest copy of as many bytes as one of the problems has."""
    problems = [(parse(word), peers) for word, peers in rows]
    peak = max(p.flops / peers["FMA peak"]["min"] / 1e9 for p, peers in problems)
    rate = max(p.bytes / peers["copy"]["min"] / 1e9 for p, peers in problems)
    low, high = min(axes.get_xlim()[0], 0.5), axes.get_xlim()[1]
    axes.plot([peak / rate, high], [peak, peak], "k-", lw=1)
    axes.plot([low, peak / rate], [rate * low, peak], "k--", lw=1)
    written = {"textcoords": "offset points", "fontsize": 8}
    axes.annotate(f"FMA peak {peak:.0f} GFLOP/s", (peak / rate, peak), (4, 4), **written)
    axes.annotate(f"copy in cache, {rate:.0f} GB/s", (low, rate * low), (8, -2), **written)
    axes.set_xlim(low, high)

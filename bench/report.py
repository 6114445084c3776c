"""From measurements to tables: ratios, geometric means, and the Markdown that README shows."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

import latency
import llvmlite.binding as llvm
import training
from sections import SECTIONS, Section

from fastconv.descriptor import parse

# Sections that are no list of problems: modules with TITLE, AIM, measure, table and verdict.
OTHERS: dict[str, Any] = {"latency": latency, "vgg-step": training}

Rows = dict[str, dict[str, dict[str, Any]]]  # descriptor -> peer -> what `harness.measure` found
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
_PREFACE = (
    "Written by `python bench/versus.py --markdown`, not by hand. Times are medians; ratios come from the same",
    'interleaved rounds, so they mean more than times do; "best" is the ratio of the shortest times. The FMA peak is',
    "measured in the same rounds. `raw` problems have their weights packed in every call.",
)
_PACKAGES = ("fastconv", "numba", "llvmlite", "numpy", "torch", "onnxruntime", "openvino", "jax")


def circumstances(threads: int, rounds: int) -> dict[str, Any]:
    """Machine, versions and date, for figures to carry."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    cpu = f"{_cpu_model()} ({llvm.get_host_cpu_name()})"
    return {"cpu": cpu, "threads": threads, "rounds": rounds, "versions": versions, "date": now}


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def evaluate(section: Section, rows: Rows, rivals: tuple[str, ...]) -> dict[str, Any]:
    """Geometric means and whether the aim was met.

    Returns
    -------
    dict
        "problems", how many were run; "ratios": {rival: {"median", "min"}}, the geometric mean of rival time
        over ours; "least_ratio", the lowest ratio of medians to the first rival; "least_peak", the lowest
        share of the FMA peak of the 3x3 layers, from minima; "error_ratio", the largest of our error over the
        first rival's; and "met". Only what the section measures is there.
    """
    found: dict[str, Any] = {"problems": len(rows)}
    if not section.timed:
        found["error_ratio"] = max(error_ratio(section, peers) for peers in rows.values())
        return found | {"met": found["error_ratio"] <= 1.5}
    ours = section.ours[0]
    found["ratios"] = {
        rival: {
            kind: statistics.geometric_mean(peers[rival][kind] / peers[ours][kind] for peers in rows.values())
            for kind in ("median", "min")
        }
        for rival in rivals
    }
    found["least_ratio"] = min(peers[rivals[0]]["median"] / peers[ours]["median"] for peers in rows.values())
    reached = found["least_ratio"] if section.every else found["ratios"][rivals[0]]["median"]
    met = reached >= section.least_ratio and found["least_ratio"] >= section.least_each
    shares = [peak_share(p, ours, "min") for name, p in rows.items() if section.least_peak and _is_3x3(name)]
    if shares:
        found["least_peak"] = min(shares)
        met = met and found["least_peak"] >= section.least_peak
    return found | {"met": met}


def _is_3x3(descriptor: str) -> bool:
    return parse(descriptor).kernel_size == (3, 3)


def error_ratio(section: Section, peers: dict[str, dict[str, Any]]) -> float:
    """Our worst error over that of the first rival, on one problem."""
    return max(peers[name]["error"] for name in section.ours) / peers[section.rivals[0]]["error"]


def peak_share(peers: dict[str, dict[str, Any]], name: str, kind: str) -> float:
    """Fraction of the FMA peak, both from "median"s or both from "min"s of the same rounds."""
    return peers["FMA peak"][kind] / peers[name][kind]


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table that is aligned as plain text too; the first `left` columns to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (width + 2) if i < left else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), "|" + "|".join(rule) + "|", *map(line, rows)])


def section_table(section: Section, rows: Rows, rivals: tuple[str, ...]) -> str:
    """The table of one section, a line for each problem."""
    return _timed_table(section, rows, rivals) if section.timed else _error_table(section, rows, rivals)


def _error_table(section: Section, rows: Rows, rivals: tuple[str, ...]) -> str:
    names = [*section.ours, *rivals]
    lines = [
        [word, *(f"{peers[name]['error']:.2e}" for name in names), f"{error_ratio(section, peers):.2f}"]
        for word, peers in rows.items()
    ]
    return table(["problem", *names, f"worst of ours / {rivals[0]}"], lines)


def _timed_table(section: Section, rows: Rows, rivals: tuple[str, ...]) -> str:
    names, ours = [*section.ours, *rivals], section.ours[0]
    header = ["problem", f"{ours} runs", *(f"{name}, us" for name in names)]
    for kind in ("median", "best"):
        header += [f"{rival} / ours, {kind}" for rival in rivals] + ([f"% of peak, {kind}"] if section.peak else [])
    lines = []
    for word, peers in rows.items():
        line = [word, peers[ours]["note"], *(f"{peers[name]['median'] * 1e6:.1f}" for name in names)]
        for kind in ("median", "min"):
            line += [f"{peers[rival][kind] / peers[ours][kind]:.2f}" for rival in rivals]
            line += [f"{peak_share(peers, ours, kind):.0%}"] if section.peak else []
        lines.append(line)
    return table(header, lines, left=2)


def verdict(name: str, result: dict[str, Any]) -> str:
    """One line: what was reached, and whether that meets the aim."""
    text = "; ".join(_reached(name, result) if name in SECTIONS else OTHERS[name].verdict(result))
    if name in SECTIONS and result["problems"] < len(SECTIONS[name].problems):
        return f"{text}; only {result['problems']} of {len(SECTIONS[name].problems)} problems were run."
    return text + (". Aim met." if result["met"] else ". Aim not met.")


def _reached(name: str, result: dict[str, Any]) -> list[str]:
    parts = [
        f"{ratio['median']:.2f} times as fast as {rival} ({ratio['min']:.2f} by best times)"
        for rival, ratio in result.get("ratios", {}).items()
    ]
    if "least_ratio" in result:
        parts.append(f"{result['least_ratio']:.2f} at least")
    if "least_peak" in result:
        parts.append(f"every 3x3 at {result['least_peak']:.0%} of the FMA peak or more")
    if "error_ratio" in result:
        parts.append(f"at most {result['error_ratio']:.2f} times {SECTIONS[name].rivals[0]}'s")
    return parts


def title_and_aim(name: str) -> tuple[str, str]:
    """Of any section."""
    return (SECTIONS[name].title, SECTIONS[name].aim) if name in SECTIONS else (OTHERS[name].TITLE, OTHERS[name].AIM)


def render(stored: dict[str, dict[str, Any]]) -> str:
    """The whole page: every stored section with its aim, verdict, circumstances and table."""
    parts = ["# Benchmarks", "", *_PREFACE, ""]
    for name, entry in stored.items():
        title, aim = title_and_aim(name)
        parts += [f"## {title}", "", f"Aim: {aim}", "", f"Reached: {verdict(name, entry['result'])}", ""]
        parts += [_circumstances_line(entry["circumstances"]), "", stored_table(name, entry), ""]
    return "\n".join(parts)


def stored_table(name: str, entry: dict[str, Any]) -> str:
    """The table of a section as it is stored."""
    if name in SECTIONS:
        return section_table(SECTIONS[name], entry["rows"], tuple(entry["rivals"]))
    heading, *lines = OTHERS[name].table(entry["result"])
    return table(heading, lines)


def summarise(stored: dict[str, dict[str, Any]]) -> str:
    """The short table for README: a line for each section."""
    lines = []
    for name, entry in stored.items():
        title, aim = title_and_aim(name)
        lines.append([title, aim, verdict(name, entry["result"])])
    where = {_circumstances_line(entry["circumstances"]) for entry in stored.values()}
    return "\n".join([table(["What", "Aim", "Reached"], lines, left=3), "", *sorted(where)])


def _circumstances_line(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['cpu']}, {facts['threads']} threads, {facts['rounds']} rounds; {versions}; {facts['date']}."


def write_markdown(path: Path, stored: dict[str, dict[str, Any]]) -> None:
    """Write the page; in a file that has the markers, put the short table between them instead."""
    text = path.read_text() if path.exists() else ""
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{summarise(stored)}\n{END}{rest.partition(END)[2]}")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(stored))

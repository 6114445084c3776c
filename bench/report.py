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
import scaling
import training
from pages import has_part, put
from sections import BEST, SECTIONS, Section

from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

# Sections that are no list of problems: modules with TITLE, AIM, measure, table and verdict.
OTHERS: dict[str, Any] = {"latency": latency, "scaling": scaling, "vgg-step": training}

Rows = dict[str, dict[str, dict[str, Any]]]  # descriptor -> peer -> what `harness.measure` found
KINDS, CEILINGS = ("median", "min"), ("FMA peak", "copy")
_PART = "figures"  # of README
_PREFACE = (
    "Written by `python bench/versus.py --markdown`, not by hand. Times are medians; ratios come from the same",
    "interleaved rounds, so they mean more than times do: those under a peer's name are its time over ours, of",
    'medians. "Best peer" is the fastest of them on that problem, once by medians and once by shortest times. The last',
    "columns are shares, by shortest times, of the FMA peak and of a copy that moves as many bytes as the arrays have,",
    "measured in the same rounds. `raw` problems have their weights packed in every call. Plans and OpenVINO write to",
    "an array that they were given before; the others make one in each call, as fastconv's functions do.",
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


def rate(section: Section, rows: Rows) -> dict[str, Any]:
    """Geometric means and whether the aim was met; adds the times of `BEST` to `rows`.

    Returns
    -------
    dict
        "problems", how many were run; "ratios": {rival: {"median", "min"}}, the geometric mean of rival time
        over ours on what it can compute; "least_ratio", the lowest ratio of medians to whom the aim names;
        "mean_peak" and "least_peak", shares of the FMA peak of `is_wide` layers by best times; "error_ratio", the
        largest of our error over the first rival's; and "met". Only what the section measures is there.
    """
    found: dict[str, Any] = {"problems": len(rows)}
    if not section.timed:
        found["error_ratio"] = max(error_ratio(section, peers) for peers in rows.values())
        return found | {"met": found["error_ratio"] <= section.largest_error}
    if section.against == BEST:
        for peers in rows.values():
            here = [peers[name] for name in section.rivals if name in peers]
            peers[BEST] = {kind: min(rival[kind] for rival in here) for kind in KINDS}
    found["ratios"] = {
        name: _mean_ratios(section, rows, name) for name in dict.fromkeys((section.against, *_seen(rows, section)))
    }
    found["least_ratio"] = min(ratio(section, peers, section.against, "median") for peers in rows.values())
    met = found["ratios"][section.against]["median"] >= section.mean and found["least_ratio"] >= section.least
    shares = [share(section, peers, "FMA peak") for name, peers in rows.items() if section.least_peak and is_wide(name)]
    if shares:
        found |= {"mean_peak": statistics.geometric_mean(shares), "least_peak": min(shares)}
        met = met and found["mean_peak"] >= section.mean_peak and found["least_peak"] >= section.least_peak
    return found | {"met": met}


def _seen(rows: Rows, section: Section) -> list[str]:
    """The rivals that could compute some of the problems."""
    return [name for name in section.rivals if any(name in peers for peers in rows.values())]


def _mean_ratios(section: Section, rows: Rows, rival: str) -> dict[str, float]:
    here = [peers for peers in rows.values() if rival in peers]
    return {kind: statistics.geometric_mean(ratio(section, peers, rival, kind) for peers in here) for kind in KINDS}


def ratio(section: Section, peers: dict[str, dict[str, Any]], rival: str, kind: str) -> float:
    """A rival's time over ours on one problem, of medians ("median") or of best times ("min")."""
    return peers[rival][kind] / peers[section.ours[0]][kind]


def share(section: Section, peers: dict[str, dict[str, Any]], ceiling: str) -> float:
    """Fraction of a ceiling, "FMA peak" or "copy", by best times of the same rounds."""
    return ratio(section, peers, ceiling, "min")


def is_wide(descriptor: str) -> bool:
    """Whether a problem is a 3x3 or 1x1 convolution of 64 channels and filters or more, in one group."""
    problem = parse(descriptor)
    return (
        isinstance(problem, ConvProblem)
        and problem.kernel_size in ((1, 1), (3, 3))
        and problem.groups == 1
        and min(problem.in_channels, problem.out_channels) >= 64
    )


def error_ratio(section: Section, peers: dict[str, dict[str, Any]]) -> float:
    """Our worst error over that of the first rival, on one problem."""
    return max(peers[name]["error"] for name in section.ours) / peers[section.rivals[0]]["error"]


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


def section_table(section: Section, rows: Rows) -> str:
    """The table of one section, a line for each problem."""
    return _timed_table(section, rows) if section.timed else _error_table(section, rows)


def _error_table(section: Section, rows: Rows) -> str:
    names = [*section.ours, *section.rivals]
    lines = [
        [word, *(f"{peers[name]['error']:.2e}" for name in names), f"{error_ratio(section, peers):.2f}"]
        for word, peers in rows.items()
    ]
    return table(["problem", *names, f"worst of ours / {section.rivals[0]}"], lines)


def _timed_table(section: Section, rows: Rows) -> str:
    ours, against = section.ours, section.against
    others = [name for name in _seen(rows, section) if name != against]
    header = [
        "problem",
        f"{ours[0]} runs",
        *(f"{name}, us" for name in ours),
        *others,
        against,
        f"{against}, best times",
    ]
    header += ["% of FMA peak", "% of copy"]
    lines = []
    for word, peers in rows.items():
        line = [word, peers[ours[0]]["note"], *(f"{peers[name]['median'] * 1e6:.1f}" for name in ours)]
        line += [
            f"{ratio(section, peers, name, 'median'):.2f}" if name in peers else "-" for name in (*others, against)
        ]
        line += [f"{ratio(section, peers, against, 'min'):.2f}"]
        lines.append(line + [f"{share(section, peers, ceiling):.0%}" for ceiling in CEILINGS])
    return table(header, lines, left=2)


def verdict(name: str, result: dict[str, Any]) -> str:
    """One line: what was reached, and whether that meets the aim."""
    text = "; ".join(_reached(name, result) if name in SECTIONS else OTHERS[name].verdict(result))
    if name in SECTIONS and result["problems"] < len(SECTIONS[name].problems):
        return f"{text}; only {result['problems']} of {len(SECTIONS[name].problems)} problems were run."
    return text + (". Aim met." if result["met"] else ". Aim not met.")


def _reached(name: str, result: dict[str, Any]) -> list[str]:
    if "error_ratio" in result:
        return [f"at most {result['error_ratio']:.2f} times that of {SECTIONS[name].against}"]
    mean = result["ratios"][SECTIONS[name].against]
    parts = [f"{mean['median']:.2f} ({mean['min']:.2f} by best times), {result['least_ratio']:.2f} at least"]
    if "least_peak" in result:
        parts.append(f"{result['mean_peak']:.0%} of the FMA peak, {result['least_peak']:.0%} at least")
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
        return section_table(SECTIONS[name], entry["rows"])
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
    """Write the page; in a file that has the marks, put the short table between them instead."""
    if path.exists() and has_part(path.read_text(), _PART):
        put(path, _PART, summarise(stored))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(stored))

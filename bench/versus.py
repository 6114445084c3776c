"""Compare fastconv with its peers, honestly: own processes, interleaved rounds, ratios.

    python bench/versus.py                                          # every section, tables on stdout
    python bench/versus.py --section resnet50 --tune                # one section, tuned first
    python bench/versus.py --json figures.json --markdown docs/benchmarks.md --markdown README.md

Needs the extra ``bench`` and torch (``pip install torch``, or its CPU build); ``--without jax`` leaves a peer out.
An absolute time means little on a shared machine: read the ratios, which come from the same interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import Worker, measure, set_threads
from report import CEILINGS, OTHERS, circumstances, rate, stored_table, title_and_aim, verdict, write_markdown
from sections import SECTIONS, Section

import fastconv
from fastconv import algorithms
from fastconv.descriptor import parse

PACKAGES = ("onnxruntime", "openvino", "jax")  # of peers that bear their names


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", action="append", choices=[*SECTIONS, *OTHERS], help="may be repeated; all by default")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=20, help="samples of every peer per problem")
    add("--problems", type=int, help="only so many problems of each section, for a quick look")
    optional = ("oneDNN prepacked", *PACKAGES)
    add("--without", action="append", choices=optional, default=[], help="a rival to leave out")
    add("--tune", action="store_true", help="tune first what wisdom does not know")
    add("--budget", type=float, default=600.0, help="seconds of tuning for each section")
    add("--json", type=Path, help="keep the figures here; sections not run stay as they are")
    add("--markdown", type=Path, action="append", default=[], help="write a page, or a table between markers")
    add("--roofline", type=Path, help="draw the roofline plot from --json: this path as .svg and .png")
    add("--render", action="store_true", help="measure nothing; write Markdown from --json")
    return parser.parse_args()


def tune(section: Section, problems: tuple[str, ...], threads: int, budget: float) -> None:
    """Tune, in a process of its own, what wisdom does not know of a section's problems."""
    wanted = [parse(word) for word in problems]
    if any(name.startswith("fastconv plan") for name in section.ours):  # a plan has its weights packed beforehand
        wanted += [replace(problem, raw=False) for problem in wanted]
    wanted = [problem for problem in wanted if len(algorithms.candidates(problem)) > 1]
    if not wanted:
        return
    print(f"{section.name}: tuning {len(set(wanted))} problems", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(fastconv.tune, (wanted, budget, threads))


def run_section(section: Section, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one section; returns its rows and the result of `report.rate`."""
    problems = section.problems[: options.problems]
    if options.tune and section.timed:
        tune(section, problems, options.threads, options.budget)
    rivals = [name for name in section.rivals if name not in options.without]
    names = [*section.ours, *rivals, *(CEILINGS if section.timed else ())]
    rows = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(closing(Worker(name, options.threads))) for name in names}
        for count, descriptor in enumerate(problems, 1):
            print(f"{section.name} {count}/{len(problems)} {descriptor}", file=sys.stderr)
            rows[descriptor] = measure(workers, descriptor, options.rounds if section.timed else 0)
    return {"rows": rows, "result": rate(section, rows)}


def measured(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the selected sections, print each as it is done."""
    for name in options.section or [*SECTIONS, *OTHERS]:
        if name in OTHERS:
            entry: dict[str, Any] = {"result": OTHERS[name].measure(options)}
        else:
            entry = run_section(SECTIONS[name], options)
        _, aim = title_and_aim(name)
        print(f"\n{name}\nAim: {aim}\n{stored_table(name, entry)}\n{verdict(name, entry['result'])}", flush=True)
        yield name, entry | {"circumstances": circumstances(options.threads, options.rounds)}


def main() -> None:
    """Run the command."""
    options = arguments()
    for package in PACKAGES:
        if find_spec(package) is None and not options.render:
            print(f"{package} is not installed: its figures are left out", file=sys.stderr)
            options.without.append(package)
    set_threads(options.threads)
    stored = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if not options.render:
        for name, entry in measured(options):
            stored[name] = entry
            if options.json:
                options.json.write_text(json.dumps(stored, indent=1) + "\n")
    order = [*SECTIONS, *OTHERS]
    stored = dict(sorted(stored.items(), key=lambda item: order.index(item[0])))
    if options.roofline:
        from roofline import draw  # needs matplotlib

        draw(stored, options.roofline)
    for path in options.markdown:
        write_markdown(path, stored)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # jax's notes about the CPU
    main()

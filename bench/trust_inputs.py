"""What fastconv does with bad input: the calls of `tests/hostile`, many of them, and calls without memory.

    python bench/trust_inputs.py --calls 20000 --markdown docs/trust.md

Each function's calls are made in processes of their own, so that one that dies is a result. With `--only` some
functions are called, and the page gets new lines for these. With `--atheris`, the Python of an environment that has
Atheris, calls are made of bytes that this coverage-guided fuzzer chooses; they have a part of the page to themselves.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pages import part, put
from report import circumstances, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile import guided, limits, runs
from hostile.inventory import INVENTORY, LEFT_OUT

_GROWTH = 100_000
_HEADING = ["function", "calls", "compared", "other answers", "refused", "MemoryError", "wrong", "slowest, s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20_000, help="of each function")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of each function, at most; its calls are counted"
    )
    parser.add_argument("--growth", type=int, default=_GROWTH, help="calls that memory is watched over")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--only", nargs="*", choices=list(INVENTORY), metavar="FUNCTION", help="by their names in the table"
    )
    parser.add_argument("--atheris", type=Path, help="a Python that has Atheris, which chooses")
    parser.add_argument("--guided", type=int, default=2_000, help="calls of each function that it makes")
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    if options.atheris:
        guide(options)
    elif options.only:
        only(options)
    else:
        everything(options)


def only(options: argparse.Namespace) -> None:
    """Some functions alone."""
    with ThreadPoolExecutor(options.workers) as workers:
        outcomes = list(workers.map(lambda name: outcome(name, options), options.only))
    if options.markdown:
        put(options.markdown, "inputs", renewed(part(options.markdown, "inputs"), outcomes))
    end([text for o in outcomes for text in o.wrong])


def everything(options: argparse.Namespace) -> None:
    """All functions, and calls that need memory."""
    with ThreadPoolExecutor(options.workers) as workers:
        kinds = ("same", "different")
        growing = {kind: workers.submit(limits.run, "growth", kind, str(options.growth)) for kind in kinds}
        outcomes = list(workers.map(lambda name: outcome(name, options), INVENTORY))
        memory = {kind: done.result() for kind, done in growing.items()}
    text = report(outcomes, memory, limits.run("scarce"), limits.run("first"), options)
    print(text)
    if options.markdown:
        put(options.markdown, "inputs", text)
    end([text for o in outcomes for text in o.wrong])


def guide(options: argparse.Namespace) -> None:
    """Calls of all functions that Atheris chooses."""
    with ThreadPoolExecutor(options.workers) as workers:
        found = list(workers.map(lambda name: guided.run(options.atheris, name, options.guided), INVENTORY))
    text = guided.line(found)
    print(text)
    if options.markdown:
        put(options.markdown, "guided", text)
    end([text for f in found for text in f["wrong"]])


def end(wrong: list[str]) -> None:
    """Say what was wrong, if anything was."""
    if wrong:
        sys.exit("\n".join(wrong))


def outcome(name: str, options: argparse.Namespace) -> runs.Outcome:
    """The calls of one function."""
    found = runs.run(name, options.calls, seconds=options.seconds)
    print(name, dict(found.endings), *found.wrong, sep="\n  ", file=sys.stderr)
    return found


def report(
    outcomes: list[runs.Outcome], memory: dict[str, list[float]], scarce: dict[str, Any], first: dict[str, Any],
    options: argparse.Namespace,
) -> str:  # fmt: skip
    """The figures in Markdown."""
    facts = circumstances(2, 1)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    total = sum(sum(o.endings.values()) for o in outcomes)
    return "\n".join([
        "Written by `python bench/trust_inputs.py --markdown docs/trust.md`, not by hand:",
        f"{facts['cpu']}, 2 threads, {versions}, {facts['date']}.", "",
        f"{total:,} calls of {len(outcomes)} public functions, layers and optimizers. In four of ten nothing is wrong",
        "but that arrays may be strided, backwards, broadcast, read-only or unaligned; in the others one or two",
        "arguments are spoilt: sizes beyond int64, other types, dtypes and byte orders, subclasses, lists, ragged",
        "lists. Arrays lie between pages of no access. Every call must end in the right answer, or in a ValueError or",
        "TypeError that names the argument, or in a MemoryError if it was spoilt; no input may change, nor `out` in a",
        "call that fails; a repeated call may take 5 seconds, any call 150. `compared` answers were those of plain",
        "float64 loops, or of the same layer in float64 on contiguous copies; for the others there is no independent",
        "answer.", "",
        table(_HEADING, [row(o) for o in outcomes]), "",
        f"Not called: {', '.join(f'`{name}` ({why})' for name, why in LEFT_OUT.items())}.", "",
        f"Resident memory over {options.growth:,} calls of 12 kinds, MiB after each tenth. Shapes come again, 50 of",
        "them, or never: then memory grows until the caches are full.", "",
        table(["shapes", *(f"{n}0%" for n in range(11))],
              [[kind, *(f"{mib:.0f}" for mib in found)] for kind, found in memory.items()]), "",
        "With the address space limited to 0 to 64 MiB above what was in use: how many of 14 limits gave the right",
        "answer, how many a MemoryError. After each MemoryError `out`, parameters and the optimizer's state were what",
        "they had been before, and the same call, without the limit, gave the right answer. A backward pass that fails",
        "leaves some gradients: `zero_grad` and `forward` begin again.", "",
        table(["call", "right", "MemoryError", "wrong"],
              [[name, str(f["right"]), str(f["MemoryError"]), str(len(f["wrong"]))] for name, f in scarce.items()]), "",
        "The first call on several threads, without room for their stacks: "
        + ("MemoryError, and right with room." if first["failed"] and first["right"] else "wrong."),
    ])  # fmt: skip


def row(o: runs.Outcome) -> list[str]:
    """A line of the table."""
    kinds = ("compared", "answered", "refused", "too large", "wrong")
    return [f"`{o.name}`", f"{sum(o.endings.values()):,}", *(f"{o.endings[k]:,}" for k in kinds), f"{o.slowest:.1f}"]


def renewed(text: str, outcomes: list[runs.Outcome]) -> str:
    """The part of the page with new lines for some functions, and a new sum of calls."""
    old = re.findall(r"^\| `fastconv\..*$", text, re.MULTILINE)
    cells = {line.split()[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in old}
    cells |= {f"`{o.name}`": row(o) for o in outcomes}
    before, _, rest = text.partition("| function")
    calls = sum(int(line[1].replace(",", "")) for line in cells.values())
    before = re.sub(r"^[\d,]+ calls of \d+", f"{calls:,} calls of {len(cells)}", before, flags=re.MULTILINE)
    return before + table(_HEADING, list(cells.values())) + rest.partition(old[-1])[2]


if __name__ == "__main__":
    main()

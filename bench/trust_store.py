"""What becomes of measurements and compiled kernels when processes are killed, files damaged and disks full.

    python bench/trust_store.py --markdown docs/trust.md

runs every scenario of `bench/stores.py`, `bench/caches.py` and `bench/homes.py`, each in a process of its own. The
last needs Linux and `unshare`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pages import put
from report import circumstances, table

_HERE = Path(__file__).parent
_PLACES = ("read-only", "no home", "named", "full")
_CACHES = (
    "race", "race, Numba alone", "killed", "killed, Numba alone", "together", "damaged", "damaged, Numba alone",
    "unwritable", "full",
)  # fmt: skip
_BIG = ("a line of 20 MB", "a line of 100 MB", "1 GB of zeros", "1 GB of lines", "1 GB of rows")
_COUNTS = {"killed, with export and merge": 30, "interrupted": 12, "cleared": 100, "together": 8}
_COUNTS |= {"damaged": 40, "damaged, Numba alone": 40}
_PREFACE = """\
Written by `python bench/trust_store.py --markdown docs/trust.md`, not by hand:
{cpu}, {threads} threads, {versions}, {date}.

**Wisdom.** Eight processes write to one store, and at random times one of them is killed (SIGKILL) and replaced; each
reports an entry when `append` or `tune` has returned, before it begins the next. Every 20th entry of those that only
append has 40 kB, which the system writes in parts. Wrong is a reported entry that is not in the store, one that is
there twice, a damaged line, a store that does not open, and a process that ends by itself. Others export and merge
all the time; `cleared` empties the store again and again under four writers. `interrupted` starts `fastconv tune` for
six problems again and again, and ends it by Ctrl-C or SIGKILL at any time within 3 s after its imports: wrong is a
problem measured a second time, a result that was printed and is not stored, and a Ctrl-C that does not end with one
line and exit status 130.

{stores}

A process reads a store with a good row at its end, after what the table says; it has to find it, with one warning of
damage, one of size, or both. Of a store larger than 32 MiB the last 32 MiB count. MiB is what the process grew by. The
machine was busy with other work: seconds say what order to expect.

{big}

**Compiled kernels.** fastconv keeps them by Numba's cache, with files of its own: the name is a hash of what the file
was compiled from, and a checksum comes first. Processes compile and load 12 tiny kernels of one signature, so the code
of another one shows; `race` lets two write at once, step by step; `killed` kills processes among eight at random, some
of which remove the files; `together` starts eight in an empty folder; `damaged` cuts and garbles the files before every
process. `unwritable` and `full` allow no file, or none of more than 100 bytes: wrong is all but one warning. Numba
alone, without fastconv, has an index file, which it writes before the code that it names: after `race` its third
process runs the other kernel's code, and a damaged file makes calls fail.

{caches}

**Places.** Three calls, two `fastconv.tune` and a call in mode "measure" where the disk is read-only, and besides
there is no home, the named places cannot exist, or home is on a full disk. Wrong is a wrong result, a measurement
that does not count in its process, and all but one warning about kernels and one about wisdom.

{places}

A power failure is not covered: nothing waits until the disk has it. `bench/stores.py`, `caches.py` and `homes.py`
have the scenarios."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    text = report(options.kills)
    print(text)
    if options.markdown:
        put(options.markdown, "store", text)


def report(kills: int) -> str:
    """The figures in Markdown."""
    facts = circumstances(2, 1)
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    stores = ("killed", "killed, with export and merge", "cleared", "interrupted")
    return _PREFACE.format(
        **facts,
        stores=rows("stores.py", stores, kills, {"entries": "reported", "of them tuned": "tuned"}),
        big=rows("stores.py", _BIG, 0, {"MiB": "MiB", "seconds": "seconds"}),
        caches=rows("caches.py", _CACHES, kills, {}),
        places=rows("homes.py", _PLACES, None, {"warnings, kernels": "cache", "wisdom": "store"}),
    )


def rows(script: str, names: Iterable[str], kills: int | None, columns: dict[str, str]) -> str:
    """A table with a line for each scenario; `columns` gives headings and what is found under them."""
    lines = []
    for name in names:
        found = run(script, name, [] if kills is None else [str(_COUNTS.get(name, kills))])
        lines.append([name, done(found), *(cell(found.get(key, "")) for key in ("wrong", *columns.values()))])
    header = ["scenario", "done", "wrong", *columns]
    if any(line[1] for line in lines):
        return table(header, lines, left=2)
    return table(header[:1] + header[2:], [line[:1] + line[2:] for line in lines])


def run(script: str, name: str, times: list[str]) -> dict[str, Any]:
    """What a scenario found."""
    print(script, name, *times, file=sys.stderr)
    done = subprocess.run([sys.executable, str(_HERE / script), name, *times], stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"wrong": f"exit {done.returncode}"}
    print(found, file=sys.stderr)
    return found


def done(found: dict[str, Any]) -> str:
    """What was done how often, in words."""
    words = {"killed": "killed", "cleared": "cleared", "damaged": "damaged", "processes": "processes"}
    words |= {"SIGINT": "Ctrl-C", "SIGKILL": "killed", "ended": "ended by themselves"}
    return ", ".join(f"{found[key]} {word}" for key, word in words.items() if found.get(key))


def cell(value: Any) -> str:
    """A figure as text."""
    return f"{value:.2f}" if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)


if __name__ == "__main__":
    main()

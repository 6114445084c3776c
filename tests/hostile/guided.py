"""Calls made of bytes that Atheris, a coverage-guided fuzzer, chooses; it needs an environment of its own.

    python -m hostile.guided NAME COUNT

Atheris sees which branches of fastconv's Python a call takes, and makes more calls like those that took a new one. Its
bytes are Hypothesis's choices (`fuzz_one_input`), so the calls are those of the same generators.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from hostile import process

_PACKAGE = Path(__file__).parents[2] / "fastconv"
# Numba cannot compile what Atheris has instrumented.
_COMPILED = [f"fastconv.cpu.{file.stem}" for file in sorted((_PACKAGE / "cpu").glob("*.py"))]
_COMPILED += [f"fastconv.{file.stem}" for file in sorted(_PACKAGE.glob("reference*.py"))]
_SEEDS, _LENGTH = 50, 4096


def run(python: Path, name: str, count: int) -> dict[str, Any]:
    """What came of the calls, in a process of that Python's."""
    done = process("guided", name, count, python=str(python))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"calls": 0, "wrong": []}
    if done.returncode:
        found["wrong"] = [*found["wrong"], f"{name}: exit status {done.returncode}: {done.stderr[-2000:]}"]
    return found


def line(found: list[dict[str, Any]]) -> str:
    """What a page says of it."""
    calls, wrong = sum(f["calls"] for f in found), sum(len(f["wrong"]) for f in found)
    return (
        f"Atheris chose {calls:,} more calls of {len(found)} functions by the branches that they took: {wrong} wrong."
    )


def main() -> None:
    import atheris
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    name, count = sys.argv[1], int(sys.argv[2])
    with atheris.instrument_imports(include=["fastconv"], exclude=_COMPILED):
        import fastconv  # noqa: F401
    from hostile.child import limit_memory
    from hostile.inventory import INVENTORY
    from hostile.judge import Ending, judge

    found: dict[str, Any] = {"calls": 0, "wrong": []}

    @settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def one(r: Random) -> None:
        call = INVENTORY[name](r)
        verdict = judge(call)
        found["calls"] += 1
        if verdict.ending is Ending.WRONG:
            found["wrong"].append(f"{name}: {verdict.why}\n  {call.text()}")
        print(json.dumps(found), flush=True)  # the last line counts: nobody knows which call is the last

    limit_memory(3 << 30)
    with tempfile.TemporaryDirectory() as corpus:
        for number in range(_SEEDS):  # long enough for a whole call; from nothing, none would come for long
            Path(corpus, str(number)).write_bytes(Random(number).randbytes(_LENGTH))
        options = [f"-runs={count}", f"-max_len={_LENGTH}", "-len_control=0", f"-artifact_prefix={corpus}/", corpus]
        atheris.Setup([sys.argv[0], *options], one.hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""The wisdom store under processes that write at once and are killed, and under what a file may hold.

    python bench/stores.py SCENARIO COUNT

prints, as JSON, what `bench/trust_store.py` puts in its table and the tests look at.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO

from caches import CALLERS, forked, status

import fastconv
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.tuning import lines, wisdom

_ROUND = 5
_BETWEEN = 0.15  # seconds from one kill to the next, on average
_PAUSE = 0.03
_TUNED = "n{}c4h{}w{}k4r1s1_f32_nhwc"  # measured in hundredths of a second
_STORED = "n{}c8h{}w{}k16r3s3p1_f32_nhwc"


def descriptor(form: str, who: int, number: int) -> str:
    """One that a writer has for itself."""
    return form.format(number, 4 + who % 64, 4 + who // 64)


def entry(who: int, number: int) -> wisdom.Entry:
    """An entry for such a problem; the line of every 20th has 40 kB, which the system writes in parts."""
    many = 900 if number % 20 == 0 else 2
    measured = tuple(wisdom.Measurement(Candidate("direct", (("rows", n),)), 1, 1000 + n, 1000) for n in range(many))
    best, problem = Candidate("direct", (("rows", 7), ("vectors", 2))), descriptor(_STORED, who, number)
    return wisdom.Entry(problem, 1, best, 1, 1e3, 9e2, 0.1, 1.0, 0.5, 0, measured=measured)


def appends(who: int) -> Iterator[str]:
    """Store entries without end, and give the descriptors of those that are in the store."""
    for number in count(1):
        yield wisdom.append(entry(who, number)).problem
        time.sleep(_PAUSE)  # the others read all of it at each turn


def tunes(who: int) -> Iterator[str]:
    """The same with what `fastconv.tune` measures."""
    for number in count(1):
        (result,) = fastconv.tune(descriptor(_TUNED, who, number), budget=0.02, threads=1)
        assert result.status == "measured"
        yield result.problem.descriptor


def carries(who: int) -> Iterator[str]:
    """Export and merge without end; report nothing."""
    exported = wisdom.require().with_name(f"{who}.jsonl")
    while True:
        wisdom.export(exported)
        wisdom.merge(exported)
        yield ""


Work = Callable[[int], Iterator[str]]


def writer(work: Work, who: int, report: int) -> int:
    """Report every entry through a pipe when it is finished, before the next is begun; end with the parent."""
    parent = os.getppid()
    for done in work(who):
        os.write(report, f"{done}\n".encode())
        if os.getppid() != parent:
            break
    return 0


def killed(kills: int, works: tuple[Work, ...]) -> dict[str, Any]:
    """Rounds of 5 kills, each with a store of its own; the sums of what they found."""
    sums: Counter[str] = Counter()
    for first in range(0, kills, _ROUND):
        sums.update(one_round(min(_ROUND, kills - first), works, random.Random(first)))
        wisdom.clear()
    return dict(sums)


def one_round(kills: int, works: tuple[Work, ...], rng: random.Random) -> dict[str, Any]:
    """Eight processes at once, the killed ones replaced. In the end everything that was reported is looked for."""
    receive, report = os.pipe()
    reported: set[str] = set()
    reader = threading.Thread(target=lambda: reported.update(os.fdopen(receive).read().split()))
    started = count(1)
    next(works[0](0))  # makes the store, and compiles what forked children load

    def start() -> int:
        who = next(started)
        return forked(lambda: writer(works[who % len(works)], who, report))

    children, codes, bad = [start() for _ in range(CALLERS)], [], 0
    reader.start()
    for _ in range(kills):
        time.sleep(rng.expovariate(1 / _BETWEEN))
        victim = children.pop(rng.randrange(CALLERS))
        os.kill(victim, signal.SIGKILL)
        codes.append(status(victim))
        children.append(start())
        bad += opened_damaged()
    for child in children:
        os.kill(child, signal.SIGKILL)
        codes.append(status(child))
    os.close(report)
    reader.join()
    facts = found(reported)
    return facts | {
        "wrong": facts["wrong"] + bad + sum(code != -signal.SIGKILL for code in codes), "killed": len(codes)
    }  # fmt: skip


def opened_damaged() -> int:
    """1 if the store cannot be opened, or has a damaged line, amid the writers."""
    _, damaged, first = wisdom.rows(wisdom.require())
    if damaged:
        print(f"line {first} is damaged", file=sys.stderr)
    return int(damaged > 0)


def found(reported: set[str]) -> dict[str, Any]:
    """What of the reported entries is in the store."""
    rows, damaged, _ = wisdom.rows(wisdom.require())
    assert wisdom.require().stat().st_size < lines.MOST, "more was written than is read"
    stored = [row.entry.problem for row in rows]
    wisdom.append(entry(0, 9))  # takes a torn line away
    after, left, _ = wisdom.rows(wisdom.require())
    lost = len(reported - set(stored))
    return {
        "wrong": lost + damaged + left + (len(after) != len(rows) + 1) + len(stored) - len(set(stored)),
        "reported": len(reported), "tuned": sum("k4r1" in one for one in reported), "lost": lost, "damaged": damaged,
    }  # fmt: skip


def cleared(times: int) -> dict[str, Any]:
    """Writers and a reader while the store is emptied again and again: no line is ever damaged."""

    wisdom.append(entry(9, 9))
    children = [forked(lambda who=who: len(list(islice(appends(who), times))) - times) for who in range(4)]
    bad = 0
    for _ in range(times):
        time.sleep(0.005)
        wisdom.clear()
        bad += opened_damaged()
    return {"wrong": bad + sum(status(child) != 0 for child in children) + opened_damaged(), "cleared": times}


_BIG: dict[str, Callable[[BinaryIO, bytes], Any]] = {
    "a line of 20 MB": lambda file, _: file.write(b"[" * (20 << 20) + b"\n"),
    "a line of 100 MB": lambda file, _: file.write(b'{"threads":' + b"1" * (100 << 20) + b"}\n"),
    "1 GB of zeros": lambda file, _: file.seek((1 << 30) - 1) and file.write(b"\0\n"),
    "1 GB of lines": lambda file, _: [file.write(b'{"problem":"n1c3"}\n' * (1 << 16)) for _ in range(862)],
    "1 GB of rows": lambda file, row: [
        file.write(b"".join(row.replace(b'"n9c', f'"n{n}c'.encode()) for n in range(k, k + 999)))
        for k in range(1, (1 << 30) // len(row), 1000)
    ],
}


def big(name: str) -> dict[str, Any]:
    """Read a store that has a huge line, or is huge, and holds one good row at its end."""
    store = wisdom.require()
    wisdom.append(entry(0, 9))
    row = store.read_bytes()
    with store.open("wb") as file:
        _BIG[name](file, row)
    with store.open("ab") as file:
        file.write(row)

    def work() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            hit = wisdom.lookup(parse(entry(0, 9).problem), 1) is not None
        seconds = time.perf_counter() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        Path(f"{store}.json").write_text(json.dumps([hit, len(seen), grown // 1024, seconds]))
        return 0

    code = status(forked(work))
    hit, warned, grown, seconds = json.loads(Path(f"{store}.json").read_text())
    wrong = code + (not hit) + (not 1 <= warned <= 2)  # of damage, and of the size
    return {"wrong": wrong, "MiB": grown, "seconds": seconds}


def interrupted(times: int) -> dict[str, Any]:
    """`fastconv tune` is stopped at any time, by Ctrl-C or for good, and started again until all is known."""
    rng = random.Random(0)
    problems = [descriptor(_TUNED, 0, number) for number in range(1, 7)]
    code = "from fastconv.cli import main; print('{}', flush=True); main()"
    stops, bad, again = {"SIGINT": 0, "SIGKILL": 0}, 0, 0
    while sum(stops.values()) < times:
        before = {known.problem for known in wisdom.entries()}
        if len(before) == len(problems):
            wisdom.clear()
            before = set()
        child = subprocess.Popen(
            [sys.executable, "-c", code, "tune", *problems, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(Path(fastconv.__file__).parents[1])},
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(3 * rng.random())
        name = rng.choice(list(stops))
        child.send_signal(getattr(signal, name))
        output, errors = child.communicate(timeout=300)
        results = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
        measured = {one["problem"] for one in results if one["status"] == "measured"}
        again += len(measured & before)
        if not measured <= {known.problem for known in wisdom.entries()}:
            print("not stored:", measured, errors, file=sys.stderr)
            bad += 1
        if child.returncode:
            stops[name] += 1
            said = "fastconv: interrupted" in errors.splitlines() and "Traceback" not in errors
            if child.returncode != (130 if name == "SIGINT" else -signal.SIGKILL) or (name == "SIGINT" and not said):
                print(child.returncode, errors, file=sys.stderr)
                bad += 1
    return {"wrong": bad + again, **stops, "measured again": again}


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    "killed": lambda kills: killed(kills, (tunes, appends, appends, appends)),
    "killed, with export and merge": lambda kills: killed(kills, (appends, carries, appends, appends)),
    "cleared": cleared,
    "interrupted": interrupted,
    **{name: lambda _, name=name: big(name) for name in _BIG},
}


def main() -> None:
    name, times = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTCONV_WISDOM"] = os.path.join(folder, "wisdom.jsonl")
        print(json.dumps(SCENARIOS[name](int(times))))


if __name__ == "__main__":
    main()

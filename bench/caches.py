"""Numba's cache of compiled kernels under processes that write at once, are killed, and files that are damaged.

    python bench/caches.py SCENARIO COUNT

prints, as JSON, what `bench/trust_store.py` puts in its table and the tests look at. Every scenario has a cache
folder of its own. The kernels are tiny and all of one signature: each returns its number, so the code of another
one shows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types

import fastconv  # noqa: F401 (children find it imported)
from fastconv.jit import jit

CALLERS = 8
_KERNELS = 12
_SIGNATURE = types.int64(types.int64)


def ours(number: int) -> int:
    """What the kernel of this number returns, compiled or loaded as fastconv's kernels are."""

    def value(x):
        return number + x

    return jit(value, _SIGNATURE)(0)


def numbas(number: int) -> int:
    """The same with Numba's own cache."""

    def value(x):
        return number + x

    return numba.njit(_SIGNATURE, cache=True)(value)(0)


def wrong(kernel: Callable[[int], int], numbers: Any) -> int:
    """How many kernels are not what they should be."""
    return sum(kernel(number) != number for number in numbers)


def forked(work: Callable[[], int]) -> int:
    """The process id of a child that exits with what `work` returns, or 99 if it raises."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def status(child: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def race(kernel: Callable[[int], int], folder: Path) -> dict[str, Any]:
    """Two processes write at once: each has read what is there before the other has written."""

    def stopped(number: int, at: int) -> int:
        real, calls = os.replace, iter(range(1, 9))

        def replace(*names: Any) -> None:
            if next(calls) == at:
                (folder / f"{number}.at").touch()
                wait_for(folder / f"{number}.go")
            real(*names)

        os.replace = replace
        return wrong(kernel, [number])

    second = forked(lambda: stopped(2, 1))
    wait_for(folder / "2.at")
    first = forked(lambda: stopped(1, 2))
    wait_for(folder / "1.at", lambda: os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    (folder / "2.go").touch()
    codes = [status(second)]
    (folder / "1.go").touch()
    codes.append(status(first))
    return {"wrong": sum(codes) + status(forked(lambda: wrong(kernel, [1, 2])))}


def wait_for(path: Path, enough: Callable[[], Any] = lambda: False) -> None:
    """Wait until there is such a file, or something else is so."""
    while not path.exists() and not enough():
        time.sleep(0.001)


def killed(kernel: Callable[[int], int], folder: Path, kills: int) -> dict[str, Any]:
    """Processes compile and load the same kernels at once, in any order, and are killed at any time."""
    rng = random.Random(0)
    codes: list[int] = []
    children: list[int] = []
    done = 0

    def work(seed: int) -> int:
        numbers = random.Random(seed).sample(range(_KERNELS), _KERNELS)
        bad = wrong(kernel, numbers)
        if random.Random(seed).random() < 0.2:
            for path in folder.rglob("*.nb*"):  # all over again
                path.unlink(missing_ok=True)
        return bad

    started = 0
    while done < kills:
        while len(children) < CALLERS:
            children.append(forked(lambda seed=started: work(seed)))
            started += 1
        time.sleep(rng.expovariate(20))
        os.kill(victim := children.pop(rng.randrange(CALLERS)), signal.SIGKILL)
        codes.append(status(victim))
        done += codes[-1] == -signal.SIGKILL
        for child in [c for c in children if os.waitid(os.P_PID, c, os.WEXITED | os.WNOHANG | os.WNOWAIT)]:
            children.remove(child)
            codes.append(status(child))
    codes += [status(child) for child in children]
    codes.append(status(forked(lambda: wrong(kernel, range(_KERNELS)))))
    left = [path for path in folder.rglob("*") if ".tmp." in path.name]
    ended = [code for code in codes if code != -signal.SIGKILL]
    return {"wrong": sum(code != 0 for code in ended), "killed": done, "ended": len(ended), "torn": len(left)}


def damaged(kernel: Callable[[int], int], folder: Path, count: int) -> dict[str, Any]:
    """Files that are cut, empty, garbled, or those of another kernel."""
    rng = random.Random(0)
    bad = status(forked(lambda: wrong(kernel, range(2))))
    for _ in range(count):
        for path in folder.rglob("*.nb*"):
            other = rng.choice([other for other in folder.rglob("*.nb*") if other != path])
            path.write_bytes(_garbled(path.read_bytes(), rng) if rng.random() < 0.8 else other.read_bytes())
        bad += status(forked(lambda: wrong(kernel, range(2)))) != 0
    return {"wrong": bad, "damaged": count}


def _garbled(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return rng.choice([data[:at], b"", data[:at] + rng.randbytes(8) + data[at + 8 :], rng.randbytes(len(data))])


def together(kernel: Callable[[int], int], folder: Path, count: int) -> dict[str, Any]:
    """So many processes compile the same kernels at once into an empty folder; then one loads them."""
    orders = [random.Random(seed).sample(range(_KERNELS), _KERNELS) for seed in range(count)]
    children = [forked(lambda numbers=numbers: wrong(kernel, numbers)) for numbers in orders]
    bad = sum(status(child) != 0 for child in children)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    bad += status(forked(lambda: wrong(kernel, range(_KERNELS)))) != 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    return {"wrong": bad, "processes": count, "compiled again": sum(before.get(p) != t for p, t in after.items())}


def unwritable(kernel: Callable[[int], int], folder: Path) -> dict[str, Any]:
    """No folder for the cache can be written: `folder` is a file, as is the user's cache folder."""
    folder.rmdir()
    folder.touch()

    def work() -> int:
        places = numba.core.caching.CacheImpl._locator_classes
        places[:] = [one for one in places if "InTree" not in one.__name__]  # the folder of this file can be written
        os.environ["XDG_CACHE_HOME"] = str(folder)
        return _alone(kernel)

    return {"wrong": status(forked(work)) != 0}


def full(kernel: Callable[[int], int], folder: Path) -> dict[str, Any]:
    """No file may grow beyond a few bytes, as on a full disk."""
    import resource

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return _alone(kernel)

    return {"wrong": status(forked(work)) != 0, "files": len(list(folder.rglob("*.nb*")))}


def _alone(kernel: Callable[[int], int]) -> int:
    """0 if three kernels are right and there is one warning, which says what to do."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bad = wrong(kernel, range(3))
    return bad + 10 * (["NUMBA_CACHE_DIR" in str(w.message) for w in seen] != [True])


SCENARIOS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "race": lambda folder, _: race(ours, folder),
    "race, Numba alone": lambda folder, _: race(numbas, folder),
    "killed": lambda folder, count: killed(ours, folder, count),
    "killed, Numba alone": lambda folder, count: killed(numbas, folder, count),
    "damaged": lambda folder, count: damaged(ours, folder, count),
    "damaged, Numba alone": lambda folder, count: damaged(numbas, folder, count),
    "together": lambda folder, count: together(ours, folder, count),
    "together, Numba alone": lambda folder, count: together(numbas, folder, count),
    "unwritable": lambda folder, _: unwritable(ours, folder),
    "full": lambda folder, _: full(ours, folder),
}


def main() -> None:
    name, count = sys.argv[1:]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "cache")
        folder.mkdir()
        numba.config.CACHE_DIR = str(folder)
        print(json.dumps(SCENARIOS[name](folder, int(count))))


if __name__ == "__main__":
    main()

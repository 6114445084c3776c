"""Calls from many threads and processes at once, each scenario in a process of its own.

    python bench/crowds.py SCENARIO CALLS

prints, as JSON, what `bench/trust_threads.py` puts in its table and the tests look at: how many results were "wrong",
the threading "layer", and for threads the seconds that the same calls take one after the other ("alone") and all at
once ("together").
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
import numpy as np

import fastconv
from fastconv import grad

CALLERS = 8
KINDS = 13  # of calls
Kinds = list[tuple[Callable[[], np.ndarray], np.ndarray]]
Caller = Callable[[int, int], int]
_ROUND = 200  # calls of each caller in a round; fewer are not timed


@cache
def mixed() -> Kinds:
    """Calls of many kinds, tiny ones and some that are worth threads, each with its result in one thread."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    tiny, small = normal(1, 8, 8, 8), normal(8, 8, 3, 3)
    x, weight, wide = normal(2, 32, 28, 28), normal(32, 32, 3, 3), normal(32, 1, 3, 3)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    plan = fastconv.plan(x.shape, weight, padding=1, activation="relu", memory_format="channels_last")
    fused = fastconv.plan(x.shape, weight, padding=1, pool=fastconv.Pool("max", 2))
    calls: list[Callable[[], np.ndarray]] = [
        lambda: fastconv.conv2d(tiny, small),
        lambda: fastconv.conv2d(x, weight, padding=1),
        lambda: fastconv.conv2d(x.astype(np.float64), weight.astype(np.float64)),
        lambda: fastconv.conv2d(last, wide, padding=1, groups=32),
        lambda: fastconv.conv_transpose2d(x, weight, padding=1),
        lambda: grad.conv2d_input(x.shape, weight, x, padding=1),
        lambda: grad.conv2d_weight(x, weight.shape, x, padding=1),
        lambda: grad.conv2d_bias(x),
        lambda: fastconv.max_pool2d(last, 3, stride=2),
        lambda: fastconv.avg_pool2d(x, 2),
        lambda: fastconv.im2col(x, 3),
        lambda: plan(last),
        lambda: fused(x),
    ]
    assert len(calls) == KINDS
    with fastconv.threads(1):
        return [(call, call()) for call in calls]


def wrong(caller: int, calls: int) -> int:
    """How many of so many calls give another result than in one thread; each caller begins with another kind."""
    return sum(not np.array_equal(result, expected) for result, expected in results(mixed(), caller, calls))


def results(kinds: Kinds, caller: int, calls: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What so many calls return, and what they should."""
    for turn in range(calls):
        call, expected = kinds[(caller + turn) % len(kinds)]
        yield call(), expected


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `work` returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def in_turn(calls: int, caller: Caller = wrong) -> int:
    """Every caller's calls, one caller after the other."""
    return sum(caller(number, calls) for number in range(CALLERS))


def compare(calls: int, together: Callable[[int], int], caller: Caller = wrong) -> dict[str, Any]:
    """Seconds of the calls `in_turn` and `together`, by rounds in turns, and the median of the ratios."""
    bad, rounds = caller(0, KINDS), []  # loads the code for several threads
    if calls < _ROUND:
        return {"wrong": bad + together(calls)}
    for _ in range(calls // _ROUND):
        one, found = timed(lambda: in_turn(_ROUND, caller))
        many, others = timed(lambda: together(_ROUND))
        bad, rounds = bad + found + others, [*rounds, (one, many)]
    seconds = {"alone": sum(one for one, _ in rounds), "together": sum(many for _, many in rounds)}
    return {"wrong": bad, **seconds, "ratio": statistics.median(many / one for one, many in rounds)}


def crowd(caller: Caller, calls: int) -> int:
    """All callers at once, in Python's own threads."""
    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(caller, range(CALLERS), [calls] * CALLERS))


def threads(calls: int) -> dict[str, Any]:
    """Python's own threads."""
    return compare(calls, lambda part: crowd(wrong, part))


def limited(calls: int) -> dict[str, Any]:
    """As `threads`, every caller limited to one thread."""
    return compare(calls, lambda part: crowd(fastconv.threads(1)(wrong), part))


def peer(calls: int) -> dict[str, Any]:
    """As `threads`, with the same calls of PyTorch's, whose results may differ by rounding."""
    import crowd_peer
    import torch

    torch.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    kinds = crowd_peer.calls()
    assert len(kinds) == KINDS

    def far(caller: int, part: int) -> int:
        return sum(not np.allclose(result, expected, atol=1e-4) for result, expected in results(kinds, caller, part))

    return compare(calls, lambda part: crowd(far, part), far)


def joblib(calls: int) -> dict[str, Any]:
    """joblib with its threading backend."""
    from joblib import Parallel, delayed

    work = delayed(wrong)
    return compare(
        calls, lambda part: sum(Parallel(CALLERS, backend="threading")(work(n, part) for n in range(CALLERS)))
    )


def dask(calls: int) -> dict[str, Any]:
    """Dask's threaded scheduler."""
    from dask import compute, delayed

    work = delayed(wrong)
    return compare(
        calls,
        lambda part: sum(compute(*[work(n, part) for n in range(CALLERS)], scheduler="threads", num_workers=CALLERS)),
    )


def torch(calls: int) -> dict[str, Any]:
    """One caller beside a thread in which PyTorch convolves all the time, on as many threads as it likes."""
    import torch

    x, weight = torch.ones(4, 32, 28, 28), torch.ones(32, 32, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight)

    def beside(part: int) -> int:
        same: list[bool] = []
        with repeated(lambda: torch.equal(torch.nn.functional.conv2d(x, weight), expected), same):
            return in_turn(part) + same.count(False)

    return compare(calls, beside)


@contextmanager
def repeated(work: Callable[[], Any], results: list) -> Iterator[None]:
    """`work` again and again in another thread."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def processes(method: str, calls: int) -> dict[str, Any]:
    """A pool of processes, started after this one has used its threads, which goes on using them."""
    bad = wrong(0, len(mixed()))
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(in_child, [(caller, calls) for caller in range(CALLERS)])
        bad += wrong(0, len(mixed()))
    return {"wrong": bad + sum(f["wrong"] for f in found), "warnings": max(f["warnings"] for f in found)}


def in_child(caller: int, calls: int) -> dict[str, int]:
    """As `wrong`, with the number of warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bad = wrong(caller, calls)
    return {"wrong": bad, "warnings": len([w for w in seen if "fastconv.threads" in str(w.message)])}


def fork(calls: int) -> dict[str, Any]:
    """`processes`, forked."""
    return processes("fork", calls)


def spawn(calls: int) -> dict[str, Any]:
    """`processes`, spawned."""
    return processes("spawn", calls)


def forkserver(calls: int) -> dict[str, Any]:
    """`processes` of a fork server."""
    return processes("forkserver", calls)


def fork_amid_threads(calls: int) -> dict[str, Any]:
    """Forks while other threads compute."""
    bad = wrong(0, len(mixed()))
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(wrong, caller, calls) for caller in range(3)]
        codes = [forked(calls) for _ in range(CALLERS)]
        return {"wrong": bad + sum(other.result() for other in others) + sum(codes)}


def forked(calls: int) -> int:
    """1 unless a forked child finds everything right."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(int(wrong(0, calls) > 0))
        finally:
            os._exit(2)
    return int(os.waitpid(child, 0)[1] != 0)


def fork_after_torch(calls: int) -> dict[str, Any]:
    """A forked child of a process that has started PyTorch's threads, and none of Numba's."""
    import torch

    torch.set_num_threads(2)
    torch.nn.functional.conv2d(torch.ones(4, 32, 28, 28), torch.ones(32, 32, 3, 3))
    return {"wrong": forked(calls)}


def dataloader(calls: int) -> dict[str, Any]:
    """Workers of a PyTorch DataLoader, which it forks."""
    import torch

    class Wrong(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return CALLERS

        def __getitem__(self, caller: int) -> int:
            return wrong(caller, calls)

    bad = wrong(0, len(mixed()))
    for _ in range(2):
        loader = torch.utils.data.DataLoader(Wrong(), num_workers=2, multiprocessing_context="fork")
        bad += sum(int(batch.sum()) for batch in loader)
        bad += wrong(0, len(mixed()))
    return {"wrong": bad}


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        threads, limited, peer, joblib, dask, torch,
        fork, spawn, forkserver, fork_amid_threads, fork_after_torch, dataloader,
    )
}  # fmt: skip


def main() -> None:
    name, calls = sys.argv[1:]
    found = SCENARIOS[name](int(calls))
    try:
        found["layer"] = numba.threading_layer()
    except ValueError:
        found["layer"] = None
    print(json.dumps(found))


if __name__ == "__main__":
    main()

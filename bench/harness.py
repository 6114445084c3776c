"""Peers in processes of their own, measured in turn.

Each peer lives in one process for the whole run: thread pools that spin while they wait would otherwise
take the cores from the next peer. A round asks every peer for one sample, in rotating order, with a pause
between them in which the last one's threads fall asleep; so a slow moment of the machine hits all alike.

Environment of the processes: ``OMP_NUM_THREADS``, ``NUMBA_NUM_THREADS`` and ``MKL_NUM_THREADS`` are the
requested threads. ``OMP_WAIT_POLICY`` is left alone: within a sample threads should spin, as they would in
a network. GNU OpenMP and ONNX Runtime stop spinning after some tens of milliseconds, less than the pause;
Intel's and LLVM's OpenMP would after 200, so ``KMP_BLOCKTIME`` is set to `BLOCK_MS`.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from exact import exact, inputs
from peers import Unsupported, load

from fastconv.descriptor import parse
from fastconv.problem import Problem

BLOCK_MS = 10
PAUSE_S = 0.06
_TIMING_S = 100e-6  # calls are timed in groups of at least this long
_CALLS = 5  # timings in a sample
_WARM_S = 6e-3


def set_threads(threads: int) -> None:
    """Say in the environment, for processes started later, how many threads every peer may use."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["KMP_BLOCKTIME"] = str(BLOCK_MS)


def time_calls(call: Callable[[], Any], number: int, calls: int = _CALLS) -> list[float]:
    """Seconds per call, `calls` times, each from `number` calls.

    Calls that are not counted come first: after a pause, threads sleep, the clock is low and caches hold
    other data, and it takes some milliseconds until times settle.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < _WARM_S:
        call()
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        for _ in range(number):
            call()
        found.append((time.perf_counter() - start) / number)
    return found


class Worker:
    """A peer in a process of its own.

    Parameters
    ----------
    peer : str
        A name in `peers.PEERS`.
    threads : int
        How many it may use.
    """

    def __init__(self, peer: str, threads: int) -> None:
        self.peer = peer
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, argument: Any = None) -> Any:
        """Send a request and wait for the answer.

        Raises
        ------
        RuntimeError
            If the peer raised; carries its traceback.
        Unsupported
            If it has no such operation.
        """
        self._pipe.send((what, argument))
        try:
            kind, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.peer}: its process died during {what!r}") from None
        if kind == "unsupported":
            raise Unsupported(answer)
        if kind == "error":
            raise RuntimeError(f"{self.peer}: {what} failed\n{answer}")
        return answer

    def sample(self) -> list[float]:
        """Seconds per call, some times, of what was prepared."""
        return self.ask("sample")

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)


def _serve(pipe: Connection, peer: str, threads: int) -> None:
    """The loop of a worker's process: prepare a problem, then give samples of it."""
    maker = load(peer)
    sample: Callable[[], list[float]] = list
    while True:
        try:
            what, argument = pipe.recv()
        except EOFError:
            return
        try:
            if what == "prepare":
                ready = maker(*_work(argument), threads)
                sample = ready.sample or _sampler(ready.call)
                pipe.send(("ok", (np.asarray(ready.result()), ready.note)))
            else:
                pipe.send(("ok", sample()))
        except Unsupported as error:
            pipe.send(("unsupported", str(error)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))


def _work(descriptor: str | None) -> tuple:
    """A maker's arguments: a problem and its inputs; nothing where the peer has only one thing to do."""
    if descriptor is None:
        return ()
    problem = parse(descriptor)
    return problem, inputs(problem)


def _sampler(call: Callable[[], Any]) -> Callable[[], list[float]]:
    estimate = min(time_calls(call, 1))
    number = max(1, round(_TIMING_S / estimate))
    return lambda: time_calls(call, number)


def measure(workers: dict[str, Worker], descriptor: str, rounds: int) -> dict[str, dict[str, Any]]:
    """One problem on every peer: errors against float64, and times if `rounds` is not 0.

    Returns
    -------
    dict
        For each peer that can compute it: "note"; "error", the largest absolute one, and "relative_error", divided
        by the largest result; and, in seconds per call, "median", "min", "quartiles" and the number of "samples".
    """
    problem = parse(descriptor)
    truth = exact(problem)
    found: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        try:
            result, note = worker.ask("prepare", descriptor)
        except Unsupported:
            continue
        found[name] = {"note": note}
        if result.size:
            found[name] |= _errors(name, problem, result, truth)
    if rounds:
        samples = interleave({name: workers[name].sample for name in found}, rounds)
        for name, seconds in samples.items():
            found[name] |= summary(seconds)
    return found


def interleave(samplers: dict[Any, Callable[[], list[float]]], rounds: int) -> dict[Any, list[float]]:
    """One sample of each in every round, in rotating order; all samples of each."""
    names = list(samplers)
    found: dict[Any, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE_S)
            found[name] += samplers[name]()
    return found


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median, minimum, quartiles and count of times in seconds."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        "median": statistics.median(seconds), "min": min(seconds), "quartiles": [low, high], "samples": len(seconds),
    }  # fmt: skip


def _errors(name: str, problem: Problem, result: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if result.shape != truth.shape:
        raise RuntimeError(f"{name}: shape {result.shape} for {problem.descriptor}, {truth.shape} expected")
    error, largest = float(np.abs(result - truth).max()), float(np.abs(truth).max())
    if not error <= 1e-4 * largest:
        raise RuntimeError(f"{name}: wrong result for {problem.descriptor}: error {error:g}, largest {largest:g}")
    return {"error": error, "relative_error": error / largest}

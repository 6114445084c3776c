"""Finds the fastest candidate for each problem, checks its results and remembers it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import numba
import numpy as np

from fastconv import algorithms, networks
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, PoolProblem, Problem
from fastconv.sizes import integer, real, shown
from fastconv.tuning import learn, measure, peak, wisdom
from fastconv.tuning.check import wrong
from fastconv.tuning.measure import Timing

Progress = Callable[[Problem, float, str], None]

SHORTLIST = 16
_SECONDS = 4.0  # of timing, for one problem
_ALSO_SERIAL_NS = 200_000  # shorter runs are tried on one thread too
_TRUSTED_NOISE = 0.1


class Trial(NamedTuple):
    """A candidate on a number of threads: what is timed."""

    candidate: Candidate
    threads: int


@dataclass(frozen=True)
class Result:
    """What tuning found out about one problem.

    Attributes
    ----------
    problem : Problem
    status : {"measured", "known", "out of budget", "failed"}
        "known": wisdom was there already. "failed": every candidate gave wrong results or an error.
    entry : wisdom.Entry or None
        The winner, from now or from before.
    rejected : tuple of str
        Candidates that gave wrong results or failed, and how.
    disturbed : bool
        The CPU gave less than half of its peak before or after the timing, or the winner's minimum was
        not met again: something else was running, and measuring again may give another winner.
    """

    problem: Problem
    status: str
    entry: wisdom.Entry | None = None
    rejected: tuple[str, ...] = ()
    disturbed: bool = False


def resolve(what: Any) -> list[Problem]:
    """Problems from a problem, a descriptor, the name of a network, or any number of these.

    Raises
    ------
    ValueError
        If a text is neither a network nor a descriptor.
    """
    if isinstance(what, (ConvProblem, PoolProblem)):
        return [what]
    if not isinstance(what, str):
        if not isinstance(what, Iterable) or (isinstance(what, np.ndarray) and not what.ndim):
            raise TypeError(f"problems must be problems, descriptors or names of networks, got {shown(what)}")
        return list(dict.fromkeys(problem for item in what for problem in resolve(item)))
    return list(networks.problems(what)) if what in networks.names() else [parse(what)]


def tune(
    problems: str | Problem | Iterable[str | Problem], budget: float | None = None, threads: int | None = None,
    retune: bool = False, progress: Progress | None = None,
) -> list[Result]:  # fmt: skip
    """Measure the candidates for each problem and remember the winners as wisdom.

    Candidates are timed in turns; the fastest replaces the one in use (the known winner, else the cost
    model's choice) only if it is faster by more than the noise, and only if its results agree with the
    reference. Every winner is stored as soon as it is found, so an interrupted run keeps what it has.

    Parameters
    ----------
    problems : str, Problem, or an iterable of them
        Descriptors, names of networks (`fastconv.networks.names`) or problems. Those on a GPU are measured on the first
        one, and their results compared with the CPU's reference.
    budget : float, optional
        Seconds for all of them together, compilation included; checked between steps, so that a step
        may overrun it. As long as it takes if not given: typically a few seconds each.
    threads : int, optional
        Threads that kernels on the CPU may use; Numba's current limit if not given.
    retune : bool, default False
        Measure again what is known already.
    progress : callable, optional
        Called with (problem, fraction done, what is being done).

    Returns
    -------
    list of Result
        One for each distinct problem, in order.

    Warns
    -----
    RuntimeWarning
        Once, if the store cannot be written: the results then count in this process only.

    Raises
    ------
    ImportError
        If there is nowhere to store wisdom: platformdirs or filelock is not installed.
    ValueError
        For a bad descriptor, the gradient of a pooling (it has one kernel), a problem on a GPU where there is none, or
        a thread count out of range.
    """
    return list(tune_each(problems, budget, threads, retune, progress))


def tune_each(
    problems: Any, budget: float | None = None, threads: int | None = None, retune: bool = False,
    progress: Progress | None = None,
) -> Iterator[Result]:  # fmt: skip
    """`tune`, one result at a time."""
    wisdom.check_packages()
    threads = check_threads(threads)
    budget = None if budget is None else real(budget, "budget", 0)
    wanted = resolve(problems)
    if empty := [p.descriptor for p in wanted if p.batch == 0]:
        raise ValueError(f"problems must have a batch of at least 1 to be tuned, got {', '.join(empty)}")
    if fixed := [p.descriptor for p in wanted if p.operation == "pool_backward_input"]:
        raise ValueError(f"there is nothing to choose for the gradient of a pooling, got {', '.join(fixed)}")
    for problem in {p.device: p for p in wanted}.values():
        with measure.on_device(problem):
            pass  # raises where there is no such device
    known = {} if retune else {p: _known(p, threads) for p in wanted}
    unknown = sum(known.get(p) is None for p in wanted)
    end = None if budget is None else monotonic() + budget
    for problem in wanted:
        if entry := known.get(problem):
            yield Result(problem, "known", entry)
            continue
        left = None if end is None else end - monotonic()
        if left is not None and left <= 0:
            yield Result(problem, "out of budget", _known(problem, threads))
        else:
            with measure.on_device(problem):
                result = tune_one(problem, wisdom.usable_threads(problem, threads), left and left / unknown, progress)
            yield result
        unknown -= 1


def _known(problem: Problem, threads: int) -> wisdom.Entry | None:
    """The measurement of a problem, if its winner is one that can be run."""
    entry = wisdom.lookup(problem, threads)
    return entry if entry is not None and algorithms.offered(problem, entry.candidate) else None


def check_threads(threads: int | None) -> int:
    """`threads`, or Numba's current limit.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or there are not so many.
    """
    limit = numba.config.NUMBA_NUM_THREADS
    wanted = limit if threads is None else integer(threads, "threads")
    if not 1 <= wanted <= limit:
        raise ValueError(f"threads must be from 1 to {limit} (set NUMBA_NUM_THREADS for more), got {threads}")
    return wanted


def tune_one(problem: Problem, threads: int, seconds: float | None = None, progress: Progress | None = None) -> Result:
    """Measure one problem, whatever is known of it, and store the winner; call it in `measure.on_device`.

    Parameters
    ----------
    seconds : float, optional
        For compilation and timing together.
    """
    tell = progress or (lambda *_: None)
    start, work = monotonic(), measure.workload(problem)
    known = _known(problem, threads)
    trials, incumbent = _trials(problem, threads, known)
    rejected: list[str] = []
    half = None if seconds is None else start + seconds / 2
    kernels = _compile(problem, trials, work, rejected, half, lambda f, text: tell(problem, f / 2, text))
    if not kernels:
        return Result(problem, "failed", None, tuple(rejected))
    for_timing = _SECONDS if seconds is None else min(_SECONDS, start + seconds - monotonic())
    best_peak = peak.ceiling(problem, threads)
    peaks = [peak.now(problem, threads)]
    timings = measure.interleave(
        {trial: call for trial, (_, call) in kernels.items()}, for_timing, incumbent,
        lambda f: tell(problem, 0.5 + f / 2, "timing"), work.timer,
    )  # fmt: skip
    peaks.append(peak.now(problem, threads))
    known_peaks = [rate for rate in (best_peak, *peaks) if rate is not None]
    while timings:
        winner = choose(timings, incumbent)
        reason = wrong(problem, work, kernels[winner][1])
        if reason is None:
            workspace = kernels[winner][0].workspace_bytes
            best = max(known_peaks, default=None)
            entry = wisdom.remember(_entry(problem, threads, timings, winner, workspace, best))
            tell(problem, 1.0, "done")
            slowed = best_peak is not None and min(known_peaks) < best_peak / 2
            disturbed = slowed or timings[winner].noise > _TRUSTED_NOISE
            return Result(problem, "measured", entry, tuple(rejected), disturbed)
        rejected.append(_reject(problem, winner, reason))
        del timings[winner]
    return Result(problem, "failed", None, tuple(rejected))


def choose(timings: dict[Trial, Timing], incumbent: Trial | None) -> Trial:
    """The trial with the shortest run, unless it beats the incumbent by no more than the noise."""
    fastest = min(timings, key=lambda trial: timings[trial].best_ns)
    if incumbent in timings and not measure.beats(timings[fastest], timings[incumbent]):
        return incumbent
    return fastest


def shortlist(problem: Problem, threads: int) -> list[Candidate]:
    """The best predicted candidates: first the best of each algorithm, then the others in order."""
    ranked = algorithms.candidates(problem, None, learn.correction(problem, threads))
    first = list({c.algorithm: c for c in reversed(ranked)}.values())[::-1]
    return list(dict.fromkeys(first + ranked[:SHORTLIST]))


def _trials(problem: Problem, threads: int, known: wisdom.Entry | None) -> tuple[list[Trial], Trial]:
    """What to time, the incumbent first."""
    trials = []
    for candidate in shortlist(problem, threads):
        serial = threads > 1 and algorithms.predicted_ns(problem, candidate) < _ALSO_SERIAL_NS
        trials += [Trial(candidate, n) for n in ([threads, 1] if serial else [threads])]
    incumbent = Trial(known.candidate, known.run_threads) if known else trials[0]
    return list(dict.fromkeys([incumbent, *trials])), incumbent


def _compile(
    problem: Problem, trials: list[Trial], work: Any, rejected: list[str], end: float | None,
    tell: Callable[[float, str], None],
) -> dict[Trial, tuple[Any, Callable[[], None]]]:  # fmt: skip
    """Kernels and calls of the trials, as many as there is time for but at least two."""
    ready: dict[Trial, tuple[Any, Callable[[], None]]] = {}
    for done, trial in enumerate(trials):
        if end is not None and len(ready) >= 2 and monotonic() > end:
            break
        tell(done / len(trials), f"compiling {trial.candidate}")
        try:
            kernel, call = measure.prepare(problem, trial.candidate, work, trial.threads)
            call()
        except Exception as error:  # a candidate that fails must not keep the others from being tried
            rejected.append(_reject(problem, trial, f"{type(error).__name__}: {error}"))
        else:
            ready[trial] = kernel, call
    return ready


def _reject(problem: Problem, trial: Trial, reason: str) -> str:
    text = f"{trial.candidate} on {trial.threads} thread(s): {reason}"
    warnings.warn(f"not used for {problem.descriptor}: {text}; please report this", RuntimeWarning, stacklevel=3)
    return text


def _entry(
    problem: Problem, threads: int, timings: dict[Trial, Timing], winner: Trial, workspace: int,
    best_peak: float | None,
) -> wisdom.Entry:  # fmt: skip
    timing = timings[winner]
    others = {t: timings[t].best_ns for t in timings if t.candidate != winner.candidate}
    runner_up = min(others, key=lambda t: others[t]) if others else None
    gflops = problem.flops / timing.best_ns
    predicted = {trial: algorithms.predicted_ns(problem, trial.candidate) for trial in timings}
    measured = (
        wisdom.Measurement(*trial, *map(math.ceil, (taken.best_ns, predicted[trial])))
        for trial, taken in timings.items()
    )
    return wisdom.Entry(
        problem.descriptor, threads, winner.candidate, winner.threads, timing.median_ns, timing.best_ns,
        timing.spread, gflops, best_peak and gflops / best_peak, workspace, runner_up and runner_up.candidate,
        others[runner_up] / timing.best_ns - 1 if runner_up else None, measured=tuple(measured),
    )  # fmt: skip

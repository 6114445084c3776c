"""Times several ways to do the same work.

The calls take turns, so that a slow second of the machine hits all of them; the minimum and the spread
are kept, and what is clearly slower drops out early. Arrays are reused, as they are by the layers of a
network, so small problems are measured with warm caches. On a GPU, events take the time (`fastconv.cuda.timing`), and
large arrays change (`fastconv.tuning.gpu`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import monotonic, perf_counter_ns
from typing import Any, TypeAlias, TypeVar

import numpy as np

from fastconv import algorithms
from fastconv.arrays import empty
from fastconv.problem import ConvProblem, Problem

Key = TypeVar("Key", bound=Hashable)
Timer: TypeAlias = Callable[[Callable[[], None], int], float]  # nanoseconds of each of so many calls

SAMPLE_NS = 50_000  # a sample repeats its call for at least this long
NOISE_FLOOR = 0.02
NOISE_CEILING = 0.2  # more than that is a difference, however noisy
_ROUNDS = (20, 100)  # at least and at most, time permitting
_MIN_SECONDS = 0.3  # short calls go on for more rounds until this is over
# After so many rounds, drop what takes so many times the fastest, and keep at most this share of the rest.
_STAGES = {1: (6.0, 1.0), 4: (1.6, 1.0), 7: (1.25, 0.5), 11: (1.1, 0.5)}


@dataclass(frozen=True)
class Workload:
    """Arrays of one problem; `out` (and `indices`, int64) are overwritten by every run.

    For a gradient, `x` is the input or what stands in its place: with that of the input (direction
    "backward_input") the gradient of the output, which is `grad` with that of the weights.
    """

    x: np.ndarray
    out: np.ndarray
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    indices: np.ndarray | None = None
    grad: np.ndarray | None = None

    @property
    def timer(self) -> Timer:
        """What times calls on these arrays."""
        return _sample


@dataclass(frozen=True)
class Timing:
    """Samples of one call in nanoseconds, one for each round that it took part in."""

    samples: tuple[float, ...]

    @property
    def best_ns(self) -> float:
        """The shortest sample."""
        return min(self.samples)

    @property
    def median_ns(self) -> float:
        """The median sample."""
        return float(np.median(self.samples))

    @property
    def spread(self) -> float:
        """(median - minimum) / minimum."""
        return self.median_ns / self.best_ns - 1

    @property
    def noise(self) -> float:
        """How far the minimum can be trusted: (third shortest - minimum) / minimum.

        Whatever else runs on the machine only ever adds time, so a minimum that was met three times is
        right even where most samples are not.
        """
        return sorted(self.samples)[:3][-1] / self.best_ns - 1


def on_device(problem: Problem) -> AbstractContextManager[Any]:
    """Where all else of this module is called for a problem: on a GPU, in the context of the first one.

    Raises
    ------
    ImportError, ValueError
        If there is no GPU, or a package that it needs is not installed.
    """
    if problem.device == "cpu":
        return nullcontext()
    from fastconv.tuning.gpu import current  # imports Numba's CUDA target

    return current()


def workload(problem: Problem, seed: int = 0) -> Any:
    """Random arrays for a problem: normally distributed, weights scaled so that a convolution's results are too.

    Returns
    -------
    Workload or fastconv.tuning.gpu.DeviceWorkload
    """
    host = _host_workload(problem, seed)
    if problem.device == "cpu":
        return host
    from fastconv.tuning.gpu import DeviceWorkload

    return DeviceWorkload(problem, host)


def _host_workload(problem: Problem, seed: int) -> Workload:
    random, dtype = np.random.default_rng(seed), _host_dtype(problem)
    if isinstance(problem, ConvProblem) and problem.direction == "backward_weight":
        x, grad = (_normal(problem, shape, random) for shape in (problem.in_shape, problem.out_shape))
        return Workload(x, np.empty(problem.weight_shape, dtype), grad=grad)
    if isinstance(problem, ConvProblem) and problem.direction == "backward_input":
        x, out = (
            _normal(problem, problem.out_shape, random),
            empty(problem.in_shape, dtype, problem.memory_format),
        )
        return Workload(x, out, *_weights(problem, random))
    x = _normal(problem, problem.in_shape, random)
    out = empty(problem.out_shape, dtype, problem.memory_format)
    if not isinstance(problem, ConvProblem):
        if problem.pool.mode == "lp":
            np.abs(x, out=x)  # a negative sum of odd powers has no root
        indices = empty(problem.out_shape, np.int64, problem.memory_format) if problem.return_indices else None
        return Workload(x, out, indices=indices)
    return Workload(x, out, *_weights(problem, random))


def _host_dtype(problem: Problem) -> np.dtype:
    """That of elements on the CPU: float32 stands for those of 16 bits."""
    return np.dtype("float32" if problem.itemsize == 2 else problem.dtype)


def _normal(problem: Problem, shape: tuple[int, int, int, int], random: np.random.Generator) -> np.ndarray:
    dtype = _host_dtype(problem)
    array = empty(shape, dtype, problem.memory_format)
    array[...] = random.standard_normal(shape, dtype)
    return array


def _weights(problem: ConvProblem, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    dtype = _host_dtype(problem)
    weight = random.standard_normal(problem.weight_shape, dtype)
    weight /= math.sqrt(math.prod(problem.weight_shape[1:]))
    channels = problem.out_channels if problem.direction == "forward" else problem.in_channels
    return weight, random.standard_normal(channels, dtype) if problem.bias else None


def prepare(
    problem: Problem, candidate: algorithms.Candidate, work: Any, threads: int
) -> tuple[Any, Callable[[], None]]:
    """The candidate's kernel, and a call that runs it on `work`; weights are packed now, unless `problem.raw`."""
    if problem.device == "cuda":
        return work.prepare(candidate)
    code = algorithms.module_of(problem, candidate.algorithm)
    kernel = code.make(problem, dict(candidate.params), threads)
    x, out = work.x, work.out
    if not isinstance(problem, ConvProblem):
        return kernel, lambda: kernel.run(x, out, work.indices)
    if problem.direction == "backward_weight":
        return kernel, lambda: kernel.run(x, work.grad, out)
    if problem.raw or problem.direction == "backward_input":
        return kernel, lambda: kernel.convolve(x, work.weight, work.bias, out)
    packed = kernel.pack(work.weight, work.bias)
    return kernel, lambda: kernel.run(x, packed, out)


def interleave(
    calls: Mapping[Key, Callable[[], None]],
    seconds: float = 5.0,
    keep: Key | None = None,
    progress: Callable[[float], None] | None = None,
    timer: Timer | None = None,
) -> dict[Key, Timing]:
    """Time calls in rounds, and drop the clearly slower ones on the way.

    Parameters
    ----------
    calls : mapping
        What to time; each is also run a few times before. Calls go on for longer where their times
        vary.
    seconds : float, default 5
        No new round starts later than this; one round is always done.
    keep : key, optional
        A call that never drops out, so that it can be compared with the fastest.
    progress : callable, optional
        Told the fraction that is done, from 0 to 1, after every round.
    timer : callable, optional
        ``timer(call, repeats)`` is the time of each of so many calls, in nanoseconds; by the host's clock if not given.

    Returns
    -------
    dict
        A `Timing` for every call. The fastest two (and `keep`) were in every round. What dropped out
        has fewer samples, and at least one.
    """
    start, sample = monotonic(), timer or _sample
    best = {key: _estimate(call, sample) for key, call in calls.items()}
    repeats = {key: max(1, math.ceil(SAMPLE_NS / ns)) for key, ns in best.items()}
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    live = list(calls)
    for done in range(1, _ROUNDS[1] + 1):
        turn = done % len(live)
        for key in live[turn:] + live[:turn]:
            samples[key].append(sample(calls[key], repeats[key]))
            best[key] = min(best[key], samples[key][-1])
        elapsed = monotonic() - start
        if progress is not None:
            progress(min(1.0, max(elapsed / seconds, done / _ROUNDS[0]) if seconds > 0 else 1.0))
        enough = done >= _ROUNDS[0] and elapsed >= _MIN_SECONDS
        if elapsed >= seconds or (enough and all(Timing(tuple(samples[key])).noise < NOISE_FLOOR for key in live)):
            break
        if done in _STAGES:
            live = _survivors({key: best[key] for key in live}, *_STAGES[done], keep)
    return {key: Timing(tuple(taken)) for key, taken in samples.items()}


def _sample(call: Callable[[], None], repeats: int) -> float:
    call()  # not timed: it brings the candidate's own arrays back into the caches
    start = perf_counter_ns()
    for _ in range(repeats):
        call()
    return max(1, perf_counter_ns() - start) / repeats


def _estimate(call: Callable[[], None], sample: Timer) -> float:
    """Nanoseconds of one call; the first run, which loads and lays out what later ones find ready, is not counted."""
    call()
    first = sample(call, 1)
    return first if first > 20 * SAMPLE_NS else min(first, sample(call, 1), sample(call, 1))


def _survivors(best: dict[Key, float], limit: float, share: float, keep: Key | None) -> list[Key]:
    """The fastest, as far as limit and share allow; never fewer than two, and `keep`."""
    ranked = sorted(best, key=lambda key: best[key])
    fast = [key for key in ranked if best[key] <= limit * best[ranked[0]]]
    chosen = {*fast[: math.ceil(share * len(ranked))], *ranked[:2], keep}
    return [key for key in best if key in chosen]


def beats(challenger: Timing, incumbent: Timing) -> bool:
    """Whether the challenger's minimum is shorter by more than the noise.

    That of the noisier of the two, but at least `NOISE_FLOOR` and at most `NOISE_CEILING`.
    """
    noise = min(NOISE_CEILING, max(NOISE_FLOOR, challenger.noise, incumbent.noise))
    return challenger.best_ns < (1 - noise) * incumbent.best_ns

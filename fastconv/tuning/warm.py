"""Compiles the kernels ahead of time, into Numba's disk cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

import numba

from fastconv import algorithms
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.problem import CPU_DTYPES, DTYPES, FORMATS, Problem
from fastconv.tuning import measure

# Small problems that between them meet every path: kernels are compiled for tiles, not for shapes; those of pooling for
# the size of small windows, of which these are the usual ones.
_SHAPES = (
    "n1c16h14w14k32r3s3p1_bias_relu",
    "n1c16h14w14k32r1s1",
    "n1c3h32w32k32r7s7p3u2_bias_relu_max3u2p1",
    "n1c128h7w7k64r3s3p1",
    "n1c32h14w14k32r3s3p1g32_bias_relu6",
    "n1c32h14w14k64r3s3p1g4",
    "n1c64h14w14k64r3s3p1_dgrad",
    "n1c64h14w14k64r3s3p1_wgrad",
    "n1c3h14w14k32r3s3p1_wgrad",
    "n1c32h14w14k32r3s3p1g32_dgrad",
    "n1c32h14w14k32r3s3p1g32_wgrad",
    "n1c16h14w14_max2",
    "n1c16h14w14_max3u1p1",
    "n1c16h14w14_max3u2p1",
    "n1c16h14w14_max5u1p2",
    "n1c16h14w14_max2_indices",
    "n1c16h14w14_avg2",
    "n1c16h14w14_avg3u2p1",
    "n1c16h14w14_avg14",
    "n1c16h14w14_lp2",
)


@dataclass(frozen=True)
class Warmed:
    """How many kernels are ready, and the seconds that it took."""

    kernels: int
    seconds: float


def menu(dtypes: Iterable[str] = ("float32",)) -> list[tuple[Problem, Candidate]]:
    """Small problems, with all their candidates, for which every kernel is compiled.

    Raises
    ------
    ValueError
        For a dtype other than float32 and float64.
    """
    words = {name: word for word, name in DTYPES.items() if name in CPU_DTYPES}
    for dtype in dtypes:
        if dtype not in words:
            raise ValueError(f"dtype must be one of {', '.join(words)}, got {dtype!r}")
    problems = [parse(f"{shape}_{words[d]}_{layout}") for d in dtypes for layout in FORMATS for shape in _SHAPES]
    return [(problem, candidate) for problem in problems for candidate in algorithms.candidates(problem)]


def compile_menu(
    wanted: list[tuple[Problem, Candidate]], progress: Callable[[float, str], None] | None = None
) -> Warmed:
    """Compile, or load from the cache, each candidate, and run it once.

    Parameters
    ----------
    wanted : list of (Problem, Candidate)
        From `menu`.
    progress : callable, optional
        Called with (fraction done, what is being compiled).
    """
    start, threads = monotonic(), numba.config.NUMBA_NUM_THREADS
    for done, (problem, candidate) in enumerate(wanted):
        if progress is not None:
            progress(done / len(wanted), str(candidate))
        _, call = measure.prepare(problem, candidate, measure.workload(problem), threads)
        call()
    if progress is not None:
        progress(1.0, "done")
    kinds = {(p.operation, p.dtype, candidate) for p, candidate in wanted}
    return Warmed(len(kinds), monotonic() - start)

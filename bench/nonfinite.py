"""Where NaN and infinities of an operand go: every candidate beside what is allowed, and beside PyTorch.

A product of a weight, or of a gradient, that is not finite with the padding is NaN where zeros are multiplied, and
none where the padding is passed over. Which of the two depends on the algorithm, in PyTorch too; both are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from candidates import AnyProblem, everything, in_format, in_forms, kept_by, operands, oracle, run

from fastconv.local_problem import LocalProblem
from fastconv.problem import PoolProblem

FORWARD, INPUT, WEIGHT = "forward", "backward_input", "backward_weight"
# Small, with padding, strides, dilation and groups; each in all forms.
CASES: list[tuple[str, tuple[str, ...], bool]] = [
    ("n2c6h9w10k19r3s3p1_bias", (FORWARD, INPUT, WEIGHT), False),
    ("n1c6h9w10k19r3s3p1u2_bias_relu", (FORWARD, INPUT, WEIGHT), False),
    ("n2c32h9w10k32r3s3p1_bias_leakyrelu", (FORWARD, INPUT, WEIGHT), False),
    ("n2c12h9w8k24r3s2p2d2g2_bias", (FORWARD, INPUT, WEIGHT), False),
    ("n2c6h9w10k6r3s3p1g6_relu6", (FORWARD, INPUT, WEIGHT), False),
    ("n2c32h5w4k32r1s1u2", (FORWARD, INPUT, WEIGHT), False),
    ("n1c6h8w10k19r3s3p1_relu_max2u2", (FORWARD,), False), ("n1c6h8w10k19r3s3p1_avg3u2p1", (FORWARD,), False),
    ("n1c6h8w10k19r3s3p1_lp2u2n2", (FORWARD,), False),
    ("n2c5h6w7k4r3s3p1u2_bias", (FORWARD, INPUT, WEIGHT), True), ("n2c5h6w7k4r3s2_bias", (FORWARD, INPUT), True),
    ("n2c17h11w12_max3u2p1_indices", (FORWARD,), False), ("n1c6h11w10_max2u2ceil", (FORWARD, INPUT), False),
    ("n1c6h11w13_max3u2p1", (FORWARD, INPUT), False), ("n1c5h12w13_max2u1d2_indices", (FORWARD,), False),
    ("n2c17h11w12_avg3u2p1", (FORWARD, INPUT), False), ("n1c6h9w10_avg3u1p1nopad", (FORWARD, INPUT), False),
    ("n2c17h8w8_avg8u8", (FORWARD, INPUT), False), ("n1c6h9w10_avg2u2ceil", (FORWARD, INPUT), False),
    ("n2c17h10w8_lp2u2n2", (FORWARD, INPUT), False), ("n1c6h9w8_lp3u2n3", (FORWARD, INPUT), False),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A problem whose operand `special` is not finite everywhere.

    Attributes
    ----------
    kept : tuple
        What a forward pooling has left to the gradient; `x` is its input.
    """

    problem: AnyProblem
    special: str
    arrays: dict[str, np.ndarray]
    kept: tuple = ()
    x: np.ndarray | None = None


def cases(selection: list[tuple[str, tuple[str, ...], bool]], seeds: int = 1) -> Iterator[Case]:
    """Every operand of every problem in turn, with special values in other places for each seed."""
    for descriptor, directions, local in selection:
        for problem in in_forms(descriptor, directions, local):
            for seed in range(seeds):
                yield from _of(problem, seed)


def _of(problem: AnyProblem, seed: int) -> Iterator[Case]:
    arrays, x, kept = operands(problem, seed), None, ()
    if "weight" in arrays:  # 0 * inf is NaN
        arrays["weight"][0] = 0
        arrays["weight"][:, :, 0, 0] = 0
    if isinstance(problem, PoolProblem) and problem.direction != FORWARD:
        x = in_format(np.random.default_rng(9).random(problem.in_shape).astype(problem.dtype), problem.memory_format)
        with np.errstate(all="ignore"):
            yield Case(problem, "input", arrays, kept_by(problem, with_specials(x, seed)), with_specials(x, seed))
            kept = kept_by(problem, x)
    for name, array in arrays.items():
        yield Case(problem, name, arrays | {name: with_specials(array, seed)}, kept, x)


def with_specials(array: np.ndarray, seed: int) -> np.ndarray:
    """A copy with NaN of both signs and infinities at the corners and here and there, and a plane of -inf."""
    array, random = array.copy(order="K"), np.random.default_rng(seed + 50)
    if array.ndim == 4 and min(array.shape[:2]) > 1:
        array[-1, 1] = -np.inf
    for place in random.choice(array.size, 4, replace=False):
        array[np.unravel_index(place, array.shape)] = random.choice([np.nan, -np.nan, np.inf, -np.inf])
    array[(0,) * array.ndim], array[(-1,) * array.ndim] = np.inf, np.nan
    return array


def kinds(array: np.ndarray) -> np.ndarray:
    """0 for a finite number, 1 for NaN, 2 and 3 for the infinities; integers as they are."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.isnan(array), 1, np.where(array == np.inf, 2, np.where(array == -np.inf, 3, 0)))


def allowed(case: Case) -> list[list[np.ndarray]]:
    """The kinds of the oracle, and those it finds with explicit zeros around the image, if they may differ."""
    with np.errstate(all="ignore"):
        expected = [oracle(case.problem, case.arrays, case.kept)]
        if case.special in _TOUCHED.get(case.problem.direction, ()) and not isinstance(case.problem, PoolProblem):
            expected.append(oracle(*_surrounded(case.problem, case.arrays)))
    return [[kinds(_rounded(a, case.problem.dtype)) for a in results] for results in expected]


_TOUCHED = {FORWARD: ("weight",), INPUT: ("weight",), WEIGHT: ("grad",)}  # what the padding is multiplied by


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return array if array.dtype.kind != "f" else array.astype(dtype)


def _surrounded(problem: AnyProblem, arrays: dict[str, np.ndarray]) -> tuple[AnyProblem, dict[str, np.ndarray]]:
    """The same problem with zeros in memory where it pads: around x, or around the gradient of the output."""
    conv = problem.conv if isinstance(problem, LocalProblem) else problem
    if problem.direction != INPUT:
        (top, bottom), (left, right) = conv.padding
        x = np.pad(arrays["x"], ((0, 0), (0, 0), *conv.padding))
        size = (conv.in_size[0] + top + bottom, conv.in_size[1] + left + right)
        changed, found = replace(conv, in_size=size, padding=((0, 0), (0, 0))), arrays | {"x": x}
    else:
        lines = [
            math.ceil((f - 1) * d / s) + 1 for f, d, s in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
        ]
        around = [(n, n) for n in lines]
        padding = tuple((b + n * s, e + n * s) for (b, e), n, s in zip(conv.padding, lines, conv.stride, strict=True))
        changed = replace(conv, padding=padding)
        found = {"grad": np.pad(arrays["grad"], ((0, 0), (0, 0), *around)), "weight": arrays["weight"]}
        if isinstance(problem, LocalProblem):
            found["weight"] = np.pad(arrays["weight"], ((0, 0),) * 4 + tuple(around))
    return (LocalProblem(changed) if isinstance(problem, LocalProblem) else changed), found


def wrong(case: Case, results: list[np.ndarray], expected: list[list[np.ndarray]]) -> int:
    """Elements of a result that are none of what is allowed."""
    return sum(
        int((~np.logical_or.reduce([kinds(result) == kind[n] for kind in expected])).sum())
        for n, result in enumerate(results)
    )


def disagreements(case: Case) -> dict[str, int]:
    """Candidates whose results are not allowed, with how many elements of them."""
    expected = allowed(case)
    with np.errstate(all="ignore"):
        results = {str(c): run(case.problem, c, case.arrays, 2, case.kept) for c in everything(case.problem)}
    found = {name: wrong(case, result, expected) for name, result in results.items()}
    return {name: count for name, count in found.items() if count}


def compare(selection: list[tuple[str, tuple[str, ...], bool]], twins: Any) -> dict[tuple[str, str, str], list[int]]:
    """For each (operation, special operand, algorithm): results, those as one of PyTorch's, and those not allowed.

    ``twins(case)`` has PyTorch's results by each of its algorithms; whether they all agree comes last.
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    for case in cases(selection):
        expected, theirs = allowed(case), [[kinds(array) for array in results] for results in twins(case)]
        agree = all(np.array_equal(a, b) for results in theirs for a, b in zip(results, theirs[0], strict=True))
        for candidate in everything(case.problem):
            with np.errstate(all="ignore"):
                results = run(case.problem, candidate, case.arrays, 2, case.kept)
            count = found.setdefault((case.problem.operation, case.special, candidate.algorithm), [0, 0, 0, 0])
            same = (all(np.array_equal(kinds(a), b) for a, b in zip(results, t, strict=True)) for t in theirs)
            count[0] += 1
            count[1] += any(same)
            count[2] += wrong(case, results, expected) > 0
            count[3] += not agree
    return found

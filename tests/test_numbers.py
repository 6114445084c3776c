"""NaN and infinities go where they should, and the same bits come out whatever the threads.

Cases and runs are those of `bench/trust_numbers.py`, which has more of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from crowds import run

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import nonfinite
from nonfinite import CASES, FORWARD, INPUT, WEIGHT

from fastconv import dispatch, networks

_BENCH = Path(__file__).parents[1] / "bench"
SHORT = [
    ("n2c6h9w10k19r3s3p1u2_bias_relu", (FORWARD, INPUT, WEIGHT), False),
    ("n2c6h9w10k6r3s3p1g6_relu6", (FORWARD, INPUT, WEIGHT), False),
    *[case for case in CASES if case[2] or "k" not in case[0].partition("_")[0]],
]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: f"{case[0]}{'-local' * case[2]}")
def test_special_values_of_every_candidate(case: tuple[str, tuple[str, ...], bool]) -> None:
    for found in nonfinite.cases([case]):
        assert nonfinite.disagreements(found) == {}, (found.problem.descriptor, found.special)


def test_a_wrong_kind_is_noticed() -> None:
    case = next(iter(nonfinite.cases(SHORT[:1])))
    (expected,) = (np.where(kind == 0, 1.0, np.nan) for kind in nonfinite.allowed(case)[0])
    assert nonfinite.wrong(case, [expected], nonfinite.allowed(case)) > 0, "infinities are not NaN"
    assert nonfinite.wrong(case, [np.ones_like(expected)], nonfinite.allowed(case)) > 0


def test_special_values_of_layers_are_those_of_torch() -> None:
    pytest.importorskip("torch")
    import nonfinite_layers

    assert {name: other for name, (_, other) in nonfinite_layers.different(0).items() if other} == {}


def test_the_same_bits_on_any_number_of_threads() -> None:
    runs = [(1, ()), (2, ()), (4, ()), (4, ("--limit", "2"))]
    found = [run(str(_BENCH / "bits.py"), "--short", *options, threads=threads) for threads, options in runs]
    first, *others = (json.loads(done.stdout.splitlines()[-1]) for done in found)
    assert len(first) > 200
    for (threads, options), other in zip(runs[1:], others, strict=True):
        assert {name: bits for name, bits in other.items() if first[name] != bits} == {}, (threads, options)


@pytest.mark.parametrize("direction", ["forward", "backward_input", "backward_weight"])
def test_without_wisdom_the_choice_does_not_depend_on_the_threads(direction: str) -> None:
    for layer in networks.problems("mobilenet_v2"):
        problem = layer if direction == "forward" else layer.without_epilogue(direction)
        one, *more = (dispatch.choose(problem, threads=threads).candidate for threads in (1, 2, 4, 16))
        assert all(candidate == one for candidate in more), problem.descriptor

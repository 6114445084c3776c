"""NaN and infinities go where they should, and the same bits come out whatever the threads.

Cases and runs are those of `bench/trust_numbers.py`, which has more of them.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from crowds import run
from support import FORMATS, as_format

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import nonfinite
from nonfinite import CASES, FORWARD, INPUT, WEIGHT

import fastconv
from fastconv import dispatch, networks
from fastconv.problem import MemoryFormat

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


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("channels", "kernel", "dtype"),
    [*((c, k, "float32") for c in (127, 128, 129, 2047, 2048, 2049, 4096, 4224, 6273) for k in (1, 3)),
     (100, 5, "float32"), (21, 11, "float32"), (2049, 3, "float64")],
)  # fmt: skip
def test_no_part_of_a_long_sum_is_lost(channels: int, kernel: int, dtype: str, memory_format: MemoryFormat) -> None:
    rng = np.random.default_rng(channels)
    x = rng.integers(-3, 4, (1, channels, kernel, kernel + 2)).astype(dtype)
    weight = rng.integers(-3, 4, (7, channels, kernel, kernel)).astype(dtype)
    bias = rng.integers(-3, 4, 7).astype(dtype)
    expected = bias.astype(int)[:, None, None] + products(x, weight)
    for algorithm in ("direct", "im2col", "tiled"):
        result = fastconv.conv2d(as_format(x, memory_format), weight, bias, algorithm=algorithm)
        np.testing.assert_array_equal(result[0], expected, algorithm)  # sums of small integers are exact


@pytest.mark.parametrize(
    ("algorithm", "memory_format"), [("direct", "channels_last"), *product(("im2col", "tiled"), FORMATS)]
)
def test_no_part_of_a_long_gradient_is_lost(algorithm: str, memory_format: MemoryFormat) -> None:
    rng = np.random.default_rng(0)
    x, gradient = (as_format(rng.integers(-3, 4, (1, c, 71, 73)).astype(np.float32), memory_format) for c in (32, 23))
    expected = np.einsum("chw,khw->kc", x[0].astype(int), gradient[0].astype(int))
    result = fastconv.grad.conv2d_weight(x, (23, 32, 1, 1), gradient, algorithm=algorithm)
    np.testing.assert_array_equal(result[:, :, 0, 0], expected)


def products(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The convolution of one image, in integers."""
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(int), weight.shape[2:], (1, 2))
    return np.einsum("chwrs,kcrs->khw", windows, weight.astype(int))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_long_sums_of_one_sign_round_little(memory_format: MemoryFormat) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.random(shape, dtype=np.float32) for shape in ((1, 100_000, 2, 2), (16, 100_000, 1, 1)))
    result = fastconv.conv2d(as_format(x, memory_format), weight, algorithm="direct")
    exact = np.einsum("chw,kc->khw", x[0].astype(float), weight[:, :, 0, 0].astype(float))
    # One long chain is off by 1e-4, chains of 128 by 1e-6.
    assert np.abs(result[0] / exact - 1).max() < 5e-7

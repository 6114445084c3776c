"""Every registered algorithm against the oracle, on every problem that it says it supports."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support import (
    FORMATS,
    GUARDS,
    POOL_PROBLEMS,
    PROBLEMS,
    as_format,
    assert_close,
    guarded,
    images,
    in_all_forms,
    make_arrays,
    poisoned,
    rows,
    spread,
    workspace_without_slack,
)

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, PoolProblem, Problem
from fastconv.reference import convolve, pooling

# Few enough to run every candidate of every algorithm on them.
SELECTION = [
    parse(text)
    for text in [
        "n2c5h9w7k17r3s3p1_bias_relu",
        "n1c70h6w11k150r3s3p1_bias",
        "n1c3h13w15k20r5s5p0.1.2.3u2_relu6",
        "n1c12h9w8k8r3s2p2d2g2_bias_leakyrelu",
        "n1c37h8w9k37r3s3p1g37_bias_relu",
        "n1c10h7w6k20r5s5p2u2g10",
        "n1c20h5w9k33r1s1_bias_relu",
        "n1c6h11w10k18r3s3p1_bias_relu_max3u2p1ceil",
        "n1c5h10w9k7r3s3p1_bias_avg2u2",
        "n1c9h9w8k6r3s3p1_relu_lp2u2n2",
        "n2c21h9w8k37r3s3p1_bias_relu_raw",
        "n1c20h6w9k70r1s1_raw",
        "n1c9h1w3k130r3s3p1",
        "n1c12h9w8k36r3s2p1g2_bias_max2u2_raw",
    ]
]
POOL_SELECTION = [
    parse(text)
    for text in [
        "n2c5h9w8_max3u2p1ceil_indices", "n1c37h8w7_max2u1d2", "n1c6h10w9_avg3u2p1nopad", "n1c33h7w9_avg2u2ceil",
        "n1c20h9w8_lp3u2n2ceil",
    ]
]  # fmt: skip
SPECIAL = [
    parse(text)
    for text in [
        "n1c6h9w10k19r3s3p1_bias", "n1c6h9w10k19r3s3p1u2_relu", "n1c6h9w10k19r3s3_leakyrelu",
        "n1c6h9w10k6r3s3p1g6_relu6", "n1c6h9w10k19r1s1_bias_relu", "n1c6h8w10k19r3s3p1_relu_max2u2",
        "n1c6h8w10k19r3s3p1_avg2u2",
    ]
]  # fmt: skip


@pytest.fixture(autouse=True)
def _guard_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cpu.kernel.workspace", workspace_without_slack)


@cache
def conv_case(problem: ConvProblem) -> tuple:
    """Input, weights, bias and the oracle's result."""
    x, weight, bias = make_arrays(problem)
    return x, weight, bias, convolve(problem, x, weight, bias)


@cache
def pool_case(problem: PoolProblem) -> tuple:
    """Input, and the oracle's values and indices; the numbers are rounded so that maxima occur twice."""
    x = images(problem)
    x = {"max": np.round, "avg": np.copy, "lp": np.abs}[problem.pool.mode](x)
    return x, *pooling(problem, x)


def best(problem: Problem, name: str) -> dict[str, int]:
    """The parameters that the cost model prefers."""
    return dict(algorithms.candidates(problem, name)[0].params)


def make(problem: Problem, name: str, params: dict[str, int], threads: int = 1):
    return algorithms.module(problem.operation, name).make(problem, params, threads)


def empty(problem: Problem, fill: float = np.nan, dtype: str | None = None) -> np.ndarray:
    return as_format(np.full(problem.out_shape, fill, dtype or problem.dtype), problem.memory_format)


def run_guarded(problem: ConvProblem, name: str, params: dict[str, int], threads: int, end: bool) -> np.ndarray:
    """Run with every array, the packed ones too, against a forbidden page; check and return the result."""
    x, weight, bias, expected = conv_case(problem)
    kernel = make(problem, name, params, threads)
    packed = kernel.pack(guarded(weight, end), None if bias is None else guarded(bias, end))
    packed = tuple(guarded(array, end) for array in packed)
    out = guarded(empty(problem), end)
    kernel.run(guarded(x, end), packed, out)
    assert_close(out, expected, problem)
    return out


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_batch_in_two_passes_goes_through_the_cache_in_parts(memory_format, small_l2) -> None:
    problem = replace(parse("n4c5h13w70k19r3s3p1_f32_nhwc_bias_relu_max3u2p1"), memory_format=memory_format)
    kernel, (x, *arrays) = make(problem, "two_pass", best(problem, "two_pass"), 2), make_arrays(problem)
    assert len(kernel.starts) == 2
    target = poisoned(problem.out_shape, problem.dtype, memory_format)
    kernel.run(guarded(x), kernel.pack(*arrays), target.array)
    assert_close(target.array, convolve(problem, x, *arrays), problem)
    target.check()


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(PROBLEMS)))
def test_convolution(problem: ConvProblem, name: str) -> None:
    params = best(problem, name)
    one = run_guarded(problem, name, params, threads=1, end=True)
    two = run_guarded(problem, name, params, threads=2, end=False)
    assert one.tobytes() == two.tobytes(), "the result depends on the number of threads"


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(SELECTION, every=1)))
def test_every_candidate_of_a_convolution(problem: ConvProblem, name: str) -> None:
    for params in algorithms.module("conv", name).space(problem):
        assert algorithms.module("conv", name).cost(problem, params) > 0
        one = run_guarded(problem, name, params, threads=1, end=True)
        two = run_guarded(problem, name, params, threads=2, end=True)
        assert one.tobytes() == two.tobytes(), params


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(PROBLEMS, every=len(PROBLEMS))))
def test_convolution_of_any_strides(problem: ConvProblem, name: str) -> None:
    x, weight, bias, expected = conv_case(problem)
    kernel = make(problem, name, best(problem, name))
    strided = None if bias is None else np.repeat(bias, 2)[::2]
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    kernel.run(spread(x, problem.memory_format), kernel.pack(as_format(weight, "channels_last"), strided), out.array)
    assert_close(out.array, expected, problem)
    out.check()


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(SELECTION, every=len(SELECTION))))
def test_convolution_between_memory_formats(problem: ConvProblem, name: str, result_format) -> None:
    x, weight, bias, expected = conv_case(problem)
    kernel = make(problem, name, best(problem, name), threads=2)
    packed = kernel.pack(weight, bias)
    for input_format in FORMATS:
        out = poisoned(problem.out_shape, problem.dtype, result_format)
        kernel.run(guarded(as_format(x, input_format)), packed, out.array)
        assert_close(out.array, expected, problem)
        out.check()


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(SPECIAL, every=len(SPECIAL))))
def test_nan_and_infinity_in_a_convolution(problem: ConvProblem, name: str) -> None:
    x, weight, bias, _ = conv_case(problem)
    x = x.copy(order="K")
    x[0, 0, 0, 0], x[0, 1, 4, 4], x[0, 2, -1, 5], x[0, 3, 6, -1] = np.nan, np.inf, -np.inf, np.inf
    kernel, out = make(problem, name, best(problem, name)), empty(problem, fill=7)
    kernel.run(x, kernel.pack(weight, bias), out)
    assert_close(out, convolve(problem, x, weight, bias), problem)


@pytest.mark.parametrize(("problem", "name"), rows(SELECTION))
def test_one_kernel_in_several_threads(problem: ConvProblem, name: str) -> None:
    _, weight, bias, _ = conv_case(problem)
    kernel = make(problem, name, best(problem, name), threads=2)
    packed = kernel.pack(weight, bias)

    def run(seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, out = images(problem, seed), empty(problem)
        kernel.run(x, packed, out)
        return out, convolve(problem, x, weight, bias)

    with ThreadPoolExecutor(4) as pool:
        for out, expected in pool.map(run, range(12)):
            assert_close(out, expected, problem)


def run_pool(problem: PoolProblem, name: str, params: dict[str, int], threads: int, end: bool) -> tuple:
    """Run with every array against a forbidden page; check and return values and indices."""
    x, expected, positions = pool_case(problem)
    out = guarded(empty(problem), end)
    indices = guarded(empty(problem, fill=-7, dtype="int64"), end) if problem.return_indices else None
    make(problem, name, params, threads).run(guarded(x, end), out, indices)
    assert_close(out, expected, problem)
    if indices is not None:
        np.testing.assert_array_equal(indices, positions)
    return out.tobytes(), None if indices is None else indices.tobytes()


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(POOL_PROBLEMS)))
def test_pooling(problem: PoolProblem, name: str) -> None:
    params = best(problem, name)
    one = run_pool(problem, name, params, threads=1, end=True)
    assert one == run_pool(problem, name, params, threads=2, end=False), "the result depends on the number of threads"


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(POOL_SELECTION, every=1)))
def test_every_candidate_of_a_pooling(problem: PoolProblem, name: str) -> None:
    for params in algorithms.module("pool", name).space(problem):
        assert algorithms.module("pool", name).cost(problem, params) > 0
        one = run_pool(problem, name, params, threads=1, end=True)
        assert one == run_pool(problem, name, params, threads=2, end=True), params


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(POOL_PROBLEMS, every=len(POOL_PROBLEMS))))
def test_pooling_of_any_strides(problem: PoolProblem, name: str) -> None:
    x, expected, positions = pool_case(problem)
    other = "contiguous" if problem.memory_format == "channels_last" else "channels_last"
    for result_format in (problem.memory_format, other):
        out = poisoned(problem.out_shape, problem.dtype, result_format)
        indices = poisoned(problem.out_shape, "int64", result_format)
        arrays = (out.array, indices.array) if problem.return_indices else (out.array, None)
        make(problem, name, best(problem, name)).run(spread(x, problem.memory_format), *arrays)
        assert_close(out.array, expected, problem)
        out.check()
        if problem.return_indices:
            np.testing.assert_array_equal(indices.array, positions)
            indices.check()


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(POOL_SELECTION, every=len(POOL_SELECTION))))
def test_nan_and_infinity_in_a_pooling(problem: PoolProblem, name: str) -> None:
    x = pool_case(problem)[0].copy(order="K")
    x[0, 0, 0, 0] = x[0, 1, 4, 4] = x[0, 1, 4, 5] = np.nan
    x[0, 2, 5, 5], x[0, 3] = np.inf, -np.inf
    values, positions = pooling(problem, x)
    out = empty(problem, fill=7)
    indices = empty(problem, dtype="int64", fill=-7) if problem.return_indices else None
    make(problem, name, best(problem, name)).run(x, out, indices)
    assert_close(out, values, problem)
    if indices is not None:
        np.testing.assert_array_equal(indices, positions)


@pytest.mark.parametrize("operation", ["conv", "pool"])
def test_every_algorithm_supports_something(operation: str) -> None:
    problems = in_all_forms(PROBLEMS if operation == "conv" else POOL_PROBLEMS)
    for name in algorithms.names(operation):
        unsupported = algorithms.module(operation, name).unsupported
        assert any(unsupported(problem) is None for problem in problems), name


@pytest.mark.parametrize("problem", [PROBLEMS[0], POOL_PROBLEMS[0]], ids=lambda p: p.operation)
def test_the_reference_comes_last(problem: Problem) -> None:
    assert algorithms.names(problem.operation)[-1] == "reference"
    everything = [c for name in algorithms.supporting(problem) for c in algorithms.candidates(problem, name)]
    assert max(everything, key=lambda c: algorithms.predicted_ns(problem, c)).algorithm == "reference"


@pytest.mark.skipif(not GUARDS, reason="pages can be protected on Linux and macOS only")
@pytest.mark.parametrize(("end", "step"), [(True, 1), (False, -1)])
def test_a_guard_page_stops_a_stray_access(end: bool, step: int) -> None:
    code = (
        "import ctypes, numpy as np\nfrom support import guarded\n"
        f"a = guarded(np.ones((1, 2, 3, 5), np.float32).transpose(0, 3, 1, 2), {end})\n"
        f"near = a.ctypes.data + ({4 * (30 - 1) if end else 0})\n"
        "print(ctypes.c_float.from_address(near).value, flush=True)\n"
        f"print(ctypes.c_float.from_address(near + 4 * ({step})).value, flush=True)\n"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1.0"], done.stderr
    assert done.returncode < 0


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_stray_write_is_noticed(memory_format) -> None:
    out = poisoned((2, 3, 4, 5), "float32", memory_format)
    out.array[...] = 1
    out.check()
    np.lib.stride_tricks.as_strided(out.array, (2, 3, 4, 6))[0, 0, 0, 5] = 0
    with pytest.raises(AssertionError, match="written outside"):
        out.check()

"""Locally-connected convolution and its gradients on the GPU, on small problems, against the float64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import FORMATS, as_format, guarded, poisoned, spread

from fastconv import algorithms, reference_local
from fastconv.descriptor import parse
from fastconv.local_problem import LocalProblem
from fastconv.problem import MemoryFormat

TEXTS = [
    "n1c1h3w4k1r3s3p1", "n2c2h4w3k3r3s2p1_bias", "n2c2h5w4k2r3s3p0.1.2.3u2.1_bias", "n1c3h6w5k2r2s3p1.2d2.1",
    "n1c2h7w3k2r3s3p3u3d2_bias", "n1c3h2w3k3r1s1p2", "n0c2h3w3k2r1s1_bias", "n3c2h2w3k2r2s2p3",
]  # fmt: skip
DIRECTIONS = ("forward", "backward_input", "backward_weight")
PROBLEMS = [
    LocalProblem(replace(parse(text), direction=d, bias="bias" in text and d == "forward", memory_format=f, dtype=t))
    for text, t in [*((text, "float32") for text in TEXTS), *((text, "float64") for text in TEXTS[1:3])]
    for d in DIRECTIONS
    for f in FORMATS
]


def rows(problems: list[LocalProblem]) -> list:
    """Each problem with each algorithm."""
    return [
        pytest.param(p, name, id=f"{name}-{p.operation}-{p.descriptor}")
        for p in problems
        for name in algorithms.names(p.operation, "cuda")
    ]


def random_image(shape: tuple[int, ...], problem: LocalProblem, seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).standard_normal(shape)
    return as_format(image, problem.memory_format).astype(problem.dtype, order="K")


def case(problem: LocalProblem) -> tuple[tuple, np.ndarray]:
    """What a kernel runs on before its result, and the oracle's result."""
    x, grad = random_image(problem.in_shape, problem, 0), random_image(problem.out_shape, problem, 1)
    weight = np.random.default_rng(2).standard_normal(problem.weight_shape).astype(problem.dtype)
    bias = np.random.default_rng(3).standard_normal(problem.out_shape[1:]).astype(problem.dtype)
    if problem.direction == "forward":
        arguments = (x, weight, bias if problem.conv.bias else None)
        return arguments, reference_local.convolve(problem, *arguments)
    if problem.direction == "backward_input":
        return (grad, weight), reference_local.input_gradient(problem, grad, weight)
    return (x, grad), reference_local.weight_gradient(problem, x, grad)


def assert_close(actual: np.ndarray, expected: np.ndarray, problem: LocalProblem) -> None:
    """Rounding of a sum of as many products of order 1 as the longest of the three operations has."""
    length = max(math.prod(problem.weight_shape[:4]), problem.batch)
    bound = 4 * float(np.finfo(problem.dtype).eps) * length
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("problem", "name"), rows(PROBLEMS))
def test_kernel(problem: LocalProblem, name: str) -> None:
    arguments, expected = case(problem)
    if problem.direction == "backward_weight":  # six axes, without gaps: its end is guarded
        out = guarded(np.full(problem.weight_shape, np.nan, problem.dtype))
        make(problem, name).run(*map(sent, arguments), on_gpu(out))
        assert_close(out, expected, problem)
        return
    result = poisoned(expected.shape, problem.dtype, problem.memory_format)
    make(problem, name).run(*map(sent, arguments), on_gpu(result.array))
    assert_close(result.array, expected, problem)
    result.check()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_arrays_of_any_strides(direction: str, memory_format: MemoryFormat) -> None:
    conv = parse("n2c3h5w4k2r2s2p1u2.1_bias")
    problem = LocalProblem(replace(conv, direction=direction, bias=direction == "forward", memory_format=memory_format))
    arguments, expected = case(problem)
    kernel = make(problem, "reference")
    results = []
    # The second time all axes are in reverse order, weights and bias among them: another launch of the same kernel.
    for turned in (False, True):
        inputs = [on_gpu(reversed_axes(a) if turned else gapped(a, memory_format)) for a in arguments]
        out = np.full(expected.shape, np.nan, problem.dtype)
        out = reversed_axes(out) if turned else gapped(out, memory_format)
        kernel.run(*inputs, on_gpu(out))
        assert_close(out, expected, problem)
        results.append(np.ascontiguousarray(out).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_threads_go_on_to_further_elements(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = LocalProblem(replace(parse("n2c2h6w6k2r2s2p1"), direction=direction))
    arguments, expected = case(problem)
    assert expected.size > 128  # the threads of a block
    for module in ("local", "local_backward"):
        monkeypatch.setattr(f"fastconv.cuda.{module}.blocks_for", lambda elements: (1,))
    out = np.full(expected.shape, np.nan, problem.dtype)
    make(problem, "reference").run(*map(sent, arguments), on_gpu(out))
    assert_close(out, expected, problem)


def reversed_axes(array: np.ndarray) -> np.ndarray:
    """A copy in which the first axis varies fastest."""
    return np.asfortranarray(array)


def gapped(array: np.ndarray, memory_format: MemoryFormat) -> np.ndarray:
    """A copy between NaN, so that no two axes can be merged."""
    if array.ndim == 4:
        return spread(array, memory_format)
    larger = np.full([size + 1 for size in array.shape], np.nan, array.dtype)
    window = larger[tuple(slice(size) for size in array.shape)]
    window[...] = array
    return window


def test_taps_in_the_padding_are_left_out() -> None:
    problem = LocalProblem(parse("n1c1h2w2k1r3s3p1"))
    (x, weight, _), _ = case(problem)
    weight[0, 0, 0, 0] = np.inf  # the corner tap, which is in the padding for all pixels but the last
    weight[0, 0, 0, 0, 1, 1] = np.nan
    out = poisoned(problem.out_shape, "float32", "contiguous")
    make(problem, "reference").run(sent(x), sent(weight), None, on_gpu(out.array))
    assert np.isfinite(out.array[0, 0].flat[:3]).all() and np.isnan(out.array[0, 0, 1, 1])

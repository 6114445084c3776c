"""Pooling and its gradient on the GPU, on small problems, against the float64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import FORMATS, as_format, assert_close, guarded, poisoned, spread
from test_mma import EPSILON, NAN, loaded, stored
from test_mma import sent as sent_bits

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import MemoryFormat, PoolProblem
from fastconv.reference import pooling
from fastconv.reference_backward import pool_input

TEXTS = [
    "n1c1h3w4_max2u2", "n2c3h5w6_max3u2p1_f64", "n1c5h5w4_max3u2ceil", "n1c2h6w5_max2u1d2", "n1c3h7w6_max3u2p1d2ceil",
    "n2c3h4w5_max3.2u2.1p1.0", "n1c2h1w7_max1.3u1.2p0.1", "n0c2h4w4_max2u2", "n1c2h3w3_max5u2p2", "n1c2h5w7_max2u3",
    "n1c2h2w3_max2u1p2d4",  # windows without a pixel
    "n1c1h3w4_avg2u2", "n2c3h5w6_avg3u2p1nopad_f64", "n1c5h5w4_avg3u2p1ceil", "n1c3h6w7_avg2u2p1ceilnopad",
    "n2c3h4w5_avg3.2u2.1p1.0", "n0c2h4w4_avg2u2", "n1c2h5w7_avg2u3ceil", "n1c3h4w3_avg4.3",
    "n1c2h4w5_lp2u2n2", "n2c3h5w6_lp3u2n2ceil_f64", "n1c2h4w7_lp2.3u1.2n3", "n1c3h5w4_lp2u1n1",
    "n1c2h5w4_lp2u3n2.5_f64",
]  # fmt: skip
PROBLEMS = [replace(parse(text), memory_format=form) for text in TEXTS for form in FORMATS]
SELECTION = [
    replace(parse(text), memory_format=form)
    for text in ["n2c3h5w4_max3u2p1ceil", "n2c3h5w4_avg3u2p1nopad", "n2c3h5w4_lp2u2n2ceil"]
    for form in FORMATS
]


def rows(problems: list[PoolProblem], direction: str = "forward") -> list:
    """Each problem with each algorithm that takes it in a direction."""
    turned = [replace(problem, direction=direction) for problem in problems]
    return [
        pytest.param(p, name, id=f"{name}-{p.descriptor}")
        for p in turned
        for name in algorithms.names(p.operation, "cuda")
        if algorithms.module(p.operation, name, "cuda").unsupported(p) is None
    ]


def image(problem: PoolProblem, special: bool = False) -> np.ndarray:
    """Integers below 1 for a maximum, many of them equal; else numbers that are not negative, some of them 0."""
    x = np.random.default_rng(3).integers(0, 5, problem.in_shape)
    x = x.astype(problem.dtype) * np.asarray(-1 if problem.pool.mode == "max" else 0.3, problem.dtype)
    if special:
        x[0, 0, 0, 0], x[0, 1, 2, 2], x[0, 2, 3, 3], x[1, 0] = np.nan, np.inf, -np.inf, 0
        x[1, 1] = -np.inf
        x[1, 2, 1, 1] = x[1, 2, 2, 1] = np.nan
    return as_format(x, problem.memory_format)


def saved_by(problem: PoolProblem, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the forward pass keeps for the backward pass."""
    values, indices = pooling(problem, x)
    kept = {"max": (indices,), "avg": (), "lp": (values.astype(x.dtype), x)}[problem.pool.mode]
    return tuple(as_format(array, problem.memory_format) for array in kept)


def gradient(problem: PoolProblem) -> np.ndarray:
    grad = np.random.default_rng(4).standard_normal(problem.out_shape).astype(problem.dtype)
    return as_format(grad, problem.memory_format)


def assert_gradient(actual: np.ndarray, expected: np.ndarray, problem: PoolProblem) -> None:
    """Rounding of a sum over the windows that cover a pixel; a power multiplies the error by its exponent."""
    pool = problem.pool
    windows = math.prod(-(-f // s) for f, s in zip(pool.kernel_size, pool.stride, strict=True))
    factor = 8 * (1 + pool.norm_type) if pool.mode == "lp" else 8
    bound = factor * float(np.finfo(problem.dtype).eps) * math.sqrt(windows + 1)
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("problem", "name"), rows(PROBLEMS))
def test_forward(problem: PoolProblem, name: str) -> None:
    x = image(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    make(problem, name).run(sent(x), on_gpu(out.array))
    assert_close(out.array, pooling(problem, x)[0], problem)
    out.check()


@pytest.mark.parametrize(("problem", "name"), rows([replace(p, return_indices=True) for p in PROBLEMS]))
def test_indices(problem: PoolProblem, name: str) -> None:
    x = image(problem)
    out = guarded(as_format(np.full(problem.out_shape, np.nan, problem.dtype), problem.memory_format))
    indices = poisoned(problem.out_shape, "int64", problem.memory_format)
    make(problem, name).run(sent(x), on_gpu(out), on_gpu(indices.array))
    values, expected = pooling(problem, x)
    np.testing.assert_array_equal(out, values)
    np.testing.assert_array_equal(indices.array, expected)
    indices.check()


@pytest.mark.parametrize(("problem", "name"), rows(PROBLEMS, "backward_input"))
def test_backward_input(problem: PoolProblem, name: str) -> None:
    grad, saved = gradient(problem), saved_by(problem, image(problem))
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    make(problem, name).run(sent(grad), on_gpu(out.array), *map(sent, saved))
    assert_gradient(out.array, pool_input(problem, grad, *saved), problem)
    out.check()


@pytest.mark.parametrize(("problem", "name"), rows(SELECTION))
def test_nan_and_infinity(problem: PoolProblem, name: str) -> None:
    problem = replace(problem, return_indices=problem.pool.mode == "max")
    x = image(problem, special=True)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    found = [np.empty(problem.out_shape, np.int64)] if problem.return_indices else []
    make(problem, name).run(sent(x), on_gpu(out.array), *map(on_gpu, found))
    values, indices = pooling(problem, x)
    assert_close(out.array, values, problem)
    if found:
        np.testing.assert_array_equal(found[0], indices)


@pytest.mark.parametrize(("problem", "name"), rows(SELECTION, "backward_input"))
def test_gradients_of_nan_and_infinity(problem: PoolProblem, name: str) -> None:
    saved, grad = saved_by(problem, image(problem, special=True)), gradient(problem)
    grad[1, 0, 0, 0], grad[0, 0, 1, 1] = np.nan, np.inf  # the norm of the first one is 0
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    make(problem, name).run(sent(grad), on_gpu(out.array), *map(sent, saved))
    assert_gradient(out.array, pool_input(problem, grad, *saved), problem)


@pytest.mark.parametrize("other", FORMATS)
@pytest.mark.parametrize(("problem", "name"), rows(SELECTION))
def test_arrays_of_any_strides(problem: PoolProblem, name: str, other: MemoryFormat) -> None:
    x = image(problem)
    results = [poisoned(problem.out_shape, problem.dtype, other)]
    if problem.pool.mode == "max":
        problem = replace(problem, return_indices=True)
        results.append(poisoned(problem.out_shape, "int64", problem.memory_format))
    make(problem, name).run(on_gpu(spread(x, problem.memory_format)), *(on_gpu(r.array) for r in results))
    for result, expected in zip(results, pooling(problem, x), strict=False):
        assert_close(result.array, expected, problem)
        result.check()


@pytest.mark.parametrize("other", FORMATS)
@pytest.mark.parametrize(("problem", "name"), rows(SELECTION, "backward_input"))
def test_gradients_of_any_strides(problem: PoolProblem, name: str, other: MemoryFormat) -> None:
    grad, saved = gradient(problem), saved_by(problem, image(problem))
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    kernel = make(problem, name)
    kernel.run(on_gpu(spread(grad, other)), on_gpu(out.array), *(on_gpu(np.asfortranarray(a)) for a in saved))
    assert_gradient(out.array, pool_input(problem, grad, *saved), problem)
    out.check()


@pytest.mark.parametrize("text", ["n2c9h4w5_avg2u1", "n2c9h4w5_avg2u1_dgrad"])
def test_threads_go_on_to_further_elements(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse(text)
    x, grad = image(problem), gradient(problem)
    forward = problem.direction == "forward"
    expected = pooling(problem, x)[0] if forward else pool_input(problem, grad)
    assert expected.size > 128  # the threads of a block
    kernel = make(problem, "reference")
    monkeypatch.setattr(f"{type(kernel).__module__}.blocks_for", lambda elements: (1,))
    out = poisoned(expected.shape, "float32", "contiguous")
    kernel.run(sent(x if forward else grad), on_gpu(out.array))
    assert_gradient(out.array, expected, problem)


def test_an_index_outside_of_its_window_passes_nothing_on() -> None:
    problem = parse("n1c1h2w4_max2u2_dgrad")
    indices = np.array([[[[2, 7]]]])  # the first is of the other window
    out = poisoned(problem.in_shape, "float32", "contiguous")
    make(problem, "reference").run(sent(np.ones((1, 1, 1, 2), np.float32)), on_gpu(out.array), sent(indices))
    np.testing.assert_array_equal(out.array, [[[[0, 0, 0, 0], [0, 0, 0, 1]]]])


def test_indices_that_do_not_fit_are_named() -> None:
    problem = parse("n1c1h4w4_max2u2")
    x, out = image(problem), on_gpu(np.zeros(problem.out_shape, np.float32))
    indices = np.zeros(problem.out_shape, np.int64)
    with pytest.raises(ValueError, match="indices given, but n1c1h4w4_max2u2_f32_nchw returns none"):
        make(problem, "reference").run(sent(x), out, sent(indices))
    kernel = make(replace(problem, return_indices=True), "reference")
    with pytest.raises(ValueError, match="returns indices: give an int64 array"):
        kernel.run(sent(x), out)
    for wrong in (indices.astype(np.float64), indices[..., :1]):
        with pytest.raises(ValueError, match=r"indices must be int64 of shape \(1, 1, 2, 2\), got"):
            kernel.run(sent(x), out, sent(wrong))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pool", ["max3u2p1", "avg3u2p1nopad", "lp2u2n2", "lp2u2n3"])
def test_elements_of_16_bits(pool: str, dtype: str) -> None:
    exact = parse(f"n2c3h5w4_{pool}")
    problem = replace(exact, dtype=dtype, device="cuda")
    x, grad = (loaded(stored(abs(a), dtype), dtype) for a in (image(exact), gradient(exact)))
    values, indices = pooling(exact, x)
    y = loaded(stored(values, dtype), dtype)
    out = filled(problem.out_shape)
    if problem.pool.mode == "max":
        found = np.full(problem.out_shape, -5, np.int64)
        make(replace(problem, return_indices=True), "reference").run(
            sent_bits(x, dtype), replace(on_gpu(out), dtype=dtype), on_gpu(found)
        )
        np.testing.assert_array_equal(found, indices)
        saved, kept = (on_gpu(found),), (indices,)
    else:
        make(problem, "reference").run(sent_bits(x, dtype), replace(on_gpu(out), dtype=dtype))
        saved, kept = ((sent_bits(y, dtype), sent_bits(x, dtype)), (y, x)) if problem.pool.mode == "lp" else ((), ())
    eps = EPSILON[dtype]
    np.testing.assert_allclose(loaded(out, dtype), values, rtol=eps, atol=eps)
    of_input = filled(problem.in_shape)
    backward = replace(problem, direction="backward_input")
    make(backward, "reference").run(sent_bits(grad, dtype), replace(on_gpu(of_input), dtype=dtype), *saved)
    expected = pool_input(replace(exact, direction="backward_input"), grad, *kept)
    np.testing.assert_allclose(loaded(of_input, dtype), expected, rtol=eps, atol=eps)


def filled(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for elements of 16 bits, all NaN, that ends at a forbidden page."""
    return guarded(np.full(shape, NAN[2], np.int16))

"""Batch normalisation on the GPU against float64 NumPy, and a training step against the layer on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator import on_gpu, sent
from support import FORMATS, Poisoned, as_format, poisoned, spread

from fastconv import nn
from fastconv.cuda import norm
from fastconv.cuda.channels import Pieces
from fastconv.problem import MemoryFormat

EPS = 1e-3
# Odd sizes, one pixel, one channel, more channels than lanes, more pixels than a block takes (see `test_pieces`).
SHAPES = [(2, 3, 5, 7), (3, 5, 1, 1), (2, 1, 2, 1), (5, 35, 3, 9), (2, 2, 45, 47)]
ALL = [(shape, form) for shape in SHAPES for form in FORMATS if (shape[1], form) != (35, "contiguous")]
CASES = [
    pytest.param(shape, form, dtype, id=f"{'x'.join(map(str, shape))}-{form}-{dtype}")
    for shape, form in ALL
    for dtype in ("float32", "float64")[: 1 + (shape == SHAPES[0])]
]
parametrize_cases = pytest.mark.parametrize(("shape", "form", "dtype"), CASES)


def image(shape: tuple[int, ...], form: MemoryFormat, dtype: str, seed: int = 0) -> np.ndarray:
    """Normally distributed around 2."""
    return as_format((np.random.default_rng(seed).standard_normal(shape) + 2).astype(dtype), form)


def vector(size: int, dtype: str, seed: int = 9) -> np.ndarray:
    """Between 1 and 2."""
    return (np.random.default_rng(seed).random(size) + 1).astype(dtype)


def poisoned_vector(size: int, dtype: str) -> Poisoned:
    whole = poisoned((1, 1, 1, size), dtype, "contiguous")
    return Poisoned(whole.array[0, 0, 0], whole.check)


def over(values: Any) -> np.ndarray:
    """A number for each channel, over images, in float64."""
    return np.asarray(values, np.float64)[:, None, None, None].transpose(1, 0, 2, 3)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = x.astype(np.float64)
    return wide.mean((0, 2, 3)), wide.var((0, 2, 3))


def assert_close(actual: np.ndarray, expected: np.ndarray, bound: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


def rounding(dtype: str, operations: float = 16) -> float:
    return operations * float(np.finfo(dtype).eps)


def test_pieces() -> None:
    found = {(shape, form): Pieces.of(shape, on_gpu(image(shape, form, "float32")).strides) for shape, form in ALL}
    # Lanes, threads for each, tiles, pieces, pixels of a piece.
    assert found[(5, 35, 3, 9), "channels_last"][4:9] == (32, 4, 2, 2, 128)
    assert found[(2, 2, 45, 47), "contiguous"][4:9] == (1, 128, 2, 2, 4096)
    assert found[(2, 2, 45, 47), "channels_last"][4:9] == (2, 64, 1, 3, 2048)
    assert found[(3, 5, 1, 1), "contiguous"].lanes == 8  # channels are nearest where there is one pixel


@parametrize_cases
def test_statistics(shape: tuple[int, ...], form: MemoryFormat, dtype: str) -> None:
    x = image(shape, form, dtype)
    result = "float64" if form == "contiguous" else "float32"
    mean, var = poisoned_vector(shape[1], result), poisoned_vector(shape[1], result)
    norm.statistics(sent(x), on_gpu(mean.array), on_gpu(var.array))
    for found, expected in zip((mean, var), moments(x), strict=True):
        assert_close(found.array, expected, rounding(result))
        found.check()


def test_statistics_far_from_zero() -> None:
    x = image((2, 3, 9, 7), "channels_last", "float64") + 1e8
    mean, var = np.empty(3), np.empty(3)
    norm.statistics(sent(x), on_gpu(mean), on_gpu(var))
    np.testing.assert_allclose(mean, 1e8 + (x - 1e8).mean((0, 2, 3)), rtol=1e-15)
    np.testing.assert_allclose(var, (x - 1e8).var((0, 2, 3)), rtol=1e-13)


def test_statistics_are_the_same_bits_in_every_run() -> None:
    x, found = image((2, 2, 45, 47), "channels_last", "float32"), set()
    for _ in range(2):
        results = np.empty((2, 2))
        norm.statistics(sent(x), *map(on_gpu, results))
        found.add(results.tobytes())
    assert len(found) == 1


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity_stay_in_their_channel() -> None:
    x = image((2, 4, 3, 3), "channels_last", "float32")
    x[0, 1, 2, 2], x[1, 2, 0, 0] = np.nan, np.inf
    mean, var, out = np.empty(4), np.empty(4), np.empty_like(x)
    norm.statistics(sent(x), on_gpu(mean), on_gpu(var))
    norm.normalize(sent(x), on_gpu(mean), on_gpu(var), None, None, on_gpu(out))
    assert np.isnan(mean[1]) and mean[2] == np.inf and np.isnan(var[1:3]).all()
    assert np.isnan(out[:, 1:3]).all() and np.isfinite(out[:, [0, 3]]).all()


@pytest.mark.parametrize(("dtype", "statistics"), [("float32", "float64"), ("float64", "float32")])
def test_update_running(dtype: str, statistics: str) -> None:
    mean, var = vector(50, statistics), vector(50, statistics, 8)
    running = poisoned((1, 1, 2, 50), dtype, "contiguous")
    running.array[0, 0] = vector(100, dtype, 7).reshape(2, 50)
    old = running.array[0, 0].astype(np.float64)
    norm.update_running(*map(on_gpu, running.array[0, 0]), sent(mean), sent(var), 0.3, 5)
    assert_close(
        running.array[0, 0], 0.7 * old + 0.3 * np.array([mean, 1.25 * var.astype(np.float64)]), rounding(dtype)
    )
    running.check()


@parametrize_cases
def test_normalize(shape: tuple[int, ...], form: MemoryFormat, dtype: str) -> None:
    x, out = image(shape, form, dtype), poisoned(shape, dtype, form)
    mean, var, weight, bias = (vector(shape[1], d, seed) for seed, d in enumerate(("float64", "float64", dtype, dtype)))
    norm.normalize(sent(x), sent(mean), sent(var), sent(weight), sent(bias), on_gpu(out.array), EPS)
    assert_close(out.array, (x - over(mean)) / np.sqrt(over(var) + EPS) * over(weight) + over(bias), rounding(dtype))
    out.check()


@pytest.mark.parametrize("given", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalize_without_some_vectors(given: tuple[int, int, int], dtype: str) -> None:
    x, var = image((1, 3, 2, 5), "contiguous", dtype), vector(3, "float32")
    mean, weight, bias = (vector(3, d) if g else None for g, d in zip(given, ("float32", dtype, dtype), strict=True))
    out = poisoned(x.shape, dtype, "channels_last")
    norm.normalize(sent(x), sent(mean), sent(var), sent(weight), sent(bias), on_gpu(out.array), EPS)
    distance = x - over(np.zeros(3) if mean is None else mean)
    factor = over(np.ones(3) if weight is None else weight) / np.sqrt(over(var) + EPS)
    assert_close(out.array, distance * factor + over(np.zeros(3) if bias is None else bias), rounding(dtype))
    out.check()


def expected_gradients(x: np.ndarray, grad: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Of the weight, bias and input, in float64."""
    mean, var = map(over, moments(x))
    inverse, pixels = 1 / np.sqrt(var + EPS), x.size // x.shape[1]
    normalized, wide = (x - mean) * inverse, grad.astype(np.float64)
    grad_weight, grad_bias = (wide * normalized).sum((0, 2, 3)), wide.sum((0, 2, 3))
    centered = wide - over(grad_bias) / pixels - normalized * over(grad_weight) / pixels
    return grad_weight, grad_bias, centered * inverse * (1 if weight is None else over(weight))


@parametrize_cases
def test_gradients(shape: tuple[int, ...], form: MemoryFormat, dtype: str) -> None:
    x, grad, weight = image(shape, form, dtype), image(shape, form, dtype, 1), vector(shape[1], dtype)
    mean, var = map(sent, moments(x))
    expected = expected_gradients(x, grad, weight)
    sums = [poisoned_vector(shape[1], "float64") for _ in range(2)]
    norm.parameter_gradients(sent(x), sent(grad), mean, var, *(on_gpu(s.array) for s in sums), EPS)
    out, (grad_weight, grad_bias) = poisoned(shape, dtype, form), (sent(s.array) for s in sums)
    norm.input_gradient(sent(x), sent(grad), mean, var, sent(weight), grad_weight, grad_bias, on_gpu(out.array), EPS)
    for found, exact, kind in zip((*sums, out), expected, ("float64", "float64", dtype), strict=True):
        # Products with a normalised pixel add up to less than there are pixels.
        assert_close(found.array, exact, rounding(kind) * (x.size // shape[1] if exact.ndim == 1 else 1))
        found.check()


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_of_any_strides(form: MemoryFormat) -> None:
    shape = (2, 3, 3, 7)
    x = spread(image(shape, form, "float32"), form)
    grad = np.broadcast_to(image((1, 3, 1, 1), form, "float32"), shape)
    out, sums, results = (
        np.asfortranarray(np.full(shape, np.nan, np.float32)),
        np.empty((2, 3), np.float32),
        np.empty((2, 3)),
    )
    norm.statistics(on_gpu(x), *map(on_gpu, results))
    assert_close(results, np.array(moments(x)), rounding("float64"))
    vectors = [on_gpu(v) for v in results]
    norm.normalize(on_gpu(x), *vectors, None, None, on_gpu(out), EPS)
    assert_close(out, (x - over(results[0])) / np.sqrt(over(results[1]) + EPS), rounding("float32"))
    norm.parameter_gradients(on_gpu(x), on_gpu(grad), *vectors, *map(on_gpu, sums), EPS)
    norm.input_gradient(on_gpu(x), on_gpu(grad), *vectors, None, *map(on_gpu, sums), on_gpu(out), EPS)
    grad_weight, grad_bias, expected = expected_gradients(x, grad, None)
    assert_close(sums, np.array([grad_weight, grad_bias]), rounding("float32"))
    assert_close(out, expected, rounding("float32"))


@pytest.mark.parametrize("form", FORMATS)
def test_training_step_is_that_of_the_layer(form: MemoryFormat) -> None:
    layer = nn.BatchNorm2d(3, eps=EPS, momentum=0.2, dtype="float64")
    layer.weight.value, layer.bias.value = vector(3, "float64", 1), vector(3, "float64", 2)
    running = [layer.running_mean.value.copy(), layer.running_var.value.copy()]
    weight, bias = on_gpu(layer.weight.value), on_gpu(layer.bias.value)
    x, grad = image((3, 3, 4, 5), form, "float64"), image((3, 3, 4, 5), form, "float64", 1)
    out, mean, var, grad_weight, grad_bias = np.empty_like(x), *np.empty((4, 3))
    gpu = [on_gpu(v) for v in (mean, var)]
    norm.statistics(on_gpu(x), *gpu)
    norm.update_running(*map(on_gpu, running), *gpu, 0.2, 60)
    norm.normalize(on_gpu(x), *gpu, weight, bias, on_gpu(out), EPS)
    bound = rounding("float64", 64)
    assert_close(out, layer(x), bound)
    assert_close(np.array(running), np.array([layer.running_mean.value, layer.running_var.value]), bound)
    sums = [on_gpu(v) for v in (grad_weight, grad_bias)]
    norm.parameter_gradients(on_gpu(x), on_gpu(grad), *gpu, *sums, EPS)
    norm.input_gradient(on_gpu(x), on_gpu(grad), *gpu, weight, *sums, on_gpu(out), EPS)
    assert_close(out, layer.backward(grad), bound)
    assert_close(grad_weight, layer.weight.grad, bound)
    assert_close(grad_bias, layer.bias.grad, bound)
    network = nn.Sequential(layer)
    layer.eval()  # constant statistics; the network around it records still
    network(x)
    norm.normalize(on_gpu(grad), None, on_gpu(running[1]), weight, None, on_gpu(out), EPS)
    assert_close(out, network.backward(grad), bound)


def test_no_images() -> None:
    x, sums = np.empty((0, 3, 4, 5), np.float32), np.full((2, 3), np.nan)
    ones = on_gpu(np.ones(3))
    norm.parameter_gradients(on_gpu(x), on_gpu(x), ones, ones, *map(on_gpu, sums))
    norm.normalize(on_gpu(x), ones, ones, None, None, on_gpu(x))
    assert not sums.any()


def test_errors() -> None:
    x, v = on_gpu(np.zeros((1, 3, 2, 2), np.float32)), on_gpu(np.zeros(3))
    with pytest.raises(ValueError, match=r"var must have shape \(3,\), got \(4,\)"):
        norm.statistics(x, v, on_gpu(np.zeros(4)))
    with pytest.raises(ValueError, match="mean must have stride 1, got 2"):
        norm.statistics(x, on_gpu(np.zeros(6)[::2]), v)
    with pytest.raises(TypeError, match="var must be float64, got float32"):
        norm.statistics(x, v, on_gpu(np.zeros(3, np.float32)))
    with pytest.raises(TypeError, match="weight must be float32, got float64"):
        norm.normalize(x, v, v, v, None, x)
    with pytest.raises(ValueError, match=r"out must have the shape of x, \(1, 3, 2, 2\), got \(1, 3, 2, 3\)"):
        norm.normalize(x, v, v, None, None, on_gpu(np.zeros((1, 3, 2, 3), np.float32)))
    with pytest.raises(TypeError, match="grad_output must have the dtype of x, float32, got float64"):
        norm.parameter_gradients(x, on_gpu(np.zeros((1, 3, 2, 2))), v, v, v, v)

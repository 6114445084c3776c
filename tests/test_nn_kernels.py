"""Elementwise kernels and sums over channels: exact formulas, strays, rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format, guarded, spread

from fastconv.arrays import memory_format
from fastconv.cpu import channels, elementwise

# Around the sizes of lanes and jobs: one pixel, odd maps, planes of several runs, several planes in one job.
SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (3, 1, 4, 4),
    (2, 130, 1, 3),
    (1, 17, 9, 1),
    (1, 2, 190, 191),
    (37, 64, 5, 5),
    (0, 3, 4, 4),
]
DTYPES = ["float32", "float64"]
images = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
formats = pytest.mark.parametrize("format", FORMATS)


def random(shape: tuple[int, ...], dtype: str, format: Any, seed: int = 0) -> np.ndarray:
    """Normally distributed, up against a page that must not be read."""
    return guarded(as_format(np.random.default_rng(seed).standard_normal(shape).astype(dtype), format))


@pytest.fixture
def _guarded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of NaN that end at a page that must not be written."""
    for module in (elementwise, channels):
        monkeypatch.setattr(module, "aligned", lambda shape, dtype: guarded(np.full(shape, np.nan, dtype)))


FUNCTIONS = {
    "relu": (elementwise.relu, lambda x: np.where(x < 0, 0, x)),
    "relu_backward": (elementwise.relu_backward, lambda y, g: np.where(y <= 0, 0, g)),
    "relu6": (lambda x: elementwise.relu6(3 * x), lambda x: np.clip(3 * x, 0, 6)),
    "relu6_backward": (
        lambda y, g: elementwise.relu6_backward(6 * y, g),
        lambda y, g: np.where((6 * y <= 0) | (6 * y >= 6), 0, g),
    ),
    "leaky_relu": (lambda x: elementwise.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, x.dtype.type(0.2) * x)),
    "leaky_relu_backward": (
        lambda x, g: elementwise.leaky_relu_backward(x, g, -0.3),
        lambda x, g: np.where(x > 0, g, x.dtype.type(-0.3) * g),
    ),
    "add": (elementwise.add, lambda a, b: a + b),
}


@images
@dtypes
@formats
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("_guarded_results")
def test_elementwise(name: str, format: Any, dtype: str, shape: tuple[int, ...]) -> None:
    function, formula = FUNCTIONS[name]
    arrays = [random(shape, dtype, format, seed) for seed in range(formula.__code__.co_argcount)]
    for array in arrays:
        array.flat[: array.size // 8] = 0
    result = function(*arrays)
    assert result.dtype == dtype
    assert memory_format(result) == memory_format(arrays[0])
    np.testing.assert_array_equal(result, formula(*arrays))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementwise_special_values(name: str) -> None:
    function, formula = FUNCTIONS[name]
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3.4e38, -3.4e38], np.float32)
    arrays = [special, special[::-1].copy()][: formula.__code__.co_argcount]
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(function(*arrays), formula(*arrays))


@formats
def test_elementwise_takes_any_strides_and_mixed_formats(format: Any) -> None:
    x, y = random((2, 5, 7, 3), "float32", format), random((2, 5, 7, 3), "float32", FORMATS[0], 1)
    for first in (x, spread(x, format), x[::-1, ::-1]):
        for second in (y, as_format(y, FORMATS[1]), spread(y, FORMATS[1])):
            result = elementwise.add(first, second)
            np.testing.assert_array_equal(result, first + second)
            assert memory_format(result) == format


def test_elementwise_names_what_does_not_fit() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"grad_output must have shape \(2, 3\), got \(3, 2\)"):
        elementwise.relu_backward(x, x.T)
    with pytest.raises(TypeError, match="b must have dtype float32, got float64"):
        elementwise.add(x, x.astype(np.float64))
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        elementwise.relu(np.arange(3))


@dtypes
@formats
@pytest.mark.usefixtures("_guarded_results")
def test_dropout_zeroes_a_share_and_scales_the_rest(format: Any, dtype: str) -> None:
    x = random((4, 30, 31, 33), dtype, format)
    result = elementwise.dropout(x, 0.3, 12345, format == "channels_last")
    kept = result != 0
    np.testing.assert_array_equal(result[kept], x[kept] * x.dtype.type(1 / 0.7))
    # Five standard deviations; neighbours in memory are independent.
    bound = 5 / np.sqrt(x.size)
    flat = elementwise.in_memory_order(kept, format == "channels_last").reshape(-1)
    assert abs(flat.mean() - 0.7) < bound * np.sqrt(0.21)
    for distance in (1, 2, 33, 1 << 15):
        assert abs(np.corrcoef(flat[distance:], flat[:-distance])[0, 1]) < bound * 1.2


def test_dropout_depends_on_the_seed_and_the_place_only() -> None:
    x, y = np.ones((2, 3, 40, 40), np.float32), np.full((2, 3, 40, 40), 2, np.float32)
    mask = elementwise.dropout(x, 0.5, 7, True)
    np.testing.assert_array_equal(elementwise.dropout(as_format(y, "channels_last"), 0.5, 7, True), 2 * mask)
    assert 0.45 < (elementwise.dropout(x, 0.5, 8, True) == mask).mean() < 0.55
    assert (elementwise.dropout(x, 0.0, 7, False) == 1).all()
    assert (elementwise.dropout(x, 1.0, 7, False) == 0).all()


def constants(count: int, channel_count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal(channel_count) for _ in range(count)]


def per_channel(values: list[np.ndarray]) -> list[np.ndarray]:
    return [v[:, None, None] for v in values]


@images
@dtypes
@formats
@pytest.mark.usefixtures("_guarded_results")
def test_channels(format: Any, dtype: str, shape: tuple[int, ...]) -> None:
    x, grad = random(shape, dtype, format), random(shape, dtype, format, 1)
    x64, grad64, axes = x.astype(np.float64), grad.astype(np.float64), (0, 2, 3)
    eps, size = np.finfo(dtype).eps, max(1, x[:, 0].size)
    np.testing.assert_allclose(channels.channel_sums(x), x64.sum(axes), rtol=eps, atol=1e-14 * size)
    if x.size:
        mean, var = channels.channel_moments(x)
        np.testing.assert_allclose(mean, x64.mean(axes), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(var, x64.var(axes), rtol=1e-12, atol=1e-14)
    values = constants(4, shape[1])
    m, scale, grad_scale, shift = per_channel(values)
    total, product = channels.channel_products(x, grad, values[0])
    np.testing.assert_allclose(total, grad64.sum(axes), rtol=1e-12, atol=1e-13 * size)
    np.testing.assert_allclose(product, (grad64 * (x64 - m)).sum(axes), rtol=1e-12, atol=1e-13 * size)
    bound = {"rtol": 0, "atol": 60 * eps}
    np.testing.assert_allclose(channels.normalize(x, *values[:3]), (x64 - m) * scale + grad_scale, **bound)
    expected = (x64 - m) * scale + grad64 * grad_scale + shift
    result = channels.normalize_backward(x, grad, *values)
    np.testing.assert_allclose(result, expected, **bound)
    assert result.dtype == dtype and memory_format(result) == memory_format(x)


@formats
def test_channels_take_any_strides_and_mixed_formats(format: Any) -> None:
    x, grad = random((2, 5, 7, 3), "float32", format), random((2, 5, 7, 3), "float32", FORMATS[0], 1)
    values = constants(4, 5)
    expected = channels.channel_products(x, grad, values[0]), channels.normalize_backward(x, grad, *values)
    for first, second in ((spread(x, format), as_format(grad, FORMATS[1])), (x, spread(grad, FORMATS[1]))):
        np.testing.assert_array_equal(channels.channel_products(first, second, values[0]), expected[0])
        np.testing.assert_array_equal(channels.normalize_backward(first, second, *values), expected[1])


@formats
def test_sums_do_not_lose_small_terms(format: Any) -> None:
    # A float32 accumulator would stop growing at 2**24, and mean(x**2) - mean(x)**2 would be off by 100 %.
    x = as_format(np.ones((2, 2, 3000, 3000), np.float32), format)
    assert channels.channel_sums(x).tolist() == [18e6, 18e6]
    rng = np.random.default_rng(3)
    x = as_format((10_000 + rng.standard_normal((4, 3, 100, 100))).astype(np.float32), format)
    mean, var = channels.channel_moments(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 2, 3)), rtol=1e-9)


@formats
def test_sums_of_nan_and_inf(format: Any) -> None:
    x = as_format(np.ones((2, 4, 3, 3), np.float32), format)
    x[0, 1, 1, 1], x[1, 2, 0, 2], x[0, 3, 0, 0], x[1, 3, 0, 0] = np.nan, np.inf, np.inf, -np.inf
    np.testing.assert_array_equal(channels.channel_sums(x), [18, np.nan, np.inf, np.nan])
    mean, var = channels.channel_moments(x)
    np.testing.assert_array_equal(mean, [1, np.nan, np.inf, np.nan])
    np.testing.assert_array_equal(var, [0, np.nan, np.nan, np.nan])

"""Pooling and its gradients on arrays of the simulated GPU: what users call, against the CPU's functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format

import fastconv
from fastconv.functional.gpu import arrays as shared
from fastconv.functional.gpu import pool as gpu
from fastconv.reference import pooling

FORWARD = {
    "max": lambda x, **rest: fastconv.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True, **rest),
    "avg": lambda x, **rest: fastconv.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False, **rest),
    "lp": lambda x, **rest: fastconv.lp_pool2d(x, 3.0, 2, (2, 1), ceil_mode=True, **rest),
    "global_avg": fastconv.global_avg_pool2d,
    "global_max": fastconv.global_max_pool2d,
}


def images(dtype: str = "float32") -> list[np.ndarray]:
    """The same numbers in both memory formats, with gaps between them, and one image without N; float64 in one way."""
    x = np.random.default_rng(0).integers(1, 6, (2, 3, 5, 7)).astype(dtype) * np.asarray(0.3, dtype)
    gaps = np.full((2, 6, 5, 15), np.nan, dtype)[:, ::2, :, 1::2]
    gaps[...] = x
    if dtype == "float64":
        return [gaps]
    return [x, as_format(x, "channels_last"), gaps, x[1], as_format(x, "channels_last")[1]]


def assert_same(actual: Any, expected: np.ndarray) -> None:
    assert isinstance(actual, FakeCUDAArray) and actual.dtype == expected.dtype
    eps = np.finfo(expected.dtype).eps if expected.dtype.kind == "f" else 0
    np.testing.assert_allclose(actual.copy_to_host(), expected, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    call = FORWARD[name]
    for dtype in ("float32", "float64"):
        for x in images(dtype):
            expected = call(x)
            result = call(FakeCUDAArray(x))
            assert_same(result, expected)
            assert result.strides == expected.strides or 1 in expected.shape
            out = FakeCUDAArray(np.full((*expected.shape, 2), np.nan, dtype)[..., 1])
            assert call(FakeCUDAArray(x), out=out, algorithm="reference") is out
            np.testing.assert_array_equal(out.copy_to_host(), result.copy_to_host())


@pytest.mark.parametrize("format", FORMATS)
def test_indices_and_values_of_nan(format: str) -> None:
    x = as_format(images()[0], format)
    x[0, 1, 2, 3] = x[0, 1, 3, 3] = np.nan
    for image in (x, x[0]):
        values, indices = FORWARD["max"](FakeCUDAArray(image), return_indices=True)
        expected, places = FORWARD["max"](image, return_indices=True)
        assert np.isnan(expected).any()
        assert_same(values, expected)
        assert_same(indices, places)
        assert indices.shape == values.shape and values.strides == expected.strides
        out = FakeCUDAArray(np.full(expected.shape, np.nan, "float32"))
        given, indices = FORWARD["max"](FakeCUDAArray(image), return_indices=True, out=out)
        assert given is out
        assert_same(out, expected)
        assert_same(indices, places)


def gradient_of(name: str, x: np.ndarray, send: Callable, **rest: Any) -> Any:
    """The gradient of a forward pass of the CPU, for arrays as `send` makes them."""
    y = FORWARD[name](x)
    grad = np.random.default_rng(1).standard_normal((*y.shape, 2)).astype(x.dtype)[..., 0]
    if name == "max":
        indices = FORWARD["max"](x, return_indices=True)[1]
        window = ((3, 2), (2, 1), (1, 0), (1, 2))
        return fastconv.grad.max_pool2d(send(grad), send(indices), x.shape, *window, ceil_mode=True, **rest)
    if name == "any max":
        indices = FORWARD["max"](x, return_indices=True)[1]
        return fastconv.grad.max_pool2d(send(grad), send(indices), x.shape, **rest)
    if name == "avg":
        options = {"ceil_mode": True, "count_include_pad": False}
        return fastconv.grad.avg_pool2d(send(grad), list(x.shape), 3, 2, 1, **options, **rest)
    return fastconv.grad.lp_pool2d(send(grad), send(x), send(y), 3.0, 2, (2, 1), ceil_mode=True, **rest)


FORWARD["any max"] = FORWARD["max"]


@pytest.mark.parametrize("name", ["max", "any max", "avg", "lp"])
def test_gradients(name: str) -> None:
    for dtype in ("float32", "float64"):
        for x in images(dtype):
            expected = gradient_of(name, x, np.asarray)
            result = gradient_of(name, x, FakeCUDAArray)
            assert_same(result, expected)
            out = FakeCUDAArray(np.full((*x.shape, 2), np.nan, dtype)[..., 1])
            assert gradient_of(name, x, FakeCUDAArray, out=out) is out
            np.testing.assert_array_equal(out.copy_to_host(), result.copy_to_host())


def test_indices_say_all_whatever_the_window_was() -> None:
    x = images()[0][:1, :1]
    for window in [(2, 1), (3, 2, 1), (4, 1, 1), (5, 5), (5, 3, 2), (2, 1, 1), (2, 2, 1, 3)]:
        values, indices = fastconv.max_pool2d(x, *window, return_indices=True)
        grad = np.arange(1, values.size + 1, dtype="float32").reshape(values.shape)
        result = fastconv.grad.max_pool2d(FakeCUDAArray(grad), FakeCUDAArray(indices), x.shape)
        expected = np.bincount(indices.ravel(), grad.ravel(), x.size).reshape(x.shape)
        np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-6)


def test_a_known_call_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = FakeCUDAArray(images()[0])
    first = fastconv.avg_pool2d(x, 2, 1)
    monkeypatch.setattr(shared, "kernel_for", None)
    assert_same(fastconv.avg_pool2d(x, 2, 1), first.copy_to_host())
    expected, _ = pooling(fastconv.PoolProblem(2, 3, (5, 7), fastconv.Pool("avg", 2, 1)), images()[0])
    np.testing.assert_allclose(first.copy_to_host(), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        fastconv.avg_pool2d(x, 2, [1, 1])


def test_an_array_of_the_cpu_is_not_one_of_the_gpu() -> None:
    x = images()[0]
    for _ in range(2):
        assert isinstance(fastconv.max_pool2d(x, 2), np.ndarray)
        assert isinstance(fastconv.max_pool2d(FakeCUDAArray(x), 2), FakeCUDAArray)


def test_errors_name_the_argument() -> None:
    x = images()[0]
    values, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    gx, gv, gi = map(FakeCUDAArray, (x, values, indices))
    cases: list[tuple[Callable, type[Exception], str]] = [
        (lambda: fastconv.max_pool2d(FakeCUDAArray(x[0, 0]), 2), ValueError, "x must have 3 or 4 axes"),
        (lambda: fastconv.max_pool2d(FakeCUDAArray(x[..., ::-1]), 2), ValueError, "x must not have negative strides"),
        (lambda: fastconv.max_pool2d(FakeCUDAArray(x[:, :0]), 2), ValueError, "x must not have an empty axis"),
        (lambda: fastconv.avg_pool2d(FakeCUDAArray(x.astype("int32")), 2), TypeError, "x must be float32"),
        (lambda: fastconv.max_pool2d(gx, 9), ValueError, "more than the padded input"),
        (lambda: fastconv.max_pool2d(gx, 2, padding=2), ValueError, "padding must be at most half"),
        (lambda: fastconv.max_pool2d(gx, 2, algorithm="none"), ValueError, "none"),
        (lambda: fastconv.avg_pool2d(gx, 2, out=values), TypeError, "out must be on the GPU"),
        (lambda: fastconv.avg_pool2d(gx, 2, out=gi), TypeError, "out must be float32, .*got int64"),
        (lambda: fastconv.avg_pool2d(gx, 2, out=gx), ValueError, r"out must have shape \(2, 3, 2, 3\), got"),
        (lambda: fastconv.avg_pool2d(gx, 1, out=gx), ValueError, "out must not overlap"),
        (
            lambda: fastconv.avg_pool2d(gx, 2, out=FakeCUDAArray(values.astype("float64"))), TypeError,
            "out must have the dtype of the input, float32, got float64",
        ),
        (
            lambda: fastconv.grad.max_pool2d(gv, indices, x.shape), TypeError,
            "indices must be on the GPU, as the other arrays are, got ndarray",
        ),
        (lambda: fastconv.grad.max_pool2d(gv, gv, x.shape), TypeError, "indices must be int64, got float32"),
        (
            lambda: fastconv.grad.max_pool2d(gv, FakeCUDAArray(indices[:1]), x.shape), ValueError,
            r"indices must have the shape of grad_output, \(2, 3, 2, 3\), got",
        ),
        (lambda: fastconv.grad.max_pool2d(gv, gi, x.shape, stride=2), ValueError, "kernel_size must be given"),
        (lambda: fastconv.grad.max_pool2d(gv, gi, x.shape, 3), ValueError, "grad_output must have shape"),
        (lambda: fastconv.grad.max_pool2d(gv, gi, x.shape[1:], 2), ValueError, "input_size must have as many axes"),
        (lambda: fastconv.grad.max_pool2d(gv, gi, (2, 3, 0, 7)), ValueError, "more windows than input_size"),
        (lambda: fastconv.grad.max_pool2d(values, gi, x.shape), TypeError, "indices must be an int64 array"),
        (lambda: fastconv.grad.lp_pool2d(gv, x, gv, 2, 2), TypeError, "input must be on the GPU"),
        (
            lambda: fastconv.grad.lp_pool2d(gv, FakeCUDAArray(x.astype("float64")), gv, 2, 2), TypeError,
            "input must have the dtype of grad_output, float32, got float64",
        ),
        (lambda: fastconv.grad.lp_pool2d(gv, gx, gx, 2, 2), ValueError, "output must have the shape of grad_output"),
        (lambda: fastconv.grad.lp_pool2d(gv, FakeCUDAArray(x[0]), gv, 2, 2), ValueError, "input must have as many"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_arrays_of_other_gpus_and_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values, indices = fastconv.max_pool2d(images()[0], 2, return_indices=True)
    gv, gi = FakeCUDAArray(values), FakeCUDAArray(indices)
    real = gpu.as_device_array
    for field in ("device", "stream"):
        monkeypatch.setattr(gpu, "as_device_array", lambda *a, at=field, **rest: replace(real(*a, **rest), **{at: 5}))
        with pytest.raises(ValueError, match="indices must be on the GPU and the stream of grad_output"):
            fastconv.grad.max_pool2d(gv, gi, (2, 3, 5, 7), 2)


@pytest.mark.parametrize("format", FORMATS)
def test_elements_of_16_bits(format: str) -> None:
    x = as_format(images()[0].astype("float16"), format)
    given, exact = FakeCUDAArray(x), x.astype("float32")
    found, indices = fastconv.max_pool2d(given, 3, 2, 1, return_indices=True)
    values, expected = fastconv.max_pool2d(exact, 3, 2, 1, return_indices=True)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found.copy_to_host(), values.astype("float16"))
    np.testing.assert_array_equal(indices.copy_to_host(), expected)
    grad = fastconv.grad.max_pool2d(found, indices, x.shape, 3, 2, 1)
    np.testing.assert_allclose(grad.copy_to_host(), fastconv.grad.max_pool2d(values, expected, x.shape, 3, 2, 1), 1e-3)

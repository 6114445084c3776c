"""Locally-connected convolution and its gradients on arrays of the simulated GPU: what users call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format

import fastconv
from fastconv import grad as gradients

OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}


def case(dtype: str, format: str) -> tuple[np.ndarray, ...]:
    """An input, weights with gaps, a bias and a gradient of the output."""
    random = np.random.default_rng(0)
    x, weight, bias, grad = (
        random.standard_normal(shape).astype(dtype)
        for shape in ((2, 3, 5, 4), (2, 3, 2, 2, 3, 8), (2, 3, 4), (2, 2, 3, 4))
    )
    return as_format(x, format), weight[..., ::2], bias, as_format(grad, format)


def assert_same(actual: Any, expected: np.ndarray) -> None:
    assert isinstance(actual, FakeCUDAArray) and actual.dtype == expected.dtype
    assert actual.strides == expected.strides
    bound = 64 * np.finfo(expected.dtype).eps
    np.testing.assert_allclose(actual.copy_to_host(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_as_on_the_cpu(format: str, dtype: str) -> None:
    x, weight, bias, grad = case(dtype, format)

    def check(call: Callable, *hosts: np.ndarray) -> None:
        expected, given = call(*hosts), [FakeCUDAArray(host) for host in hosts]
        result = call(*given)
        assert_same(result, expected)
        out = FakeCUDAArray(np.full((*expected.shape, 2), np.nan, dtype)[..., 1])
        assert call(*given, out=out) is out
        np.testing.assert_array_equal(out.copy_to_host(), result.copy_to_host())

    def forward(*arrays: Any, **rest: Any) -> Any:
        return fastconv.locally_connected2d(*arrays, **OPTIONS, **rest)

    check(forward, x, weight, bias)
    check(forward, x[1], weight)
    for image, gradient in ((x, grad), (x[1], grad[1])):
        size = image.shape
        check(
            lambda w, g, size=size, **rest: gradients.locally_connected2d_input(size, w, g, **OPTIONS, **rest),
            weight, gradient,
        )  # fmt: skip
        check(
            lambda i, g, **rest: gradients.locally_connected2d_weight(i, list(weight.shape), g, **OPTIONS, **rest),
            image, gradient,
        )  # fmt: skip


def test_errors_name_the_argument() -> None:
    x, weight, bias, grad = case("float32", "contiguous")
    gx, gw, gb, gg = map(FakeCUDAArray, (x, weight, bias, grad))
    double = FakeCUDAArray(weight.astype("float64"))
    local, backward_input = fastconv.locally_connected2d, gradients.locally_connected2d_input
    backward_weight = gradients.locally_connected2d_weight
    fastconv.locally_connected2d(gx, gw, gb, **OPTIONS)  # a call that is known is checked too
    cases: list[tuple[Callable, type[Exception], str]] = [
        (lambda: local(gx, weight, **OPTIONS), TypeError, "weight must be on the GPU, as the other arrays are"),
        (lambda: local(x, gw, **OPTIONS), TypeError, "weight is on a GPU, .*; it must be on the CPU"),
        (lambda: local(gx, gx, **OPTIONS), ValueError, "weight must have 6 axes"),
        (lambda: local(gx, double, **OPTIONS), TypeError, "weight must have the dtype of x, float32, got float64"),
        (lambda: local(gx, gw), ValueError, "weight must have shape .*, its last two axes the size of the result"),
        (
            lambda: local(gx, gw, FakeCUDAArray(bias[..., :1]), **OPTIONS), ValueError,
            r"bias must have shape \(2, 3, 4\), one for each element",
        ),
        (lambda: local(gx, gw, out=gx, **OPTIONS), ValueError, r"out must have shape \(2, 2, 3, 4\), got"),
        (lambda: local(gx, gw, stride=0), ValueError, "stride"),
        (
            lambda: backward_input(x.shape, double, gg, **OPTIONS), TypeError,
            "weight must have the dtype of grad_output, float32, got float64",
        ),
        (lambda: backward_input(x.shape[1:], gw, gg, **OPTIONS), ValueError, "input_size must have as many axes"),
        (
            lambda: backward_input(x.shape, gw, FakeCUDAArray(grad[:, :1]), **OPTIONS), ValueError,
            "grad_output must have shape .* for an input of shape",
        ),
        (
            lambda: backward_weight(gx, weight.shape, FakeCUDAArray(grad[0]), **OPTIONS), ValueError,
            "grad_output must have as many axes as input",
        ),
        (lambda: backward_weight(gx, weight.shape, grad, **OPTIONS), TypeError, "grad_output must be on the GPU"),
        (lambda: backward_weight(gx, gw, gg, **OPTIONS), ValueError, "weight_size must be a shape of 6 axes"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()

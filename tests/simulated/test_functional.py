"""`fastconv.conv2d` and the gradients on arrays of the simulated GPU: results, kinds of arrays, and errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numba import cuda
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format

import fastconv
from fastconv.arrays import aligned
from fastconv.functional.gpu import conv as gpu


def arrays(format: str = "contiguous", batch: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An input, weights and a bias."""
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(s).astype("float32") for s in ((batch, 3, 5, 6), (4, 3, 3, 2), (4,)))
    return as_format(x, format), weight, bias


def sent(*hosts: np.ndarray) -> list:
    """The same memory as arrays of the GPU."""
    return [FakeCUDAArray(host) for host in hosts]


@pytest.mark.parametrize("format", FORMATS)
def test_conv2d(format: str) -> None:
    x, weight, bias = arrays(format)
    options = {"stride": (2, 1), "padding": 1, "activation": "relu", "algorithm": "reference"}
    result = fastconv.conv2d(*sent(x, weight, bias), **options)
    assert isinstance(result, FakeCUDAArray)
    expected = fastconv.conv2d(x, weight, bias, **options)
    np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-5)
    assert result.strides == expected.strides
    out = FakeCUDAArray(np.full(expected.shape, np.nan, "float32"))
    assert fastconv.conv2d(*sent(x, weight, bias), out=out, **options) is out
    np.testing.assert_array_equal(out.copy_to_host(), result.copy_to_host())


@pytest.mark.parametrize("format", FORMATS)
def test_results_that_take_vectors_of_filters_and_those_that_do_not(format: str) -> None:
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(shape).astype("float32") for shape in ((1, 2, 3, 5), (8, 2, 2, 2)))
    x = as_format(x, format)
    expected = fastconv.conv2d(x, weight, activation="relu")
    for first in (0, 1):  # whether the result begins at a multiple of 16 bytes
        memory = aligned(expected.size + 1, "float32")[first:]
        out = np.lib.stride_tricks.as_strided(memory, expected.shape, expected.strides)
        fastconv.conv2d(*sent(x, weight), activation="relu", algorithm="tiled", out=FakeCUDAArray(out))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_conv2d_of_one_image() -> None:
    x, weight, bias = arrays(batch=1)
    result = fastconv.conv2d(*sent(x[0], weight, bias))
    np.testing.assert_allclose(result.copy_to_host(), fastconv.conv2d(x[0], weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_gradients(format: str) -> None:
    x, weight, _ = arrays(format)
    grad = as_format(np.random.default_rng(1).standard_normal((2, 4, 5, 7)).astype("float32"), format)
    given, w, g = sent(x, weight, grad)
    result = fastconv.grad.conv2d_input(x.shape, w, g, padding=1)
    np.testing.assert_allclose(
        result.copy_to_host(), fastconv.grad.conv2d_input(x.shape, weight, grad, padding=1), rtol=1e-5, atol=1e-5
    )
    result = fastconv.grad.conv2d_weight(given, weight.shape, g, padding=1)
    expected = fastconv.grad.conv2d_weight(x, weight.shape, grad, padding=1)
    np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-4, atol=1e-4)


def test_transposed() -> None:
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(s).astype("float32") for s in ((1, 4, 3, 4), (4, 3, 3, 3), (3,)))
    result = fastconv.conv_transpose2d(*sent(x, weight, bias), stride=2, padding=1, output_padding=1)
    expected = fastconv.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-5)


def test_a_call_that_is_known_is_checked_too() -> None:
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(s).astype("float32") for s in ((1, 4, 3, 4), (4, 3, 2, 2), (3,)))
    gx, gw = sent(x, weight)
    fastconv.conv_transpose2d(gx, gw, FakeCUDAArray(bias))
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(2,\)"):
        fastconv.conv_transpose2d(gx, gw, FakeCUDAArray(bias[:2]))
    with pytest.raises(ValueError, match="groups must be a positive int"):
        fastconv.conv_transpose2d(gx, gw, groups=0)
    with pytest.raises(ValueError, match="grad_output must have as many axes as input"):
        fastconv.grad.conv2d_weight(gx, (2, 4, 1, 1), FakeCUDAArray(np.zeros((2, 3, 4), "float32")))
    shared = np.lib.stride_tricks.as_strided(np.zeros(8, "float32"), (1, 3, 4, 5), (4, 0, 0, 4))
    with pytest.raises(ValueError, match="out has elements that share memory"):
        fastconv.conv_transpose2d(gx, gw, out=FakeCUDAArray(shared))


def test_arrays_of_other_gpus_and_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = arrays()
    gx, gw = sent(x, weight)
    real = gpu.as_device_array
    for field in ("device", "stream"):
        monkeypatch.setattr(
            gpu, "as_device_array", lambda a, *rest, at=field: replace(real(a, *rest), **{at: 5 if a is gw else 0})
        )
        with pytest.raises(ValueError, match="weight must be on the GPU and the stream of x"):
            fastconv.conv2d(gx, gw)


def test_conv1d() -> None:
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(s).astype("float32") for s in ((2, 4, 14), (6, 2, 3), (6,)))
    x = x[..., ::2]
    options = {"stride": (2,), "padding": (1, 2), "groups": 2, "activation": "relu"}
    for signal in (x, x[0]):
        expected = fastconv.conv1d(signal, weight, bias, **options)
        result = fastconv.conv1d(*sent(signal, weight, bias), **options)
        np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-5)
        out = FakeCUDAArray(np.full((*expected.shape, 2), np.nan, "float32")[..., 0])
        assert fastconv.conv1d(*sent(signal, weight, bias), out=out, **options) is out
        np.testing.assert_array_equal(out.copy_to_host(), result.copy_to_host())
    with pytest.raises(ValueError, match=r"x must have 2 or 3 axes, got shape \(4,\)"):
        fastconv.conv1d(*sent(bias[:4], weight))
    with pytest.raises(ValueError, match=r"weight must have 3 axes, got shape \(6,\)"):
        fastconv.conv1d(*sent(x, bias))
    with pytest.raises(ValueError, match="x must not have an empty axis other than N"):
        fastconv.conv1d(*sent(x[:, :0], weight))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_gradient_of_the_bias(format: str, dtype: str) -> None:
    grad = as_format(np.random.default_rng(1).standard_normal((3, 5, 4, 3)).astype(dtype), format)
    for image in (grad, grad[0]):
        result = fastconv.grad.conv2d_bias(FakeCUDAArray(image))
        assert isinstance(result, FakeCUDAArray) and result.dtype == dtype
        np.testing.assert_allclose(result.copy_to_host(), fastconv.grad.conv2d_bias(image), rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError, match="grad_output must be float32 or float64, got int64"):
        fastconv.grad.conv2d_bias(FakeCUDAArray(np.ones((2, 3, 4), "int64")))


def test_functions_of_the_cpu_say_so() -> None:
    x, weight, _ = arrays()
    for call in (
        lambda: fastconv.im2col(*sent(x), 2),
        lambda: fastconv.conv2d(x, *sent(weight)),
    ):
        with pytest.raises(TypeError, match="is on a GPU, got FakeCUDAArray; it must be on the CPU"):
            call()
    with pytest.raises(TypeError, match="columns is on a GPU, got FakeCUDAArray; it must be on the CPU"):
        fastconv.col2im(FakeCUDAArray(x[0]), (4, 4), 1)


def test_a_descriptor_names_the_device() -> None:
    problem = fastconv.parse("n1c3h5w6k4r3s3p1_f32_nhwc_relu_cuda")
    assert problem.device == "cuda" and problem.descriptor == "n1c3h5w6k4r3s3p1_f32_nhwc_relu_cuda"


def test_errors_name_the_argument() -> None:
    x, weight, bias = arrays()
    gx, gw = sent(x, weight)
    with pytest.raises(TypeError, match="weight must be on the GPU, as the other arrays are, got ndarray"):
        fastconv.conv2d(gx, weight)
    with pytest.raises(TypeError, match="weight must have the dtype of x, float32, got float64"):
        fastconv.conv2d(gx, FakeCUDAArray(weight.astype("float64")))
    with pytest.raises(TypeError, match="x must be float32, float64, float16 or bfloat16, got int64"):
        fastconv.conv2d(cuda.to_device(np.ones((1, 1, 2, 2), int)), gw)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        fastconv.conv2d(gx, gw, FakeCUDAArray(bias[:3]))
    with pytest.raises(ValueError, match="x must not have negative strides"):
        fastconv.conv2d(FakeCUDAArray(x[..., ::-1]), gw)
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4, 3, 5\), got \(2, 4, 3, 4\)"):
        fastconv.conv2d(gx, gw, out=FakeCUDAArray(np.empty((2, 4, 3, 4), "float32")))
    with pytest.raises(ValueError, match="out must not overlap"):
        fastconv.conv2d(
            FakeCUDAArray(x[:, :1]), FakeCUDAArray(weight[:1, :1, :1, :1]), out=FakeCUDAArray(x[:, 1:2, :, :])
        )
    with pytest.raises(ValueError, match="x must not have an empty axis other than N"):
        fastconv.conv2d(FakeCUDAArray(x[:, :0]), gw)

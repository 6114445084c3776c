"""Depthwise convolution on a GPU with every strip, by vectors and by elements, against the float64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import FORMATS, as_format, assert_close, guarded, make_arrays, poisoned, spread
from test_mma import EPSILON, arrays, check, exact, loaded, result, stored
from test_mma import sent as sent_bits
from test_mma_gradients import given

from fastconv import algorithms
from fastconv.cuda.conv_kernel import DeviceKernel
from fastconv.descriptor import parse
from fastconv.reference import convolve
from fastconv.reference_backward import conv_input, conv_weight

TEXTS = [
    "n1c4h3w5k4r3s3p1g4_{}_bias_relu", "n2c8h5w7k8r3s3p1u2g8_{}", "n1c5h4w6k5r2s3p1d2.1g5_{}_bias_leakyrelu",
    "n1c4h5w6k8r3s3p0.1.2.3u2.1g4_{}_bias_relu6", "n1c12h3w3k12r5s5p2g12_{}_bias", "n1c4h2w3k4r2s2p5g4_{}_bias",
    "n0c4h3w3k4r1s1g4_{}", "n1c1h4w5k4r3s3p1_{}_bias", "n1c4h7w8k4r3s3p2u3.2d2.3g4_{}_bias",
    "n1c8h6w9k8r1s9p4u2.3g8_{}", "n2c4h5w9k4r2s7p0.1.3.2u1.2g4_{}_bias", "n1c3h5w5k6r1s1u2g3_{}",
]  # fmt: skip


@pytest.mark.parametrize("strip", [1, 2, 4])
@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", TEXTS)
def test_forward(text: str, form: str, strip: int) -> None:
    problem = parse(text.format(form))
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    given = as_format(x, problem.memory_format)
    make(problem, "depthwise", {"strip": strip}).convolve(
        on_gpu(guarded(given)), sent(weight), sent(bias), on_gpu(out.array)
    )
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()


@pytest.mark.parametrize("strip", [1, 4])
@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", TEXTS)
def test_backward_input(text: str, form: str, strip: int) -> None:
    problem = parse(text.format(form)).without_epilogue("backward_input")
    _, weight, _ = make_arrays(problem)
    grad = np.random.default_rng(1).standard_normal(problem.out_shape).astype(problem.dtype)
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    given = as_format(grad, problem.memory_format)
    make(problem, "depthwise", {"strip": strip}).convolve(on_gpu(guarded(given)), sent(weight), None, on_gpu(out.array))
    assert_close(out.array, conv_input(problem, grad, weight), problem)
    out.check()


@pytest.mark.parametrize(("form", "strip", "splits"), [("nchw", 2, 1), ("nhwc", 4, 3)])
@pytest.mark.parametrize("text", TEXTS)
def test_backward_weight(text: str, form: str, strip: int, splits: int) -> None:
    problem = parse(text.format(form)).without_epilogue("backward_weight")
    x, _, _ = make_arrays(problem)
    grad = np.random.default_rng(1).standard_normal(problem.out_shape).astype(problem.dtype)
    out = poisoned(problem.weight_shape, problem.dtype, "contiguous")
    arrays = (sent(as_format(a, problem.memory_format)) for a in (x, grad))
    make(problem, "depthwise", {"strip": strip, "splits": splits}).run(*arrays, on_gpu(out.array))
    assert_close(out.array, conv_weight(problem, x, grad), problem)
    out.check()


def test_a_transposed_convolution_starts_with_its_bias() -> None:
    problem = parse("n2c4h5w7k4r3s3p1u2g4_nhwc_bias_dgrad")
    _, weight, bias = make_arrays(problem)
    grad = np.random.default_rng(1).standard_normal(problem.out_shape).astype(problem.dtype)
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    make(problem, "depthwise").convolve(on_gpu(as_format(grad, problem.memory_format)), sent(weight), sent(bias),
                                        on_gpu(out.array))  # fmt: skip
    assert_close(out.array, conv_input(problem, grad, weight) + bias[:, None, None], problem)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_arrays_of_any_strides(memory_format: str) -> None:
    problem = parse("n2c4h3w5k4r3s3p1g4_nhwc_bias")
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, memory_format)
    kernel = make(problem, "depthwise")
    kernel.convolve(on_gpu(spread(x, memory_format)), sent(weight), sent(bias), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()


# Four channels by one load, where arrays are aligned, and single ones; strides, dilation, several filters of a channel.
HALVES = [
    ("n1c8h3w6k8r3s3p1g8_bf16_nhwc_bias_relu6", 4, "vector"),
    ("n2c4h4w5k4r3s2p0.1.2.2u2.1g4_f16_nhwc_bias", 2, "vector"),
    ("n1c4h3w4k4r1s9p4g4_bf16_nhwc_bias_relu", 4, "vector"), ("n1c5h4w6k5r3s3p1u2g5_bf16_nhwc", 2, "one"),
    ("n1c3h4w5k6r2s3p1d2.1g3_f16_nchw_bias_leakyrelu", 4, "one"),
]  # fmt: skip


def names(*kernels: DeviceKernel) -> set[str]:
    """Those of what was launched."""
    return {launch.kernel.name for kernel in kernels for launch in kernel._launches.values()}


def assert_forward(name: str, text: str, strip: int, access: str) -> None:
    """Compare a kernel with the oracle, and how it reads 16-bit elements with what is expected."""
    problem = parse(f"{text}_cuda")
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    kernel = make(problem, name, {"strip": strip})
    kernel.convolve(*(sent_bits(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)
    found = names(kernel)
    assert found and all(each.endswith(f"{access}_{problem.dtype}") for each in found)


def assert_backward_input(name: str, text: str, strip: int, access: str) -> None:
    """`assert_forward` of the gradient of the input."""
    problem = parse(f"{text}_cuda").without_epilogue("backward_input")
    _, weight, grad = given(problem)
    out, target = result(problem, problem.in_shape)
    kernel = make(problem, name, {"strip": strip})
    kernel.convolve(sent_bits(grad, problem.dtype), sent_bits(weight, problem.dtype), None, target)
    check(out, conv_input(exact(problem), grad, weight), problem)
    found = names(*kernel.kernels)
    assert found and all(each.endswith(f"{access}_{problem.dtype}") for each in found)
    assert kernel.workspace_bytes >= 4 * weight.size  # packed weights are float32


@pytest.mark.parametrize(("text", "strip", "access"), HALVES)
def test_forward_in_16_bits(text: str, strip: int, access: str) -> None:
    assert_forward("depthwise", text, strip, access)


@pytest.mark.parametrize(("text", "strip", "access"), HALVES)
def test_backward_input_in_16_bits(text: str, strip: int, access: str) -> None:
    assert_backward_input("depthwise", text, strip, access)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("text", "strip", "access"), HALVES)
def test_backward_weight_in_16_bits(text: str, strip: int, access: str, splits: int) -> None:
    problem = parse(f"{text}_cuda").without_epilogue("backward_weight")
    x, _, grad = given(problem)
    out, target = result(replace(problem, memory_format="contiguous"), problem.weight_shape)
    kernel = make(problem, "depthwise", {"strip": strip, "splits": splits})
    kernel.run(sent_bits(x, problem.dtype), sent_bits(grad, problem.dtype), target)
    bound = EPSILON[problem.dtype]
    np.testing.assert_allclose(loaded(out, problem.dtype), conv_weight(exact(problem), x, grad), rtol=bound, atol=bound)
    assert all(f"{access}_{problem.dtype}" in name for name in names(kernel))
    assert kernel.workspace_bytes == 4 * splits * math.prod(problem.weight_shape)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_halves_of_any_strides(memory_format: str) -> None:
    problem = parse("n2c4h3w5k4r3s3p1g4_f16_nhwc_bias_cuda")
    x, weight, bias = arrays(problem)
    out = poisoned(problem.out_shape, "int16", memory_format)
    with np.errstate(invalid="ignore"):  # NaN as bits
        gaps = spread(stored(np.ascontiguousarray(x), problem.dtype), memory_format)
    ends = (replace(on_gpu(a), dtype=problem.dtype) for a in (gaps, out.array))
    make(problem, "depthwise").convolve(next(ends), *(sent_bits(a, problem.dtype) for a in (weight, bias)), next(ends))
    check(np.ascontiguousarray(out.array), convolve(exact(problem), x, weight, bias), problem)
    out.check()


@pytest.mark.parametrize(("text", "why"), [
    ("n1c4h3w3k4r3s3g2", "one channel"), ("n1c4h3w3k4r3s3g4_f64", "float64"), ("n1c4h6w6k4r3s3g4_max2u2", "pool"),
])  # fmt: skip
def test_what_it_does_not_take(text: str, why: str) -> None:
    reason = algorithms.module("conv", "depthwise", "cuda").unsupported(parse(text))
    assert reason is not None and why in reason

"""Convolution of small groups on a GPU with every strip, by vectors and by elements, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import FORMATS, as_format, assert_close, guarded, make_arrays, poisoned, spread
from test_depthwise import assert_backward_input, assert_forward

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference import convolve
from fastconv.reference_backward import conv_input

TEXTS = [
    "n1c8h3w9k8r3s3p1g2_{}_bias_relu", "n2c16h4w5k8r3s3p1u2g2_{}", "n1c8h4w6k16r2s3p1d2.1g2_{}_bias_leakyrelu",
    "n1c12h5w6k12r3s3p0.1.2.3u2.1g3_{}_bias", "n1c8h3w5k8r1s9p4u1.3g2_{}", "n0c8h3w3k8r1s1g2_{}",
    "n1c24h3w4k24r1s1u2g3_{}", "n1c8h6w7k8r3s3p2u3.2d2.3g2_{}_bias", "n1c136h2w3k136r2s2g34_{}_bias",
]  # fmt: skip


@pytest.mark.parametrize(("form", "strip"), [("nchw", 2), ("nhwc", 4), ("nhwc", 8)])
@pytest.mark.parametrize("text", TEXTS)
def test_forward(text: str, form: str, strip: int) -> None:
    problem = parse(text.format(form))
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    given = guarded(as_format(x, problem.memory_format))
    make(problem, "grouped", {"strip": strip}).convolve(on_gpu(given), sent(weight), sent(bias), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()


def input_gradient(problem: ConvProblem, strip: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel computes, and what is right; a bias is that of a transposed convolution."""
    _, weight, bias = make_arrays(problem)
    grad = np.random.default_rng(1).standard_normal(problem.out_shape).astype(problem.dtype)
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    given = sent(as_format(grad, problem.memory_format))
    make(problem, "grouped", {"strip": strip}).convolve(given, sent(weight), sent(bias), on_gpu(out.array))
    expected = conv_input(problem, grad, weight)
    out.check()
    return out.array, expected if bias is None else expected + bias[:, None, None]


@pytest.mark.parametrize(("form", "strip"), [("nchw", 2), ("nhwc", 4)])
@pytest.mark.parametrize("text", TEXTS)
def test_backward_input(text: str, form: str, strip: int) -> None:
    problem = parse(text.format(form)).without_epilogue("backward_input")
    assert_close(*input_gradient(problem, strip), problem)


def test_a_transposed_convolution_starts_with_its_bias() -> None:
    problem = parse("n2c8h5w7k8r3s3p1u2g2_nhwc_bias_dgrad")
    assert_close(*input_gradient(problem, 4), problem)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_arrays_of_any_strides(memory_format: str) -> None:
    problem = parse("n2c8h3w5k8r3s3p1g2_nhwc_bias")
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, memory_format)
    kernel = make(problem, "grouped")
    kernel.convolve(on_gpu(spread(x, memory_format)), sent(weight), sent(bias), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()


# Four channels by one load, and one by one; strides, dilation, more filters than channels and fewer.
HALVES = [
    ("n1c8h3w6k8r3s3p1g2_bf16_nhwc_bias_relu", 4, "vector"), ("n2c16h4w5k8r3s2p1.0u2.1g2_f16_nhwc_bias", 2, "vector"),
    ("n1c8h3w4k16r2s3p1d2.1g2_f16_nchw_bias_leakyrelu", 2, "apart"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "strip", "access"), HALVES)
def test_forward_in_16_bits(text: str, strip: int, access: str) -> None:
    assert_forward("grouped", text, strip, access)


@pytest.mark.parametrize(("text", "strip", "access"), HALVES)
def test_backward_input_in_16_bits(text: str, strip: int, access: str) -> None:
    assert_backward_input("grouped", text, strip, access)


@pytest.mark.parametrize(("text", "why"), [
    ("n1c8h3w3k8r3s3", "groups"), ("n1c12h3w3k8r3s3g2", "multiples of 4"), ("n1c128h3w3k8r3s3g2", "up to 32"),
    ("n1c8h3w3k8r3s3g2_f64", "float64"), ("n1c8h6w6k8r3s3g2_max2u2", "pool"),
])  # fmt: skip
def test_what_it_does_not_take(text: str, why: str) -> None:
    reason = algorithms.module("conv", "grouped", "cuda").unsupported(parse(text))
    assert reason is not None and why in reason

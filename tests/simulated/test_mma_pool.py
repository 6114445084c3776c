"""Convolution and pooling in one pass on tensor cores: elements of 16 bits and TF32, each kind of pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator import make, on_gpu
from support import poisoned
from test_mma import EPSILON, arrays, exact, loaded, result, sent, stored

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference import convolve

# Images in more than one patch and patches in more than one tile, filters that fill no vector, groups, empty batches.
CASES = [
    ("n1c8h9w10k5r3s3p1_bf16_nhwc_bias_relu_max2u2", "mma_pool"),
    ("n3c8h5w7k8r3s2p1.2u2.1_f16_nhwc_bias_leakyrelu_max3u2p1ceil", "mma_pool"),
    ("n2c8h6w5k14r3s3p1g2_tf32_nhwc_avg3u2p1nopad", "mma_pool"),
    ("n1c3h8w9k9r1s1_f16_nchw_bias_lp3u2n3", "mma_pool"),
    ("n1c4h7w7k70r1s1_tf32_nchw_bias_relu_lp2u2n2", "mma_pool"),
    ("n1c8h13w9k3r1s1_bf16_nhwc_max3u2p2d2", "mma_pool"),
    ("n1c8h10w9k3r1s1_f16_nhwc_max8u8", "mma_pool"),
    ("n0c8h4w4k4r1s1_bf16_nhwc_max2u2", "mma_pool"),
    ("n1c8h12w17k8r1s1_tf32_nhwc_bias_relu6_max3u1p1", "wgmma_pool"),
    ("n2c8h6w5k32r3s3p1g2_f16_nhwc_bias_relu_avg3u2p1ceil", "wgmma_pool"),
    ("n1c3h9w8k11r2s2_bf16_nchw_bias_relu6_avg2u3", "wgmma_pool"),
    ("n1c72h4w5k4r1s1_bf16_nhwc_max1.5u2.1p0.2", "wgmma_pool"),
]  # fmt: skip


def check(actual: np.ndarray, expected: np.ndarray, problem: ConvProblem) -> None:
    """Sums in float32; elements of 16 bits are rounded once before the pooling and once after it."""
    bound = 2e-5 if problem.dtype == "float32" else 2 * EPSILON[problem.dtype]
    np.testing.assert_allclose(loaded(actual, problem.dtype), expected, rtol=bound, atol=bound)


def assert_pooled(text: str, name: str, params: dict[str, int] | None = None) -> tuple[Any, np.ndarray]:
    """Compare a kernel with the oracle; the kernel and its result."""
    problem = parse(f"{text}_cuda")
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    kernel = make(problem, name, params)
    kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)
    return kernel, out


@pytest.mark.parametrize(("text", "name"), CASES)
def test_forward(text: str, name: str) -> None:
    assert_pooled(text, name)


@pytest.mark.parametrize(("name", "params"), [
    ("mma_pool", {"pixels": 128, "filters": 128}),
    ("wgmma_pool", {"pixels": 128, "filters": 256, "stages": 4, "bulk": 1}),
])  # fmt: skip
def test_wide_tiles(name: str, params: dict[str, int]) -> None:
    kernel, _ = assert_pooled("n1c8h13w11k136r3s1_bf16_nhwc_bias_relu_max3u2p1", name, params)
    (launch,) = kernel._launches.values()
    assert launch.values[0].vectors and kernel.workspace_bytes == 0


@pytest.mark.parametrize("kind", ["tf32", "f16"])
def test_arrays_of_any_strides(kind: str) -> None:
    problem = parse(f"n2c8h7w6k8r3s1p1_{kind}_nhwc_bias_relu_max2u2_cuda")
    x, weight, bias = arrays(problem)
    bits = "float32" if kind == "tf32" else "int16"
    given, out = (poisoned(shape, bits, "channels_last") for shape in (problem.in_shape, problem.out_shape))
    given.array[...] = stored(np.ascontiguousarray(x), problem.dtype)
    image, target = (replace(on_gpu(a.array), dtype=problem.dtype) for a in (given, out))
    kernel = make(problem, "mma_pool")
    kernel.convolve(image, sent(weight, problem.dtype), sent(bias, problem.dtype), target)
    check(np.ascontiguousarray(out.array), convolve(exact(problem), x, weight, bias), problem)
    out.check()
    (launch,) = kernel._launches.values()
    assert not launch.values[0].vectors


def test_one_pass_gives_every_bit_of_two() -> None:
    text = "n1c8h6w7k16r3s3p1_bf16_nhwc_bias_relu_max3u2p1"
    _, fused = assert_pooled(text, "mma_pool")
    _, apart = assert_pooled(text, "two_pass")
    np.testing.assert_array_equal(fused, apart)


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_nan_and_infinity_pass_through(kind: str) -> None:
    problem = parse(f"n1c8h4w6k8r1s1_{kind}_nhwc_max2u2_cuda")
    x, weight, _ = arrays(problem)
    x[0, 0, 0, 0], x[0, 0, 1, 3], x[0, 1, 2, 4] = np.nan, np.inf, -np.inf
    out, target = result(problem, problem.out_shape)
    bits = sent(x, problem.dtype)
    if kind == "bf16":  # rounding makes no NaN of its own
        bits.owner._ary[0, 0, 0, 0] = 0x7FC0
    make(problem, "mma_pool").convolve(bits, sent(weight, problem.dtype), None, target)
    expected = convolve(exact(problem), x, weight, None)
    assert np.isnan(expected).any() and np.isinf(expected).any()
    check(out, expected, problem)


@pytest.mark.parametrize(("text", "why"), [
    ("n1c8h9w9k4r3s3_bf16", "no pooling"), ("n1c8h9w9k4r3s3_max2u2", "set_float32_precision"),
    ("n1c8h9w9k4r3s3_f64_max2u2", "float64"), ("n1c8h19w19k4r1s1_f16_max12u2", "window"),
    ("n1c8h9w9k4r1s1p30000_bf16_max1u1000", "pixels or more"),
])  # fmt: skip
def test_what_they_do_not_take(text: str, why: str) -> None:
    for name in ("mma_pool", "wgmma_pool"):
        reason = algorithms.module("conv", name, "cuda").unsupported(parse(f"{text}_cuda"))
        assert reason is not None and why in reason


def test_one_pass_is_predicted_to_be_faster() -> None:
    for kind in ("tf32", "bf16"):
        problem = parse(f"n32c64h224w224k64r3s3p1_{kind}_nhwc_bias_relu_max2u2_cuda")
        best = algorithms.candidates(problem)[0]
        assert best.algorithm in ("mma_pool", "wgmma_pool")

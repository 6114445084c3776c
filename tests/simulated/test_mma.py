"""Convolution on tensor cores, and the plain kernels for 16-bit elements, against the float64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu
from support import as_format, guarded, make_arrays, poisoned, spread
from test_ptx import bf16, tf32

from fastconv import algorithms
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.units import join_of, joined, tail_of
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, Problem
from fastconv.reference import convolve
from fastconv.reference_backward import conv_input, conv_weight

ROUNDED = {"float32": tf32, "bfloat16": bf16, "float16": lambda x: x.astype(np.float16).astype(np.float32)}
EPSILON = {"float32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}
NAN = {2: 0x7FFF, 4: np.nan}

TEXTS = [
    "n1c16h3w4k8r3s3p1_bias_relu", "n2c8h3w5k5r3s2p1_bias", "n1c32h4w4k72r1s1",
    "n1c16h5w6k24r3s3p0.1.2.3u2.1_bias_relu6",
    "n1c16h5w4k16r2s3p1d2.1g2_bias_leakyrelu", "n1c3h5w4k9r3s3p1_bias", "n1c10h4w3k4r3s1g2", "n3c8h1w3k65r1s3p0.1",
    "n1c2h3w4k4r2s2p5", "n0c8h3w3k8r1s1", "n1c8h9w8k8r1s1",
]  # fmt: skip

# Pixels that share units of 16 bytes: any stride and dilation along rows, one unit for all taps, groups, no images.
FEW_CHANNELS = [
    "n2c3h7w9k8r7s7p3u2_bf16_nhwc_bias_relu", "n1c3h5w6k8r3s3p1_bf16", "n1c1h9w11k5r5s7p2.3u1.3_tf32_nhwc",
    "n2c4h4w7k6r3s5p0.1.2.1d1.2g2_f16_nhwc", "n1c2h5w5k4r2s2p1u2.3_tf32", "n1c1h6w12k3r3s9p1_bf16_nhwc",
    "n1c4h3w8k4r1s3p0.2u1.2d1.3g4_bf16_nhwc_relu", "n0c3h5w5k4r3s3_bf16", "n1c1h3w3k2r2s2p4_f16",
]  # fmt: skip


def problems() -> list[ConvProblem]:
    """Each text in TF32 and in one of the types of 16 bits, on the GPU, memory formats by turns."""
    kinds = {"tf32": TEXTS, "f16": TEXTS[::2], "bf16": TEXTS[1::2]}
    found = [parse(f"{text}_{kind}_cuda") for kind, texts in kinds.items() for text in texts]
    return [replace(p, memory_format="contiguous" if i % 3 == 2 else "channels_last") for i, p in enumerate(found)]


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """Elements as they lie in memory: bits, if they have 16."""
    if dtype == "float32":
        return array.astype(np.float32)
    if dtype == "float16":
        return array.astype(np.float16).view(np.int16)
    return (bf16(array).view(np.uint32) >> 16).astype(np.uint16).view(np.int16)


def loaded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `stored`."""
    if dtype == "float32":
        return array
    if dtype == "float16":
        return array.view(np.float16).astype(np.float64)
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def sent(array: np.ndarray | None, dtype: str) -> DeviceArray | None:
    """A guarded copy of an array of real numbers, as elements of a dtype."""
    if array is None:
        return None
    bits = np.empty_like(array, np.float32 if dtype == "float32" else np.int16, subok=False)
    bits[...] = stored(np.ascontiguousarray(array), dtype)
    return replace(on_gpu(guarded(bits)), dtype=dtype)


def arrays(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Input, weights and bias whose values a dtype has, or TF32 has."""
    found = make_arrays(replace(problem, dtype="float32", precision="ieee", device="cpu"))
    rounded = ROUNDED[problem.dtype]
    x, weight, bias = (a if a is None else rounded(a).astype(np.float32) for a in found)
    return as_format(x, problem.memory_format), weight, bias


def check(actual: np.ndarray, expected: np.ndarray, problem: Problem) -> None:
    """Rounded once, after sums in float32."""
    eps = EPSILON[problem.dtype] if problem.dtype != "float32" else 2.0**-22
    bound = eps + 2.0**-22 * math.sqrt(math.prod(problem.weight_shape[1:]))
    np.testing.assert_allclose(loaded(actual, problem.dtype), expected, rtol=bound, atol=bound)


def result(problem: ConvProblem, shape: tuple[int, ...]) -> tuple[np.ndarray, DeviceArray]:
    """Memory for a result, filled with NaN, that ends at a forbidden page."""
    kind = np.float32 if problem.dtype == "float32" else np.int16
    bits = guarded(as_format(np.full(shape, NAN[np.dtype(kind).itemsize], kind), problem.memory_format))
    return bits, replace(on_gpu(bits), dtype=problem.dtype)


def exact(problem: ConvProblem) -> ConvProblem:
    """The problem as the oracle computes it."""
    return replace(problem, dtype="float64", device="cpu", precision="ieee")


@pytest.mark.parametrize("problem", problems(), ids=lambda p: p.descriptor)
def test_forward(problem: ConvProblem) -> None:
    x, weight, bias = arrays(problem)
    expected = convolve(exact(problem), x, weight, bias)
    for name in algorithms.supporting(problem):
        if name in ("mma", "reference"):
            out, target = result(problem, problem.out_shape)
            kernel = make(problem, name)
            kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
            check(out, expected, problem)


@pytest.mark.parametrize("text", FEW_CHANNELS)
def test_pixels_of_few_channels_share_units(text: str) -> None:
    problem = parse(f"{text}_cuda")
    whole = joined(problem)
    assert join_of(problem) and whole.out_shape == problem.out_shape
    assert math.prod(whole.kernel_size) < math.prod(problem.kernel_size)
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    make(problem, "mma").convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)


def test_others_have_units_of_their_own() -> None:
    for text in ("n1c8h3w9k8r3s3_bf16", "n1c3h9w9k8r3s1_bf16", "n1c3h9w9k8r3s3_tf32", "n1c5h9w9k8r3s3_f16"):
        problem = parse(f"{text}_cuda")
        assert join_of(problem) is None and joined(problem) is problem


def test_tensor_cores_take_all_but_what_they_say() -> None:
    assert all("mma" in algorithms.supporting(problem) for problem in problems())
    for text in ("n1c8h3w3k8r3s3_cuda", "n1c8h3w3k8r3s3_f64_cuda", "n1c8h6w6k8r3s3_bf16_max2_cuda"):
        assert "mma" not in algorithms.supporting(parse(text)), text


@pytest.mark.parametrize("params", [{"pixels": 128, "filters": 64}, {"pixels": 128, "filters": 128}], ids=str)
def test_every_tile(params: dict[str, int]) -> None:
    problem = parse("n1c8h9w15k72r3s2p1_bf16_nhwc_bias_cuda")
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    make(problem, "mma", params).convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)


@pytest.mark.parametrize("kind", ["tf32", "f16"])
def test_arrays_of_any_strides(kind: str) -> None:
    problem = parse(f"n2c8h3w4k6r3s3p1_{kind}_nhwc_bias_cuda")
    x, weight, bias = arrays(problem)
    dtype = "float32" if kind == "tf32" else "int16"
    out = poisoned(problem.out_shape, dtype, "channels_last")
    gaps = spread(x, "channels_last")
    bits = np.zeros_like(gaps, dtype)
    bits = spread(np.zeros(x.shape, np.float32), "channels_last") if kind == "tf32" else bits
    bits[...] = stored(np.ascontiguousarray(x), problem.dtype)
    kernel = make(problem, "mma")
    kernel.convolve(replace(on_gpu(bits), dtype=problem.dtype), sent(weight, problem.dtype), sent(bias, problem.dtype),
                    replace(on_gpu(out.array), dtype=problem.dtype))  # fmt: skip
    check(np.ascontiguousarray(out.array), convolve(exact(problem), x, weight, bias), problem)
    out.check()


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_nan_and_infinity_pass_through(kind: str) -> None:
    problem = parse(f"n1c8h4w4k8r1s1_{kind}_nhwc_relu_cuda")
    check_nan_and_infinity(problem)


def test_nan_and_infinity_stay_in_their_windows() -> None:
    problem = parse("n1c3h4w9k8r2s3p1u1.2_bf16_nhwc_cuda")
    assert tail_of(problem)
    check_nan_and_infinity(problem)


def check_nan_and_infinity(problem: ConvProblem) -> None:
    x, weight, _ = arrays(problem)
    x[0, 0, 0, 0], x[0, 0, 1, 1], x[0, 1, 2, 2] = np.nan, np.inf, -np.inf
    expected = convolve(exact(problem), x, weight, None)
    for name in algorithms.supporting(problem):
        out, target = result(problem, problem.out_shape)
        bits = sent(x, problem.dtype)
        if problem.dtype == "bfloat16":  # rounding makes no NaN of its own
            bits.owner._ary[0, 0, 0, 0] = 0x7FC0
        make(problem, name).convolve(bits, sent(weight, problem.dtype), None, target)
        found = loaded(out, problem.dtype)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("direction", ["backward_input", "backward_weight"])
def test_plain_gradients_of_16_bits(kind: str, direction: str) -> None:
    problem = parse(f"n2c3h5w4k5r3s2p1u2_{kind}_cuda").without_epilogue(direction)
    x, weight, _ = arrays(problem)
    grad = ROUNDED[problem.dtype](np.random.default_rng(1).standard_normal(problem.out_shape)).astype(np.float32)
    kernel = make(problem, "reference")
    if direction == "backward_input":
        out, target = result(problem, problem.in_shape)
        kernel.convolve(sent(grad, problem.dtype), sent(weight, problem.dtype), None, target)
        expected = conv_input(exact(problem), grad, weight)
    else:
        out, target = result(problem, problem.weight_shape)
        kernel.run(sent(x, problem.dtype), sent(grad, problem.dtype), target)
        expected = conv_weight(exact(problem), x, grad)
    bound = EPSILON[problem.dtype] * 4
    np.testing.assert_allclose(loaded(out, problem.dtype), expected, rtol=bound, atol=bound)

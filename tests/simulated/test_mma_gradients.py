"""Gradients of convolutions on tensor cores, against the float64 oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from simulator import make, on_gpu
from support import as_format, poisoned, spread
from test_mma import EPSILON, ROUNDED, arrays, check, exact, loaded, result, sent, stored

import fastconv
from fastconv import algorithms
from fastconv.cuda import mma_weight
from fastconv.cuda.weight_splits import share
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference_backward import conv_input, conv_weight


def given(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, weights and the gradient of the output, with values that the dtype has."""
    x, weight, _ = arrays(problem)
    grad = ROUNDED[problem.dtype](np.random.default_rng(1).standard_normal(problem.out_shape)).astype(np.float32)
    return x, weight, as_format(grad, problem.memory_format)


# Phases of one tap and of none, more stride than kernel, padding that is cropped, outputs that no pixel of a phase
# reads, blocks of filters, and groups and filters that are no whole units.
INPUTS = [
    ("n1c8h4w3k16r3s3p1_bf16_nhwc", "mma"), ("n2c8h5w3k8r3s2p1.0u2_f16_nhwc", "mma"),
    ("n1c4h3w5k8r2s1u1.3_tf32_nhwc", "mma wgmma"), ("n1c8h3w3k40r3s2p0.1.2.0d1.2_f16_nhwc", "mma"),
    ("n1c16h2w6k16r3s3p2.1u3.2d2.3g2_bf16_nhwc", "mma"), ("n1c8h1w3k96r1s2_bf16_nhwc", "mma wgmma"),
    ("n1c3h7w4k5r3s3p1u2_f16_nhwc", "mma"), ("n2c6h3w4k10r3s2p1g2_tf32_nhwc", "mma"),
    ("n1c8h4w3k8r3s1u2_bf16_nchw", "mma"), ("n1c68h1w2k8r1s1_tf32_nchw", "wgmma"),
    ("n0c8h3w3k8r1s1_bf16_nhwc", "mma wgmma"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), [(text, name) for text, names in INPUTS for name in names.split()])
def test_input_with_a_bias(text: str, name: str) -> None:
    problem = replace(parse(f"{text}_dgrad_cuda"), bias=True)
    assert {"mma", "wgmma"} <= set(algorithms.supporting(problem))
    _, weight, grad = given(problem)
    bias = ROUNDED[problem.dtype](np.random.default_rng(2).standard_normal(problem.in_channels))
    out, target = result(problem, problem.in_shape)
    make(problem, name).convolve(*(sent(a, problem.dtype) for a in (grad, weight, bias.astype(np.float32))), target)
    check(out, conv_input(exact(problem), grad, weight) + bias[:, None, None], problem)


@pytest.mark.parametrize("kind", ["tf32", "f16"])
def test_inputs_of_any_strides(kind: str) -> None:
    problem = parse(f"n2c8h3w4k6r3s2p1u2_{kind}_nhwc_dgrad_cuda")
    _, weight, grad = given(problem)
    dtype = "float32" if kind == "tf32" else "int16"
    out = poisoned(problem.in_shape, dtype, "channels_last")
    with np.errstate(invalid="ignore"):  # NaN as bits
        gaps = spread(stored(grad, problem.dtype), "channels_last")
    kernel = make(problem, "mma")
    ends = (replace(on_gpu(a), dtype=problem.dtype) for a in (gaps, out.array))
    kernel.convolve(next(ends), sent(weight, problem.dtype), None, next(ends))
    check(np.ascontiguousarray(out.array), conv_input(exact(problem), grad, weight), problem)
    out.check()


def test_one_copy_of_the_gradient_serves_all_phases() -> None:
    problem = parse("n2c8h6w5k6r3s3p1u2_f16_nhwc_dgrad_cuda")
    kernel = make(problem, "mma")
    packed = sum(phase.packer.size for _, phase in kernel.kernels)
    assert len(kernel.kernels) == 4 and kernel.workspace_bytes == 2 * (packed + 2 * 3 * 3 * 8)
    assert not any(phase.images.expected for _, phase in kernel.kernels)


# Tiles of both axes, images that a slice goes on to, a split that has nothing, taps of neighbouring columns, and groups
# whose channels and filters are no whole units.
WEIGHTS = [
    ("n1c8h1w4k72r1s2_bf16_nhwc", (64, 64, 1)), ("n2c8h7w5k16r2s1p1.0u2.1d1.2_f16_nhwc", (64, 64, 3)),
    ("n1c16h3w3k8r1s2p0.1.2.0u2_bf16_nchw", (64, 64, 1)), ("n2c6h5w5k10r2s2g2_f16_nhwc", (64, 64, 2)),
    ("n1c3h4w3k5r3s3p1_bf16_nchw", (64, 64, 1)), ("n0c8h3w3k8r1s1_f16_nhwc", (64, 64, 1)),
    ("n1c8h6w7k8r3s3p1_f16_nhwc", (64, 128, 1)), ("n1c24h1w5k8r1s3p0.1_f16_nhwc", (128, 64, 1)),
    ("n1c8h1w9k8r1s2_bf16_nhwc", (128, 128, 1)), ("n1c4h1w4k68r1s2_tf32_nhwc", (64, 64, 1)),
    ("n2c5h6w5k9r2s1p1.0u2.1d1.2_tf32_nhwc", (64, 64, 2)), ("n2c6h5w3k10r2s2g2_tf32_nchw", (64, 64, 1)),
    # Pixels that share units, of which the last tap leaves some, with gaps, and in groups.
    ("n1c3h7w9k8r7s7p3u2_bf16_nhwc", (64, 64, 1)), ("n1c1h5w9k5r3s5p1.2u1.3_tf32_nchw", (64, 64, 1)),
    ("n2c4h4w7k6r3s5p0.1.2.1d1.2g2_f16_nhwc", (64, 64, 2)), ("n0c1h3w5k4r1s3_bf16_nhwc", (64, 64, 1)),
    ("n1c8h4w6k68r3s3p1_tf32_nhwc", (128, 128, 1)), ("n0c4h3w3k4r1s1_tf32_nhwc", (64, 64, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "params"), WEIGHTS)
def test_weights(text: str, params: tuple[int, int, int]) -> None:
    problem = parse(f"{text}_wgrad_cuda")
    x, _, grad = given(problem)
    out, target = result(replace(problem, memory_format="contiguous"), problem.weight_shape)
    kernel = make(problem, "mma", dict(zip(("filters", "columns", "splits"), params, strict=True)))
    kernel.run(sent(x, problem.dtype), sent(grad, problem.dtype), target)
    eps = EPSILON[problem.dtype] if problem.dtype != "float32" else 0
    bound = eps + 2.0**-22 * max(1, problem.batch * math.prod(problem.conv_size))
    np.testing.assert_allclose(loaded(out, problem.dtype), conv_weight(exact(problem), x, grad), rtol=bound, atol=bound)


def test_float32_is_rounded_to_tf32_only_where_that_is_permitted() -> None:
    problem = parse("n1c4h5w5k8r2s2_nhwc_wgrad_cuda")
    generator, choose = np.random.default_rng(3), partial(fastconv.grad.conv2d_weight, algorithm="mma")
    x, grad = (
        as_format(generator.standard_normal(shape).astype(np.float32), "channels_last")
        for shape in (problem.in_shape, problem.out_shape)
    )
    given = FakeCUDAArray(x), problem.weight_shape, FakeCUDAArray(grad)
    with pytest.raises(ValueError, match="rounds float32 to TF32"):
        choose(*given)
    fastconv.set_float32_precision("tf32")
    try:
        found = choose(*given).copy_to_host()
    finally:
        fastconv.set_float32_precision("ieee")
    expected = conv_weight(exact(problem), *(ROUNDED["float32"](a).astype(np.float64) for a in (x, grad)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="rounds float32 to TF32"):
        choose(*given)


def test_weights_of_any_strides_are_the_same_in_every_run() -> None:
    problem, results = parse("n2c8h3w4k6r2s2_f16_nhwc_wgrad_cuda"), []
    x, _, grad = given(problem)
    kernel = make(problem, "mma", {"filters": 64, "columns": 64, "splits": 1})
    for _ in range(2):
        out = poisoned(problem.weight_shape, "int16", "channels_last")
        arrays = (sent(a, problem.dtype) for a in (np.ascontiguousarray(x), grad))  # one of them in another format
        kernel.run(*arrays, replace(on_gpu(out.array), dtype=problem.dtype))
        results.append(np.ascontiguousarray(out.array))
        out.check()
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(
        loaded(results[0], "float16"), conv_weight(exact(problem), x, grad), rtol=2e-3, atol=2e-3
    )


REFUSED = [
    ("n1c3h9w9k4r3s3_dgrad", "TF32"), ("n1c3h9w9k4r3s3_f64_dgrad", "float64"),
    ("n1c3h99w99k4r3s3u9_bf16_dgrad", "phases"), ("n1c3h99w99k4r33s3u2_bf16_dgrad", "rows"),
    ("n70000c8h64w64k1r3s3_bf16_dgrad", "2**30"), ("n6000c1h160w160k1r3s3p1_bf16_dgrad", "2**30"),
    ("n1c3h9w9k4r3s3_wgrad", "TF32"), ("n1c3h9w9k4r3s3_f64_wgrad", "float64"),
    ("n6000c1h160w160k1r3s3p1_bf16_wgrad", "2**30"), ("n1c65536h9w9k65536r3s3g65536_bf16_wgrad", "groups"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "word"), REFUSED)
def test_what_gradients_on_tensor_cores_refuse(text: str, word: str) -> None:
    reason = algorithms.unsupported(parse(f"{text}_cuda"), "mma")
    assert reason is not None and word in reason


@pytest.mark.parametrize(("kind", "depth"), [("bf16", 32), ("tf32", 16)])
@pytest.mark.parametrize("text", ["n32c64h56w56k64r3s3p1", "n32c3h224w224k64r7s7p3u2", "n1c512h7w7k512r3s3p1"])
def test_splits_of_weights_fill_a_gpu_and_none_is_empty(text: str, kind: str, depth: int) -> None:
    problem = parse(f"{text}_{kind}_wgrad_cuda")
    pixels = problem.batch * math.prod(problem.conv_size)
    for params in mma_weight.space(problem):
        own = share(problem, params["splits"], depth)
        assert own * (params["splits"] - 1) < pixels <= own * params["splits"]
        assert own >= 16 * depth or params["splits"] == 1
        assert mma_weight.cost(problem, params) > 0

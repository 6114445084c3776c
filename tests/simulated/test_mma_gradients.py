"""Gradients of convolutions on tensor cores, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu
from support import as_format, poisoned, spread
from test_mma import ROUNDED, arrays, check, exact, result, sent, stored

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference_backward import conv_input


def given(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, weights and the gradient of the output, with values that the dtype has."""
    x, weight, _ = arrays(problem)
    grad = ROUNDED[problem.dtype](np.random.default_rng(1).standard_normal(problem.out_shape)).astype(np.float32)
    return x, weight, as_format(grad, problem.memory_format)


# Phases of one tap and of none, more stride than kernel, padding that is cropped, outputs that no pixel of a phase
# reads, blocks of filters, and groups and filters that are no whole units.
INPUTS = [
    ("n1c8h4w3k16r3s3p1_bf16_nhwc", "mma wgmma"), ("n2c8h5w3k8r3s2p1.0u2_f16_nhwc", "mma wgmma"),
    ("n1c4h3w5k8r2s1u1.3_tf32_nhwc", "mma wgmma"), ("n1c8h3w3k64r3s2p0.1.2.0d1.2_f16_nhwc", "mma wgmma"),
    ("n1c16h2w6k16r3s3p2.1u3.2d2.3g2_bf16_nhwc", "mma wgmma"), ("n1c72h1w3k96r1s2_bf16_nhwc", "mma wgmma"),
    ("n1c3h7w4k5r3s3p1u2_f16_nhwc", "mma"), ("n2c6h3w4k10r3s2p1g2_tf32_nhwc", "wgmma"),
    ("n1c8h4w3k8r3s1u2_bf16_nchw", "mma"),
    ("n1c5h3w2k8r1s1_tf32_nchw", "wgmma"), ("n0c8h3w3k8r1s1_bf16_nhwc", "mma wgmma"),
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

"""Every convolution kernel of the GPU, on small problems, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import as_format, assert_close, make_arrays, poisoned, spread

from fastconv import algorithms
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference import convolve
from fastconv.reference_backward import conv_input, conv_weight

TEXTS = [
    "n1c1h3w4k1r3s3p1", "n2c3h5w4k5r3s2p1_bias_relu", "n1c4h5w6k6r3s3p0.1.2.3u2.1_bias_leakyrelu",
    "n1c6h6w5k4r2s3p1.2d2.1g2_bias_relu6", "n1c3h2w3k3r1s1p2_bias", "n2c5h3w4k5r3s3p1g5", "n1c2h7w3k3r3s3p3u3d2",
    "n0c2h3w3k2r1s1", "n1c2h4w5k3r2s2p5_bias", "n1c17h3w3k19r3s3p1_bias", "n1c3h5w4k4r3s3p1u2_f64_bias",
]  # fmt: skip
PROBLEMS = [parse(f"{text.replace('_', f'_{form}_', 1)}" if "_" in text else f"{text}_{form}")
            for text in TEXTS for form in ("nchw", "nhwc")]  # fmt: skip


def rows(direction: str) -> list:
    """Each problem with each algorithm that takes it in a direction."""
    found = []
    for problem in PROBLEMS:
        turned = problem if direction == "forward" else problem.without_epilogue(direction)
        for name in algorithms.names(turned.operation, "cuda"):
            if algorithms.module(turned.operation, name, "cuda").unsupported(turned) is None:
                found.append(pytest.param(turned, name, id=f"{name}-{turned.descriptor}"))
    return found


@pytest.mark.parametrize(("problem", "name"), rows("forward"))
def test_forward(problem: ConvProblem, name: str) -> None:
    x, weight, bias = make_arrays(problem)
    expected = convolve(problem, x, weight, bias)
    for params in algorithms.module("conv", name, "cuda").space(problem):
        out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
        make(problem, name, params).convolve(sent(x), sent(weight), sent(bias), on_gpu(out.array))
        assert_close(out.array, expected, problem)
        out.check()


@pytest.mark.parametrize(("problem", "name"), rows("backward_input"))
def test_backward_input(problem: ConvProblem, name: str) -> None:
    _, weight, _ = make_arrays(problem)
    grad = as_format(np.random.default_rng(1).standard_normal(problem.out_shape), problem.memory_format)
    grad = grad.astype(problem.dtype, order="K")
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    make(problem, name).convolve(sent(grad), sent(weight), None, on_gpu(out.array))
    assert_close(out.array, conv_input(problem, grad, weight), problem)
    out.check()


@pytest.mark.parametrize(("problem", "name"), rows("backward_weight"))
def test_backward_weight(problem: ConvProblem, name: str) -> None:
    x, _, _ = make_arrays(problem)
    grad = as_format(np.random.default_rng(1).standard_normal(problem.out_shape), problem.memory_format)
    grad = grad.astype(problem.dtype, order="K")
    out = poisoned(problem.weight_shape, problem.dtype, "contiguous")
    make(problem, name).run(sent(x), sent(grad), on_gpu(out.array))
    assert_close(out.array, conv_weight(problem, x, grad), problem)
    out.check()


@pytest.mark.parametrize(("problem", "name"), rows("forward")[::5])
def test_arrays_of_any_strides(problem: ConvProblem, name: str) -> None:
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    kernel = make(problem, name)
    kernel.convolve(on_gpu(spread(x, problem.memory_format)), sent(as_format(weight, "channels_last")), sent(bias),
                    on_gpu(out.array))  # fmt: skip
    assert_close(out.array, convolve(problem, x, weight, bias), problem)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "leaky_relu"])
def test_nan_and_infinity_pass_through(activation: str | None) -> None:
    problem = ConvProblem.create((1, 2, 4, 4), (2, 2, 1, 1), activation=activation)
    x, weight, _ = make_arrays(problem)
    x[0, 0, 0, 0], x[0, 0, 1, 1], x[0, 1, 2, 2] = np.nan, np.inf, -np.inf
    for name in algorithms.names("conv", "cuda"):
        out = poisoned(problem.out_shape, problem.dtype, "contiguous")
        make(problem, name).convolve(sent(x), sent(weight), None, on_gpu(out.array))
        np.testing.assert_allclose(out.array, convolve(problem, x, weight, None), rtol=1e-5)

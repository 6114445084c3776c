"""Every convolution kernel of the GPU, on small problems, against the float64 oracle."""

from __future__ import annotations

import math

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
    "n0c2h3w3k2r1s1", "n1c2h4w5k3r2s2p5_bias", "n1c5h3w3k19r3s3p1_bias", "n1c3h5w4k4r3s3p1u2_f64_bias",
    "n1c3h6w5k4r3s3p1_bias_relu_max3u2p1ceil", "n2c4h5w6k3r3s2p1_max2u1d2", "n1c2h7w6k3r3s3u2_bias_relu6_avg3u2p1nopad",
    "n1c4h5w6k6r3s3p1g2_leakyrelu_avg2u2p1ceil_f64", "n1c3h5w6k4r1s1_bias_relu_lp2u2n3",
    "n1c3h6w5k2r3s3_bias_lp3u2n2ceil",
]  # fmt: skip
PROBLEMS = [parse(f"{text.replace('_', f'_{form}_', 1)}" if "_" in text else f"{text}_{form}")
            for text in TEXTS for form in ("nchw", "nhwc")]  # fmt: skip


def rows(direction: str) -> list:
    """Each problem with each algorithm that takes it in a direction."""
    found = []
    for problem in PROBLEMS:
        if problem.pool and direction != "forward":
            continue  # the gradient of the pooling is another problem
        turned = problem if direction == "forward" else problem.without_epilogue(direction)
        found += [pytest.param(turned, name, id=f"{name}-{turned.descriptor}") for name in supporting(turned)]
    return found


def supporting(problem: ConvProblem) -> list[str]:
    """The GPU's algorithms that take a problem."""
    names = algorithms.names(problem.operation, "cuda")
    return [n for n in names if algorithms.module(problem.operation, n, "cuda").unsupported(problem) is None]


@pytest.mark.parametrize(("problem", "name"), rows("forward"))
def test_forward(problem: ConvProblem, name: str) -> None:
    x, weight, bias = make_arrays(problem)
    expected = convolve(problem, x, weight, bias)
    every = algorithms.module("conv", name, "cuda").space(problem)
    for params in every if problem.out_channels > 16 else every[-1:]:  # the last tile has fewest threads to simulate
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
    for name in supporting(problem):
        out = poisoned(problem.out_shape, problem.dtype, "contiguous")
        make(problem, name).convolve(sent(x), sent(weight), None, on_gpu(out.array))
        np.testing.assert_allclose(out.array, convolve(problem, x, weight, None), rtol=1e-5)


@pytest.mark.parametrize("pool", ["max2u2", "avg2u2", "lp2u2n2"])
def test_nan_and_infinity_pass_through_fused_pooling(pool: str) -> None:
    problem = parse(f"n1c2h4w4k2r1s1_relu_{pool}")
    x, weight, _ = make_arrays(problem)
    x[0, 0, 0, 0], x[0, 0, 1, 1], x[0, 1, 2, 2] = np.nan, np.inf, -np.inf
    for name in supporting(problem):
        out = poisoned(problem.out_shape, problem.dtype, "contiguous")
        make(problem, name).convolve(sent(x), sent(weight), None, on_gpu(out.array))
        np.testing.assert_allclose(out.array, convolve(problem, x, weight, None), rtol=1e-5)


@pytest.mark.parametrize("text", ["n2c4h4w5k9r1s1_bias", "n2c4h4w5k9r1s1_bias_relu_avg2u1"])
def test_threads_go_on_to_further_elements(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse(text)
    assert math.prod(problem.out_shape) > 128  # the threads of a block
    monkeypatch.setattr("fastconv.cuda.reference.blocks_for", lambda elements: (1,))
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, "contiguous")
    make(problem, "reference").convolve(sent(x), sent(weight), sent(bias), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)

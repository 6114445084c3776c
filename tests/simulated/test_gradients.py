"""What the implicit GEMMs of a convolution's gradients have of their own: phases, splits and copies of 16 bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import as_format, assert_close, make_arrays, poisoned, spread, tolerance

from fastconv.cuda import input_phases, tiled_weight
from fastconv.cuda.conv_kernel import check_reach
from fastconv.cuda.gemm import DEPTH
from fastconv.cuda.weight_splits import share
from fastconv.descriptor import parse
from fastconv.phases import split_axis
from fastconv.problem import ConvProblem
from fastconv.reference_backward import conv_input, conv_weight


def given(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, weights and the gradient of the output."""
    x, weight, _ = make_arrays(problem)
    grad = np.random.default_rng(1).standard_normal(problem.out_shape)
    return x, weight, as_format(grad, problem.memory_format).astype(problem.dtype, order="K")


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_every_pixel_and_tap_is_in_one_phase(kernel: int, stride: int, dilation: int, padding: int) -> None:
    size, out = 5, 3
    found = [
        (axis.start + i * axis.step, tap, axis.outputs[0] - axis.padding[0] + i + j * axis.dilation)
        for axis in split_axis(size, out, kernel, stride, (padding, 0), dilation)
        for i in range(axis.pixels)
        for j, tap in enumerate(axis.taps)
    ]
    expected = [
        (pixel, tap, (pixel + padding - tap * dilation) // stride)
        for pixel in range(size)
        for tap in range(kernel)
        if (pixel + padding - tap * dilation) % stride == 0
    ]
    read = [term for term in found if 0 <= term[2] < out]
    assert sorted(read) == [term for term in expected if 0 <= term[2] < out] and set(found) <= set(expected)


INPUTS = ["n1c3h5w7k4r1s2u2.3", "n1c4h7w5k3r3s2p2.1u3.2d2.3", "n2c4h6w5k6r3s3p0.2.2.0u2d3g2", "n1c70h2w3k3r2s1p1"]


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", INPUTS)
def test_input_gradients_with_a_bias(text: str, form: str) -> None:
    problem = replace(parse(f"{text}_{form}_dgrad"), bias=True)
    _, weight, grad = given(problem)
    bias = np.random.default_rng(2).standard_normal(problem.in_channels).astype(problem.dtype)
    out = poisoned(problem.in_shape, problem.dtype, problem.memory_format)
    arrays = on_gpu(spread(grad, problem.memory_format)), sent(as_format(weight, "channels_last")), sent(bias)
    make(problem, "tiled").convolve(*arrays, on_gpu(out.array))
    assert_close(out.array, conv_input(problem, grad, weight) + bias[:, None, None], problem)
    out.check()


def test_channels_of_input_gradients_are_written_four_at_a_time() -> None:
    problem = parse("n1c8h4w5k3r3s3p1u2_nhwc_dgrad")
    _, weight, grad = given(problem)
    out = as_format(np.full(problem.in_shape, np.nan, np.float32), "channels_last")
    kernel = make(problem, "tiled")
    kernel.convolve(sent(grad), sent(weight), None, on_gpu(out))
    assert_close(out, conv_input(problem, grad, weight), problem)
    assert all(launch.values[0].vectors for _, phase in kernel.kernels for launch in phase._launches.values())


# Many tiles of both axes, several images, the last split shorter than the others, and one that has nothing.
WEIGHTS = [
    ("n2c4h3w4k68r3s3p1", (64, 32, 2), "4x4"), ("n2c3h9w8k8r3s2p1.2u2.1d1.2", (64, 32, 2), "4x1"),
    ("n2c12h4w5k6r1s1", (64, 32, 5), "1x4"), ("n1c16h5w3k8r2s1p1g2", (64, 64, 1), "4x4"),
    ("n2c8h4w4k4r3s3p0.1.2.0", (128, 64, 2), "4x4"), ("n1c4h3w3k4r3s3p1", (64, 128, 4), "4x4"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize(("text", "numbers", "words"), WEIGHTS)
def test_weight_gradients_in_splits(text: str, numbers: tuple[int, int, int], words: str, form: str) -> None:
    problem, params = parse(f"{text}_{form}_wgrad"), dict(zip(("filters", "columns", "splits"), numbers, strict=True))
    x, _, grad = given(problem)
    out, expected = np.full(problem.weight_shape, np.nan, np.float32), conv_weight(problem, x, grad)
    kernel = make(problem, "tiled", params)
    kernel.run(sent(x), sent(grad), on_gpu(out))
    bound = tolerance(problem) * math.sqrt(problem.batch * math.prod(problem.conv_size))
    np.testing.assert_allclose(out, expected, rtol=bound, atol=bound)
    (launch,) = kernel._launches.values()
    assert launch.kernel.name.endswith(f"nhwc_{words}" if form == "nhwc" else "nchw_1x1")
    assert kernel.workspace_bytes == (4 * params["splits"] * expected.size if params["splits"] > 1 else 0)


def test_weight_gradients_are_the_same_in_every_run() -> None:
    problem, results = parse("n1c3h5w4k3r1s2_nhwc_wgrad"), []
    x, _, grad = given(problem)
    kernel = make(problem, "tiled", {"filters": 64, "columns": 32, "splits": 2})
    for _ in range(2):
        results.append(np.full(problem.weight_shape, np.nan, np.float32))
        kernel.run(sent(x), sent(grad), on_gpu(results[-1]))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("x_form", "grad_form"), [("contiguous", "channels_last"), ("channels_last", "channels_last")])
def test_weight_gradients_of_any_strides(x_form: Any, grad_form: Any, splits: int) -> None:
    problem = parse("n2c4h4w5k8r3s3p1u2_nhwc_wgrad")
    x, _, grad = given(problem)
    out = poisoned(problem.weight_shape, problem.dtype, "channels_last")
    arrays = on_gpu(spread(x, x_form)), on_gpu(spread(grad, grad_form))
    make(problem, "tiled", {"filters": 64, "columns": 32, "splits": splits}).run(*arrays, on_gpu(out.array))
    assert_close(out.array, conv_weight(problem, x, grad), problem)
    out.check()


SHAPES = ["n32c64h56w56k64r3s3p1", "n32c3h224w224k64r7s7p3u2", "n1c512h7w7k512r3s3p1", "n0c3h4w4k4r1s1"]


@pytest.mark.parametrize("text", SHAPES)
def test_splits_fill_a_gpu_and_none_is_empty(text: str) -> None:
    problem = parse(f"{text}_wgrad_cuda")
    pixels = problem.batch * math.prod(problem.conv_size)
    for params in tiled_weight.space(problem):
        own = share(problem, params["splits"], DEPTH)
        assert own * (params["splits"] - 1) < max(pixels, 1) and own * params["splits"] >= pixels
        assert own >= 128 or params["splits"] == 1
        assert tiled_weight.cost(problem, params) > 0


def test_what_the_implicit_gemms_refuse() -> None:
    for text, word in [("n1c3h9w9k4r3s3_f64_dgrad", "float64"), ("n1c3h99w99k4r3s3u9_dgrad", "phases"),
                       ("n1c3h99w99k4r33s3u2_dgrad", "rows"), ("n70000c3h128w128k4r3s3_dgrad", "2**30")]:  # fmt: skip
        assert word in input_phases.by_tiled.unsupported(parse(f"{text}_cuda"))
    for text, word in [("n1c3h9w9k4r3s3_f64_wgrad", "float64"), ("n1c65536h9w9k65536r3s3g65536_wgrad", "groups")]:
        assert word in tiled_weight.unsupported(parse(f"{text}_cuda"))
    assert tiled_weight.unsupported(parse("n1c3h99w99k4r33s3u2_wgrad_cuda")) is None
    check_reach((2, 3), (1 << 30, 1))
    with pytest.raises(ValueError, match="2\\*\\*31"):
        check_reach((3, 3), (1 << 30, 1))

"""Gradients of a convolution: every algorithm against the reference, and the reference against strangers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from support import (
    FORMATS,
    PROBLEMS,
    as_format,
    guarded,
    poisoned,
    rows,
    spread,
    workspace_without_slack,
)

import fastconv
from fastconv import algorithms, grad, reference, reference_backward
from fastconv.phases import phases, reached_phases
from fastconv.problem import ConvProblem


def gradients(direction: str, *, every: int = 1) -> list[ConvProblem]:
    """The convolutions of `PROBLEMS` as gradients, in both formats, and each fourth in float64 too."""
    plain = list(dict.fromkeys(p.without_epilogue(direction) for p in PROBLEMS))
    single = [replace(p, memory_format=f) for p in plain for f in FORMATS]
    double = [replace(p, memory_format=f, dtype="float64") for f in FORMATS for p in plain[::4]]
    return (single + double)[::every]


def normal(shape: tuple[int, ...], problem: ConvProblem, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(problem.dtype)


@cache
def case(problem: ConvProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernel reads, and what it should write."""
    grad = as_format(normal(problem.out_shape, problem, 1), problem.memory_format)
    if problem.direction == "backward_input":
        weight = normal(problem.weight_shape, problem, 2)
        return grad, weight, reference_backward.conv_input(problem, grad, weight)
    x = as_format(normal(problem.in_shape, problem, 0), problem.memory_format)
    return x, grad, reference_backward.conv_weight(problem, x, grad)


def terms(problem: ConvProblem) -> int:
    """How many products are summed for one element, at most."""
    if problem.direction == "backward_input":
        return problem.out_channels // problem.groups * math.prod(problem.kernel_size)
    return problem.batch * math.prod(problem.conv_size)


def assert_near(actual: np.ndarray, expected: np.ndarray, problem: ConvProblem) -> None:
    """Within the rounding of a sum of normally distributed products (see `support.tolerance`)."""
    bound = 4 * float(np.finfo(problem.dtype).eps) * math.sqrt(terms(problem) + 1)
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound * math.sqrt(terms(problem) + 1))


def compute(problem: ConvProblem, name: str, params: dict, arrays: tuple, out: np.ndarray, threads: int = 1) -> None:
    kernel = algorithms.module(problem.operation, name).make(problem, params, threads)
    if problem.direction == "backward_input":
        kernel.convolve(*arrays, None, out)
    else:
        kernel.run(*arrays, out)


@pytest.fixture(autouse=True)
def _guard_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cpu.kernel.workspace", workspace_without_slack)


@pytest.mark.parametrize(("problem", "name"), rows(gradients("backward_input") + gradients("backward_weight")))
def test_every_algorithm_against_the_reference(problem: ConvProblem, name: str) -> None:
    *arrays, expected = case(problem)
    space = algorithms.module(problem.operation, name).space(problem)
    turn = zlib.crc32(problem.descriptor.encode()) % 4  # every tile meets many problems, though not each of them all
    tiles = space[turn::4] or space[:1]
    for number, params in enumerate(tiles if problem.dtype == "float32" else tiles[:1]):
        end, format = bool(number % 2), problem.memory_format
        if problem.direction == "backward_input":
            out = poisoned(problem.in_shape, problem.dtype, format)
            compute(problem, name, params, [guarded(a, end) for a in arrays], out.array)
            out.check()
            assert_near(out.array, expected, problem)
        else:
            result = guarded(np.full(problem.weight_shape, np.nan, problem.dtype), end)
            compute(problem, name, params, [guarded(a, end) for a in arrays], result)
            assert_near(result, expected, problem)


@pytest.mark.parametrize(
    ("problem", "name"), rows(gradients("backward_input", every=9) + gradients("backward_weight", every=9))
)
def test_any_strides(problem: ConvProblem, name: str) -> None:
    first, second, expected = case(problem)
    params = algorithms.module(problem.operation, name).space(problem)[0]
    other = {"contiguous": "channels_last", "channels_last": "contiguous"}[problem.memory_format]
    arrays = (spread(first, problem.memory_format), as_format(second, other))
    if problem.direction == "backward_input":
        out = np.full(problem.in_shape, np.nan, problem.dtype)
    else:
        out = np.full((*problem.weight_shape[:3], 2 * problem.weight_shape[3]), np.nan, problem.dtype)[..., ::2]
    compute(problem, name, params, arrays, out)
    assert_near(out, expected, problem)


@pytest.mark.parametrize(
    ("problem", "name"), rows(gradients("backward_input", every=7) + gradients("backward_weight", every=7))
)
def test_the_same_bits_on_two_threads(problem: ConvProblem, name: str) -> None:
    *arrays, expected = case(problem)
    params = algorithms.module(problem.operation, name).space(problem)[-1]
    results = [np.full_like(expected, np.nan, problem.dtype) for _ in range(2)]
    for threads, out in enumerate(results, 1):
        compute(problem, name, params, arrays, out, threads)
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("problem", gradients("backward_input", every=5), ids=lambda p: p.descriptor)
def test_the_reference_is_the_transpose_of_the_convolution(problem: ConvProblem) -> None:
    """<conv(x, w), g> is linear in x and in w, with the gradients as coefficients."""
    p = replace(problem, dtype="float64")
    x, weight, grad = (normal(shape, p, s) for s, shape in enumerate((p.in_shape, p.weight_shape, p.out_shape)))
    value = np.vdot(reference.convolve(replace(p, direction="forward"), x, weight), grad)
    np.testing.assert_allclose(np.vdot(x, reference_backward.conv_input(p, grad, weight)), value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.vdot(weight, reference_backward.conv_weight(p, x, grad)), value, rtol=1e-9, atol=1e-9)


def symmetric(problems: list[ConvProblem]) -> list[ConvProblem]:
    return [p for p in problems if all(begin == end for begin, end in p.padding) and p.batch]


@pytest.mark.parametrize("problem", symmetric(gradients("backward_input", every=3)), ids=lambda p: p.descriptor)
def test_as_torch(problem: ConvProblem) -> None:
    torch = pytest.importorskip("torch")
    p = problem
    x, weight, grad = (normal(shape, p, s) for s, shape in enumerate((p.in_shape, p.weight_shape, p.out_shape)))
    x, grad = (as_format(a, p.memory_format) for a in (x, grad))
    options = (p.stride, tuple(begin for begin, _ in p.padding), p.dilation, p.groups)
    tensors = [torch.from_numpy(np.ascontiguousarray(a).astype(np.float64)) for a in (x, weight, grad)]
    expected = torch.nn.grad.conv2d_input(p.in_shape, tensors[1], tensors[2], *options).numpy()
    assert_near(fastconv.grad.conv2d_input(p.in_shape, weight, grad, *options), expected, p)
    expected = torch.nn.grad.conv2d_weight(tensors[0], p.weight_shape, tensors[2], *options).numpy()
    assert_near(
        fastconv.grad.conv2d_weight(x, p.weight_shape, grad, *options),
        expected,
        replace(p, direction="backward_weight"),
    )


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups", "dilation"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), ((3, 2), (0, 2), (2, 0), 2, 1), (2, 3, 1, 2, (1, 2)), (1, 2, 1, 1, 2)],
)
def test_transposed_convolution_as_torch(stride, padding, output_padding, groups, dilation) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.standard_normal((2, 6, 5, 7)),
        rng.standard_normal((6, 4, 3, 3)),
        rng.standard_normal(4 * groups),
    )
    options = (stride, padding, output_padding, groups, dilation)
    expected = torch.nn.functional.conv_transpose2d(*(torch.from_numpy(a) for a in (x, weight, bias)), *options).numpy()
    np.testing.assert_allclose(fastconv.conv_transpose2d(x, weight, bias, *options), expected, rtol=1e-11, atol=1e-11)
    last = fastconv.conv_transpose2d(as_format(x, "channels_last"), weight, bias, *options)
    np.testing.assert_allclose(last, expected, rtol=1e-11, atol=1e-11)
    assert last.strides[1] == last.itemsize
    np.testing.assert_allclose(
        fastconv.conv_transpose2d(x[0], weight, bias, *options), expected[0], rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("name", algorithms.names("conv_backward_input"))
def test_bias_of_a_transposed_convolution(name: str) -> None:
    groups = 4 if name == "depthwise" else 1
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((1, 4, 5, 6)), np.arange(4.0)
    weight = rng.standard_normal((4, 4 // groups, 2, 2))
    plain = fastconv.conv_transpose2d(x, weight, stride=3, groups=groups, algorithm=name)
    biased = fastconv.conv_transpose2d(x, weight, bias, stride=3, groups=groups, algorithm=name)
    np.testing.assert_allclose(biased - plain, np.broadcast_to(bias[:, None, None], plain.shape[1:])[None], atol=1e-12)


def test_out_is_written_and_returned() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((4, 3, 3, 3))
    grad = rng.standard_normal((2, 4, 4, 5))
    out = np.full(weight.shape, np.nan)
    assert fastconv.grad.conv2d_weight(x, weight.shape, grad, out=out) is out
    np.testing.assert_array_equal(out, fastconv.grad.conv2d_weight(x, weight.shape, grad))
    out = np.full(x.shape, np.nan)
    assert fastconv.grad.conv2d_input(x.shape, weight, grad, out=out) is out
    np.testing.assert_array_equal(out[0], fastconv.grad.conv2d_input(x.shape[1:], weight, grad[0]))


@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 9), (1, 1, 1, 1), (3, 17, 5, 4), (1, 130, 1, 3), (2, 3, 181, 187)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_bias_gradient(shape: tuple[int, ...], dtype: str, format: str) -> None:
    grad = as_format(np.random.default_rng(0).standard_normal(shape).astype(dtype), format)
    expected = grad.sum(axis=(0, 2, 3), dtype=np.float64)
    other = {"contiguous": "channels_last", "channels_last": "contiguous"}[format]
    views = [grad[0], spread(grad, format), as_format(grad, other)[:, :, ::-1], np.repeat(grad, 2, axis=3)[..., ::2]]
    bound = {"rtol": np.finfo(dtype).eps, "atol": 1e-11}  # summed in float64, rounded once
    for end in (False, True):
        result = fastconv.grad.conv2d_bias(guarded(grad, end))
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, **bound)
    np.testing.assert_allclose(fastconv.grad.conv2d_bias(views[0]), grad[0].sum((1, 2), dtype=np.float64), **bound)
    for view in views[1:]:
        np.testing.assert_allclose(fastconv.grad.conv2d_bias(view), expected, **bound)


def test_bias_gradient_of_no_images_and_of_what_is_not_finite() -> None:
    none = fastconv.grad.conv2d_bias(np.empty((0, 3, 4, 5), np.float32))
    assert none.dtype == np.float32
    np.testing.assert_array_equal(none, np.zeros(3))
    grad = np.zeros((3, 4, 5))
    grad[0, 1, 2], grad[1, 0, 0], grad[1, 3, 4] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(fastconv.grad.conv2d_bias(grad), [np.nan, np.nan, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_bias_gradient_as_torch(dtype: str, format: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight, grad = (torch.tensor(rng.standard_normal(s).astype(dtype)) for s in (X.shape, W.shape, G.shape))
    bias = torch.zeros(len(weight), dtype=x.dtype, requires_grad=True)
    torch.nn.functional.conv2d(x, weight, bias).backward(grad)
    bound = 40 * np.finfo(dtype).eps
    actual = fastconv.grad.conv2d_bias(as_format(grad.numpy(), format))
    np.testing.assert_allclose(actual, bias.grad.numpy(), rtol=bound, atol=bound)


X, W, G = np.ones((2, 4, 6, 6)), np.ones((8, 4, 3, 3)), np.ones((2, 8, 4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.conv2d_input((2, 4, 6, 7), W, G), r"grad_output must have shape \(2, 8, 4, 5\)"),
        (lambda g: g.conv2d_input((2, 4), W, G), "input_size must"),
        (lambda g: g.conv2d_input(X.shape, W[:, :3], G), "weight has 3 channels per filter"),
        (lambda g: g.conv2d_input(X.shape, W.astype("f4"), G), "weight must have the dtype of grad_output"),
        (lambda g: g.conv2d_weight(X, (8, 4, 3), G), "weight_size must"),
        (
            lambda g: g.conv2d_weight(X, W, G),
            r"weight_size must be a shape of 4 axes, got an array; give its shape, \(8",
        ),
        (lambda g: g.conv2d_weight(X, W.shape, G[0]), "grad_output must have as many axes as input"),
        (lambda g: g.conv2d_weight(X, W.shape, G[:, :, :3]), r"grad_output must have shape \(2, 8, 4, 4\)"),
        (lambda g: g.conv2d_weight(X, W.shape, G.astype("f4")), "grad_output must have the dtype of input"),
        (lambda g: g.conv2d_weight(X.astype(int), W.shape, G), "input must be float32 or float64"),
        (lambda g: g.conv2d_weight(X, W.shape, G, algorithm="fft"), "algorithm must be None or one of direct, im2col"),
        (lambda g: g.conv2d_weight(X, W.shape, G, out=np.ones(3)), "out must have shape"),
        (lambda g: g.conv2d_input(X.shape, W, G, out=G[:, :4]), "out must have shape"),
        (lambda g: g.conv2d_bias(G.astype(int)), "grad_output must be float32 or float64, got int64"),
        (lambda g: g.conv2d_bias(G[0, 0]), r"grad_output must have 3 or 4 axes, got shape \(4, 4\)"),
        (lambda g: g.conv2d_bias(G[:, :, :0]), r"grad_output must not have an empty axis other than N"),
        (lambda _: fastconv.conv_transpose2d(G, W, output_padding=1), "output_padding must be less"),
        (lambda _: fastconv.conv_transpose2d(G, W, padding=4), "leaves nothing of the result's height"),
        (lambda _: fastconv.conv_transpose2d(G, W, np.ones(3)), r"bias must be float64 of shape \(4,\)"),
        (lambda _: fastconv.conv_transpose2d(G, W, groups=0), "groups must be a positive int"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(fastconv.grad)


def test_a_training_step_is_the_same_on_one_and_two_threads(tmp_path) -> None:
    """In processes that know only so many threads, so that nothing can be split by their number."""
    code = """
import sys, numpy as np, fastconv
rng = np.random.default_rng(0)
x, w = rng.standard_normal((3, 20, 33, 31)).astype("f4"), rng.standard_normal((24, 20, 3, 3)).astype("f4")
y = fastconv.conv2d(x, w, stride=2, padding=1)
gradients = fastconv.grad.conv2d_input(x.shape, w, y, 2, 1), fastconv.grad.conv2d_weight(x, w.shape, y, 2, 1)
np.savez(sys.argv[1], y, *gradients, fastconv.grad.conv2d_bias(y))
"""
    for threads in "12":
        environment = {**os.environ, "NUMBA_NUM_THREADS": threads, "FASTCONV_MODE": "heuristic"}
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / f"{threads}.npz"], check=True, env=environment, timeout=300
        )
    one, two = (np.load(tmp_path / f"{threads}.npz") for threads in "12")
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("problem", gradients("backward_input"), ids=lambda problem: problem.descriptor)
def test_reached_phases_are_those_with_a_convolution(problem: ConvProblem) -> None:
    expected = [phase for phase in phases(problem) if phase.problem]
    assert sorted(map(repr, expected)) == sorted(repr(phase) for phase, _ in reached_phases(problem))


@pytest.mark.parametrize("shape", [(1, 2, 300_000, 3), (0, 2, 2**31 - 1, 4)])
def test_strides_far_beyond_the_kernel(shape: tuple[int, ...]) -> None:
    weight, gradient = np.ones((3, 2, 2, 1), np.float32), np.ones((shape[0], 3, 1, shape[3]), np.float32)
    result = grad.conv2d_input(shape, weight, gradient, stride=(2**31 - 1, 1), dilation=(70_000, 1))
    assert result.shape == shape
    reached = result[:, :, [0, 70_000]]
    np.testing.assert_array_equal(reached, np.full_like(reached, 3))
    assert result.sum() == reached.sum()


def test_transposed_convolution_of_an_empty_batch_and_a_huge_stride() -> None:
    x, weight = np.zeros((0, 2, 2, 1), np.float32), np.ones((2, 1, 1, 1), np.float32)
    assert fastconv.conv_transpose2d(x, weight, stride=2**31 - 1).shape == (0, 1, 2**31, 1)


def test_groups_may_be_a_small_numpy_integer() -> None:
    x, weight = np.ones((1, 128, 2, 2), np.float32), np.ones((128, 4, 1, 1), np.float32)
    result = fastconv.conv_transpose2d(x, weight, groups=np.uint8(128))
    np.testing.assert_array_equal(result, fastconv.conv_transpose2d(x, weight, groups=128))
    assert result.shape == (1, 512, 2, 2)


@pytest.mark.parametrize("shape", [(3, 0, 3, 2), (3, 2, 0, 1)])
def test_an_empty_weight_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="weight must not have an empty axis"):
        fastconv.conv_transpose2d(np.ones((1, 3, 3, 3), np.float32), np.ones(shape, np.float32))


def test_long_kernels_take_no_table_of_all_taps_at_all_borders() -> None:
    gradient, weight = np.ones((1, 1, 1, 20_000), np.float32), np.ones((1, 1, 1, 5_001), np.float32)
    problem = ConvProblem.create(gradient.shape, weight.shape, padding=(0, 2_500), direction="backward_input")
    assert "direct" not in algorithms.supporting(problem)
    result = grad.conv2d_input(gradient.shape, weight, gradient, padding=(0, 2_500))
    np.testing.assert_array_equal(result, fastconv.conv2d(gradient, weight, padding=(0, 2_500)))


def test_a_result_beyond_int64_is_what_stride_dilation_and_kernel_make() -> None:
    x, weight = np.zeros((0, 1, 1, 3), np.float32), np.broadcast_to(np.float32(0), (1, 1, 1, 2**40))
    with pytest.raises(ValueError, match="stride, dilation and the weight's kernel make the result's width 2361"):
        fastconv.conv_transpose2d(x, weight, dilation=2**31 - 1)

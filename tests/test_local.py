"""Locally-connected convolution and its gradients: kernels against the oracle, the oracle against torch."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from support import FORMATS, as_format, guarded, poisoned, spread, workspace_without_slack

import fastconv
from fastconv import algorithms, grad, reference_local
from fastconv.cpu.host import host
from fastconv.descriptor import parse
from fastconv.local_problem import LocalProblem

DIRECTIONS = ("forward", "backward_input", "backward_weight")
rng = np.random.default_rng(13)

CONVOLUTIONS = [
    # Channels, filters and images around the register tiles; pixels around the vectors.
    "n1c1h4w4k1r1s1", "n1c3h7w9k5r3s3p1_bias", "n2c5h8w7k17r3s3p1u2", "n3c4h6w6k4r3s3_bias", "n5c3h6w7k8r1s1_bias",
    "n9c6h5w5k3r2s2", "n4c33h7w7k6r3s3p1_bias", "n17c2h5w8k9r3s2p1.0",
    # Strides, down and across, and taps that fall into few of their phases.
    "n2c3h13w17k4r3s3u2_bias", "n1c2h9w20k3r3s5p1.2u1.3", "n2c2h12w9k5r2s2u3", "n3c2h9w9k2r1s1u2",
    # Padding: asymmetric, larger than the kernel.
    "n2c3h8w9k6r3s3p0.1.2.3_bias", "n1c2h4w5k3r2s2p5",
    # Dilation, with and without stride.
    "n2c3h13w11k4r3s3p2d2_bias", "n2c4h14w9k5r3s2p1.2u2d2.3", "n1c2h15w16k3r3s3p3d3",
    # Kernels as large as the image, one pixel, one row, one column.
    "n2c3h5w4k5r5s4", "n3c20h1w1k7r1s1_bias", "n1c4h1w33k3r1s7p0.3", "n1c4h33w1k3r7s1p3.0",
    # Several blocks of channels, long rows and groups of images.
    "n2c70h6w6k5r3s3p1_bias", "n1c3h40w41k2r5s5p2", "n33c2h6w7k5r3s3p1",
    "n0c3h5w5k4r3s3_bias",
]  # fmt: skip
PARSED = [parse(text) for text in CONVOLUTIONS]
SELECTION = [parse(text) for text in ["n5c6h9w8k7r3s3p1_bias", "n2c3h10w9k5r3s2p1u2d2_bias", "n18c3h5w6k5r2s2"]]


def in_all_forms(convolutions: list) -> list[LocalProblem]:
    """Each convolution in each direction (the bias goes forward only), memory format and dtype."""
    return [
        LocalProblem(replace(c, direction=d, bias=c.bias and d == "forward", memory_format=f, dtype=dtype))
        for c in convolutions
        for d in DIRECTIONS
        for f in FORMATS
        for dtype in ("float32", "float64")
    ]


def rows(problems: list[LocalProblem]) -> list:
    """Every algorithm with every problem."""
    return [
        pytest.param(p, name, id=f"{p.descriptor}-{name}") for p in problems for name in algorithms.names(p.operation)
    ]


@pytest.fixture(autouse=True)
def _guard_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cpu.kernel.workspace", workspace_without_slack)


def random_arrays(problem: LocalProblem, seed: int = 0) -> dict[str, np.ndarray]:
    """Input, weights, bias and gradient of the result, of order 1; sums of products with weights are, too."""
    random, p = np.random.default_rng(seed), problem
    length = math.prod(p.weight_shape[1:4]) if p.direction == "forward" else p.conv.out_channels
    found = {
        "x": as_format(random.standard_normal(p.in_shape), p.memory_format),
        "weight": random.standard_normal(p.weight_shape) / math.sqrt(length),
        "bias": random.standard_normal(p.out_shape[1:]),
        "grad": as_format(random.standard_normal(p.out_shape), p.memory_format),
    }
    return {name: array.astype(p.dtype) for name, array in found.items()}


@cache
def case(problem: LocalProblem) -> tuple[tuple, np.ndarray]:
    """The arguments of a kernel's `run` but for the last, and the oracle's result."""
    a = random_arrays(problem)
    if problem.direction == "forward":
        arguments = (a["x"], a["weight"], a["bias"] if problem.conv.bias else None)
        return arguments, reference_local.convolve(problem, *arguments)
    if problem.direction == "backward_input":
        return (a["grad"], a["weight"]), reference_local.input_gradient(problem, a["grad"], a["weight"])
    return (a["x"], a["grad"]), reference_local.weight_gradient(problem, a["x"], a["grad"])


def result_like(problem: LocalProblem, expected: np.ndarray) -> np.ndarray:
    result = np.full(expected.shape, np.nan, problem.dtype)
    return result if expected.ndim == 6 else as_format(result, problem.memory_format)


def make(problem: LocalProblem, name: str, threads: int = 1):
    code = algorithms.module(problem.operation, name)
    (params,) = code.space(problem)
    assert code.unsupported(problem) is None
    assert code.cost(problem, params) > 0
    return code.make(problem, params, threads)


def assert_close(actual: np.ndarray, expected: np.ndarray, problem: LocalProblem) -> None:
    """Rounding of a sum of as many products as the longest of the three operations has."""
    length = max(math.prod(problem.weight_shape[:4]), problem.batch)
    bound = 4 * float(np.finfo(problem.dtype).eps) * math.sqrt(length + 1)
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(PARSED)))
def test_kernel(problem: LocalProblem, name: str) -> None:
    arguments, expected = case(problem)
    results = []
    for threads, end in ((1, True), (2, False), (7, True)):
        out = guarded(result_like(problem, expected), end)
        make(problem, name, threads).run(*(None if a is None else guarded(a, end) for a in arguments), out)
        assert_close(out, expected, problem)
        results.append(out.tobytes())
    assert len(set(results)) == 1, "the result depends on the number of threads"


@pytest.mark.parametrize("l2", [4 << 10, 32 << 10])
@pytest.mark.parametrize("problem", in_all_forms(SELECTION), ids=lambda p: p.descriptor)
def test_work_is_cut_to_fit_a_small_cache(problem: LocalProblem, l2: int, monkeypatch) -> None:
    small = replace(host(), l2=l2)
    monkeypatch.setattr("fastconv.cpu.local.host", lambda: small)
    monkeypatch.setattr("fastconv.cpu.local_backward.host", lambda: small)
    monkeypatch.setattr("fastconv.cpu.local_backward._MOST_BYTES", 2 * l2)
    arguments, expected = case(problem)
    results = []
    for threads in (1, 3):
        out = guarded(result_like(problem, expected))
        make(problem, "direct", threads).run(*arguments, out)
        assert_close(out, expected, problem)
        results.append(out.tobytes())
    assert results[0] == results[1], "the result depends on the number of threads"


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(SELECTION)))
def test_arrays_of_any_strides(problem: LocalProblem, name: str, result_format) -> None:
    arguments, expected = case(problem)
    if expected.ndim == 6:
        whole = np.full((*expected.shape[:5], 2 * expected.shape[5]), 7, problem.dtype)
        out, check = whole[..., ::2], lambda: np.testing.assert_array_equal(whole[..., 1::2], 7)
    else:
        window = poisoned(expected.shape, problem.dtype, result_format)
        out, check = window.array, window.check
    strided = [None if a is None else spread(a, result_format) if a.ndim == 4 else np.repeat(a, 2, -1)[..., ::2]
               for a in arguments]  # fmt: skip
    make(problem, name, threads=2).run(*strided, out)
    assert_close(out, expected, problem)
    check()


@pytest.mark.parametrize("problem", in_all_forms(SELECTION[:1])[::2], ids=lambda p: p.descriptor)
def test_one_kernel_in_several_threads(problem: LocalProblem) -> None:
    arguments, expected = case(problem)
    kernel = make(problem, "direct", threads=2)

    def run(_: int) -> np.ndarray:
        out = result_like(problem, expected)
        kernel.run(*arguments, out)
        return out

    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(run, range(12)):
            assert_close(out, expected, problem)


@pytest.mark.parametrize("problem", in_all_forms(SELECTION[:1])[::2], ids=lambda p: p.descriptor)
def test_nan_and_infinity_spread_as_in_the_oracle(problem: LocalProblem) -> None:
    arguments, _ = case(problem)
    first = arguments[0].copy(order="K")
    first[0, 0, 0, 0], first[0, 1, 4, 4], first[1, 2, -1, 5] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        if problem.direction == "forward":
            expected = reference_local.convolve(problem, first, *arguments[1:])
        elif problem.direction == "backward_input":
            expected = reference_local.input_gradient(problem, first, arguments[1])
        else:
            expected = reference_local.weight_gradient(problem, first, arguments[1])
    out = result_like(problem, expected)
    make(problem, "direct").run(first, *arguments[1:], out)
    assert_close(out, expected, problem)


def with_torch(problem: LocalProblem, a: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The result without bias, and the gradients of input and weights: unfold, and a product for each pixel."""
    torch = pytest.importorskip("torch")
    conv = problem.conv
    x, weight = (torch.from_numpy(np.ascontiguousarray(a[name])).requires_grad_() for name in ("x", "weight"))
    (top, bottom), (left, right) = conv.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    columns = torch.nn.functional.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)
    K, pixels = conv.out_channels, math.prod(conv.out_size)
    y = torch.einsum("nip,kip->nkp", columns, weight.reshape(K, -1, pixels)).reshape(problem.out_shape)
    y.backward(torch.from_numpy(np.ascontiguousarray(a["grad"])))
    return y.detach().numpy(), x.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize("conv", [c for c in PARSED if c.batch], ids=lambda c: c.descriptor)
def test_the_oracle_is_torchs(conv) -> None:
    problem = LocalProblem(replace(conv, dtype="float64"))
    a = random_arrays(problem)
    y, x_gradient, weight_gradient = with_torch(problem, a)
    exact = {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(reference_local.convolve(problem, a["x"], a["weight"]), y, **exact)
    with_bias = reference_local.convolve(problem, a["x"], a["weight"], a["bias"])
    np.testing.assert_allclose(with_bias, y + a["bias"], **exact)
    np.testing.assert_allclose(reference_local.input_gradient(problem, a["grad"], a["weight"]), x_gradient, **exact)
    np.testing.assert_allclose(reference_local.weight_gradient(problem, a["x"], a["grad"]), weight_gradient, **exact)


@pytest.mark.parametrize("conv", SELECTION, ids=lambda c: c.descriptor)
def test_the_gradients_are_adjoint_to_the_convolution(conv) -> None:
    """The convolution is linear in input and in weights, so products with its gradients must agree exactly."""
    problem = LocalProblem(replace(conv, dtype="float64"))
    a = random_arrays(problem)
    product = (reference_local.convolve(problem, a["x"], a["weight"]) * a["grad"]).sum()
    by_input = (reference_local.input_gradient(problem, a["grad"], a["weight"]) * a["x"]).sum()
    by_weight = (reference_local.weight_gradient(problem, a["x"], a["grad"]) * a["weight"]).sum()
    np.testing.assert_allclose([by_input, by_weight], product, rtol=1e-11)


def call(problem: LocalProblem, arguments: tuple, **options) -> np.ndarray:
    """The public function of a direction."""
    conv = problem.conv
    window = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation} | options
    if problem.direction == "forward":
        return fastconv.locally_connected2d(*arguments, **window)
    if problem.direction == "backward_input":
        gradient, weight = arguments
        size = problem.in_shape if gradient.ndim == 4 else problem.in_shape[1:]
        return grad.locally_connected2d_input(size, weight, gradient, **window)
    return grad.locally_connected2d_weight(arguments[0], problem.weight_shape, arguments[1], **window)


@pytest.mark.parametrize("problem", in_all_forms(SELECTION), ids=lambda p: p.descriptor)
def test_call(problem: LocalProblem) -> None:
    arguments, expected = case(problem)
    for _ in range(2):
        result = call(problem, arguments)
        assert_close(result, expected, problem)
        assert result.dtype == problem.dtype
        order = result if expected.ndim == 6 or problem.memory_format == "contiguous" else result.transpose(0, 2, 3, 1)
        assert order.flags.c_contiguous
    out = np.full(expected.shape, np.nan, problem.dtype)
    assert call(problem, arguments, out=out) is out
    assert_close(out, expected, problem)
    read_only = [None if a is None else np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for a in arguments]
    assert_close(call(problem, tuple(read_only), algorithm="direct"), expected, problem)


@pytest.mark.parametrize("problem", in_all_forms(SELECTION)[::2], ids=lambda p: p.descriptor)
def test_one_image_without_a_batch_axis(problem: LocalProblem) -> None:
    arguments, _ = case(problem)
    single = tuple(a[0] if a is not None and a.ndim == 4 else a for a in arguments)
    one = tuple(a[:1] if a is not None and a.ndim == 4 else a for a in arguments)
    small = LocalProblem(replace(problem.conv, batch=1))
    expected = call(small, one)
    result = call(small, single)
    np.testing.assert_array_equal(result, expected if expected.ndim == 6 else expected[0])
    out = np.empty_like(result)
    assert call(small, single, out=out) is out
    np.testing.assert_array_equal(out, result)


def test_equal_weights_at_every_pixel_are_a_convolution() -> None:
    x, weight = rng.standard_normal((2, 5, 9, 8)), rng.standard_normal((7, 5, 3, 3))
    bias = rng.standard_normal(7)
    repeated = np.broadcast_to(weight[..., None, None], (*weight.shape, 9, 8))
    local = fastconv.locally_connected2d(x, repeated, np.broadcast_to(bias[:, None, None], (7, 9, 8)), padding="same")
    np.testing.assert_allclose(local, fastconv.conv2d(x, weight, bias, padding="same"), rtol=1e-12, atol=1e-12)


def test_nothing_needs_to_be_measured() -> None:
    fastconv.set_mode("wisdom")
    try:
        assert fastconv.locally_connected2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1, 3, 3))).sum() == 9
    finally:
        fastconv.set_mode("heuristic")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_workspace_is_a_few_times_the_cache(direction) -> None:
    conv = replace(parse("n64c256h28w28k256r3s3p1"), direction=direction)
    assert make(LocalProblem(conv), "direct").workspace_bytes < 16 << 20


def test_a_problem_knows_its_sizes() -> None:
    problem = LocalProblem.create((2, 3, 8, 9), (4, 3, 3, 3, 4, 5), stride=2, padding=1, direction="backward_weight")
    assert problem.descriptor == "n2c3h8w9k4r3s3p1u2_f32_nchw_wgrad_local"
    assert (problem.operation, problem.out_shape) == ("local_backward_weight", (2, 4, 4, 5))
    assert problem.flops == 2 * 2 * 4 * 4 * 5 * 27
    assert problem.bytes == 4 * (2 * 3 * 72 + 4 * 27 * 20 + 2 * 4 * 20)


X, W = np.zeros((2, 3, 6, 6)), np.zeros((4, 3, 3, 3, 4, 4))


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "x must be float32 or float64", (X.astype(int), W), {}),
        (TypeError, "weight must have the dtype of x, float64, got float32", (X, W.astype("float32")), {}),
        (TypeError, "bias must have the dtype of x", (X, W, np.zeros((4, 4, 4), "float32")), {}),
        (ValueError, "weight must have 6 axes", (X, W[0]), {}),
        (ValueError, r"weight must have shape \(4, 3, 3, 3, 6, 6\), its last two axes", (X, W), {"padding": 1}),
        (ValueError, "weight has 2 channels per filter", (X, W[:, :2]), {}),
        (ValueError, r"bias must have shape \(4, 4, 4\)", (X, W, np.zeros((4, 4, 5))), {}),
        (ValueError, "stride must be at least 1", (X, W), {"stride": 0}),
        (ValueError, "algorithm must be None or one of direct, reference", (X, W), {"algorithm": "tiled"}),
        (ValueError, r"out must have shape \(2, 4, 4, 4\)", (X, W), {"out": np.zeros((2, 4, 4, 5))}),
    ],
)
def test_errors_name_the_argument(error, message, arguments, options) -> None:
    with pytest.raises(error, match=message):
        fastconv.locally_connected2d(*arguments, **options)


def test_errors_of_the_gradients() -> None:
    y = np.zeros((2, 4, 4, 4))
    with pytest.raises(ValueError, match=r"grad_output must have shape \(2, 4, 4, 4\) for an input of shape"):
        grad.locally_connected2d_input(X.shape, W, y[..., 1:])
    with pytest.raises(ValueError, match="input_size must be a shape of 4 axes"):
        grad.locally_connected2d_input(X.shape[1:], W, y)
    with pytest.raises(TypeError, match="weight must have the dtype of grad_output"):
        grad.locally_connected2d_input(X.shape, W.astype("float32"), y)
    with pytest.raises(ValueError, match="weight_size must be a shape of 6 axes"):
        grad.locally_connected2d_weight(X, W.shape[:4], y)
    with pytest.raises(ValueError, match="grad_output must have as many axes as input"):
        grad.locally_connected2d_weight(X, W.shape, y[0])
    with pytest.raises(TypeError, match="grad_output must have the dtype of input"):
        grad.locally_connected2d_weight(X, W.shape, y.astype("float32"))
    with pytest.raises(ValueError, match="out must not overlap"):
        grad.locally_connected2d_weight(
            W.reshape(4, 27, 4, 4)[:2], (4, 27, 1, 1, 4, 4), y, out=W.reshape(4, 27, 1, 1, 4, 4)
        )

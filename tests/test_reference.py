"""The oracle itself, against SciPy, ONNX's reference evaluator and torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from scipy.signal import correlate2d
from support import POOL_PROBLEMS, PROBLEMS, images, make_arrays

from fastconv.descriptor import parse
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.reference import convolve, make, pooling

EXACT = {"rtol": 1e-11, "atol": 1e-12}
CONVOLUTIONS = [replace(p, dtype="float64") for p in PROBLEMS]
POOLINGS = [replace(p, dtype="float64") for p in POOL_PROBLEMS]


def by_name(problem: object) -> str:
    return getattr(problem, "descriptor", str(problem))


def with_scipy(problem: ConvProblem, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The convolution alone, one plane at a time, from padded input and a kernel with its holes."""
    padded = np.pad(x, ((0, 0), (0, 0), *problem.padding))
    (dh, dw), (sh, sw) = problem.dilation, problem.stride
    R, S = problem.kernel_size
    spread = np.zeros((*weight.shape[:2], dh * (R - 1) + 1, dw * (S - 1) + 1))
    spread[:, :, ::dh, ::dw] = weight
    out = np.zeros((problem.batch, problem.out_channels, *problem.conv_size))
    channels, filters = weight.shape[1], problem.out_channels // problem.groups
    for n, k, c in product(range(problem.batch), range(problem.out_channels), range(channels)):
        plane = padded[n, k // filters * channels + c]
        out[n, k] += correlate2d(plane, spread[k, c], mode="valid")[::sh, ::sw]
    return out


@pytest.mark.parametrize("problem", CONVOLUTIONS, ids=by_name)
def test_convolution_is_scipys(problem: ConvProblem) -> None:
    x, weight, _ = make_arrays(problem)
    plain = problem.without_epilogue()
    np.testing.assert_allclose(convolve(plain, x, weight), with_scipy(plain, x, weight), **EXACT)


def evaluate(operator: str, inputs: dict[str, np.ndarray], **attributes: object) -> np.ndarray:
    """Run one ONNX operator in ONNX's own NumPy implementation."""
    node = helper.make_node(operator, list(inputs), ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, a.shape) for name, a in inputs.items()]
    graph = helper.make_graph([node], operator, values, [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    return ReferenceEvaluator(model).run(None, inputs)[0]


@pytest.mark.parametrize("problem", [p for p in CONVOLUTIONS if p.batch], ids=by_name)
def test_convolution_is_onnxs(problem: ConvProblem) -> None:
    plain = replace(problem, activation=None, pool=None)
    x, weight, bias = make_arrays(plain)
    (top, bottom), (left, right) = plain.padding
    expected = evaluate(
        "Conv", {"x": x, "w": weight} | ({} if bias is None else {"b": bias}), pads=[top, left, bottom, right],
        strides=plain.stride, dilations=plain.dilation, group=plain.groups, kernel_shape=plain.kernel_size,
    )  # fmt: skip
    np.testing.assert_allclose(convolve(plain, x, weight, bias), expected, **EXACT)


# ONNX divides by other numbers than torch in ceil_mode when it averages.
AGREED = [p for p in POOLINGS if p.batch and (p.pool.mode == "max" or not p.pool.ceil_mode)]


@pytest.mark.parametrize("problem", AGREED, ids=by_name)
def test_pooling_is_onnxs(problem: PoolProblem) -> None:
    pool, x = problem.pool, images(problem)
    common = {
        "kernel_shape": pool.kernel_size, "strides": pool.stride, "pads": [*pool.padding, *pool.padding],
        "dilations": pool.dilation, "ceil_mode": int(pool.ceil_mode),
    }  # fmt: skip
    values, indices = pooling(problem, x)
    if pool.mode == "max":
        expected = evaluate("MaxPool", {"x": x}, **common)
        found = np.take_along_axis(x.reshape(*x.shape[:2], -1), indices.reshape(*x.shape[:2], -1), axis=2)
        np.testing.assert_array_equal(found.reshape(values.shape), values)
    elif pool.mode == "avg":
        expected = evaluate("AveragePool", {"x": x}, count_include_pad=int(pool.count_include_pad), **common)
    else:
        x = np.abs(x)  # ONNX takes absolute values, torch does not
        values, _ = pooling(problem, x)
        expected = evaluate("LpPool", {"x": x}, p=int(pool.norm_type), **common)
    np.testing.assert_allclose(values, expected, **EXACT)


def torch_pooling(pool: Pool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    torch = pytest.importorskip("torch")
    functional, x = torch.nn.functional, torch.from_numpy(x)
    if pool.mode == "max":
        values, indices = functional.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
        )
        return values.numpy(), indices.numpy()
    if pool.mode == "avg":
        values = functional.avg_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad
        )
        return values.numpy(), None
    return functional.lp_pool2d(x, pool.norm_type, pool.kernel_size, pool.stride, pool.ceil_mode).numpy(), None


def torch_convolution(problem: ConvProblem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    (top, bottom), (left, right) = problem.padding
    y = functional.conv2d(
        functional.pad(torch.from_numpy(x), (left, right, top, bottom)), torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias), problem.stride, 0, problem.dilation, problem.groups,
    )  # fmt: skip
    if problem.activation:
        y = getattr(functional, problem.activation)(y)
    return torch_pooling(problem.pool, y.numpy())[0] if problem.pool else y.numpy()


@pytest.mark.parametrize("problem", [p for p in CONVOLUTIONS if p.batch], ids=by_name)
def test_everything_is_torchs(problem: ConvProblem) -> None:
    x, weight, bias = make_arrays(problem)
    expected = torch_convolution(problem, x, weight, bias)
    np.testing.assert_allclose(convolve(problem, x, weight, bias), expected, **EXACT)


WINDOWS = [
    Pool(mode, kernel, stride, padding, ceil_mode=ceil, count_include_pad=include, norm_type=norm)
    for mode, include, norm in [("max", True, 2), ("avg", True, 2), ("avg", False, 2), ("lp", True, 2), ("lp", True, 3)]
    for kernel, padding in [(2, 0), (2, 1), (3, 1), ((3, 2), (1, 0)), (5, 2)]
    for stride in [1, 2, 3, (2, 1)]
    for ceil in [False, True]
    if mode != "lp" or padding == 0
]


@pytest.mark.parametrize("pool", [*WINDOWS, *(p.pool for p in POOLINGS)], ids=by_name)
@pytest.mark.parametrize("special", [False, True], ids=["finite", "nan"])
def test_pooling_is_torchs(pool: Pool, special: bool) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 9, 14))
    if special:
        x[0, 0, 3, 3:5], x[0, 1, 2, 2], x[1, 0, 5, 5], x[1, 1] = np.nan, np.inf, -np.inf, -np.inf
    values, indices = pooling(pool, x)
    expected, positions = torch_pooling(pool, x)
    np.testing.assert_allclose(values, expected, **EXACT)
    if indices is not None:
        np.testing.assert_array_equal(indices, positions)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
def test_activations_treat_special_values_as_torch(activation: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 6.5, 3.0]).reshape(1, 1, 1, 7)
    problem = ConvProblem.create(x.shape, (1, 1, 1, 1), activation=activation)
    expected = getattr(torch.nn.functional, activation)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(convolve(problem, x, np.ones((1, 1, 1, 1))), expected)


def test_a_window_without_pixels_has_no_position() -> None:
    values, indices = pooling(Pool("max", 2, 2, 1, dilation=2), np.zeros((1, 1, 1, 4)))
    assert values[0, 0, 0].tolist() == [-np.inf] * 2
    assert indices[0, 0, 0].tolist() == [-1] * 2


def test_the_first_layer_of_alexnet_has_55_x_55_x_96_outputs() -> None:
    problem = parse("n1c3h227w227k96r11s11u4")
    x, weight, bias = make_arrays(problem)
    out = convolve(problem, x, weight, bias)
    assert out.shape == problem.out_shape == (1, 96, 55, 55)
    corner = (x[0, :, 216:, 216:].astype(float) * weight[95]).sum()
    np.testing.assert_allclose(out[0, 95, 54, 54], corner, **EXACT)


def test_the_packed_weights_are_a_copy() -> None:
    problem = parse("n1c3h5w5k4r3s3_bias")
    x, weight, bias = make_arrays(problem)
    kernel, out = make(problem, {}, 1), np.empty(problem.out_shape, np.float32)
    packed, expected = kernel.pack(weight, bias), convolve(problem, x, weight, bias)
    weight[...], bias[...] = 0, 0
    kernel.run(x, packed, out)
    np.testing.assert_allclose(out, expected.astype(np.float32))


def test_results_beyond_float32_are_infinite() -> None:
    problem = parse("n1c1h1w1k1r1s1")
    kernel, out = make(problem, {}, 1), np.empty((1, 1, 1, 1), np.float32)
    kernel.run(np.full((1, 1, 1, 1), 1e30, np.float32), kernel.pack(np.full((1, 1, 1, 1), 1e30, np.float32), None), out)
    assert out.item() == np.inf

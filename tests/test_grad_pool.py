"""Gradients of pooling: every algorithm against the oracle, and the oracle against torch and against differences."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from support import (
    FORMATS,
    POOL_PROBLEMS,
    as_format,
    guarded,
    in_all_forms,
    poisoned,
    rows,
    spread,
    workspace_without_slack,
)

import fastconv
from fastconv import algorithms, grad, reference
from fastconv.cpu import pool_backward
from fastconv.descriptor import parse
from fastconv.pooling import Pool
from fastconv.problem import PoolProblem
from fastconv.reference_backward import pool_input

rng = np.random.default_rng(11)

FORWARD = [replace(p, return_indices=False) for p in POOL_PROBLEMS]
FORWARD += [parse(text) for text in [
    # Windows that overlap, or leave gaps, at strides that the kernels treat each in its own way.
    "n2c5h11w13_avg5u3p2", "n1c70h9w8_avg5u3p2nopad", "n1c3h12w17_avg7u2p3", "n1c4h9w10_avg4u2p1ceilnopad",
    "n1c2h9w9_avg1u2", "n1c18h8w11_avg2u5", "n1c3h6w7_avg1u1", "n1c5h13w12_lp5u3n2ceil", "n1c20h9w9_lp1u2n3",
    "n1c3h8w9_max1u3", "n2c65h6w5_max4u1p2", "n1c3h5w6_lp2u1n1", "n2c9h6w5_lp3u2n2.5ceil",
    # Rows of several vectors.
    "n1c2h23w70_avg3u2p1", "n1c2h5w67_avg4u2p2nopad", "n1c2h9w40_avg9u1p4", "n1c3h9w50_avg7u3p3", "n1c2h7w41_avg2u2",
    # Whole planes.
    "n2c5h6w7_avg6.7u1", "n2c33h4w4_lp4u4n3", "n3c4h5w2_max5.2u1", "n1c3h1w2_avg1.2u2", "n1c7h1w1_avg1u1",
]]  # fmt: skip
PROBLEMS = [replace(p, direction="backward_input") for p in dict.fromkeys(FORWARD)]
SELECTION = [
    replace(parse(text), direction="backward_input")
    for text in ["n2c5h9w8_max3u2p1ceil", "n1c37h8w9_avg3u2p1nopad", "n3c4h7w6_avg7.6", "n1c20h9w8_lp3u2n2ceil"]
]


@pytest.fixture(autouse=True)
def _guard_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cpu.kernel.workspace", workspace_without_slack)
    monkeypatch.setattr("fastconv.cpu.pool_backward._JOB_BYTES", 1 << 8)  # so that small problems are cut, too


def input_of(pool: Pool, shape: tuple[int, ...], dtype: str, special: bool = False) -> np.ndarray:
    """Small integers for a maximum, many of them equal; else positive numbers, in places 0 for a norm."""
    x = np.random.default_rng(3).integers(0, 5, shape).astype(dtype)
    if pool.mode != "max":
        x = x * np.asarray(0.3, dtype) + np.asarray(0.0 if pool.norm_type > 1 else 0.4, dtype)
    if special:
        x[0, 0, 0, 0], x[0, 1, 4, 4], x[0, 2, 5, 5], x[0, 3] = np.nan, np.inf, -np.inf, 0
    return x


def saved_by(pool: Pool, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the forward pass keeps for the backward pass."""
    values, indices = reference.pooling(pool, x)
    if pool.mode == "max":
        return (np.asarray(indices),)
    return (values.astype(x.dtype), x) if pool.mode == "lp" else ()


@cache
def case(problem: PoolProblem) -> tuple:
    """Gradient of the result, what the forward pass kept, and the oracle's gradient of the input."""
    gradient = np.random.default_rng(4).standard_normal(problem.out_shape).astype(problem.dtype)
    kept = saved_by(problem.pool, input_of(problem.pool, problem.in_shape, problem.dtype))
    arrays = tuple(as_format(array, problem.memory_format) for array in (gradient, *kept))
    return *arrays[:1], arrays[1:], pool_input(problem, gradient, *kept)


def make(problem: PoolProblem, name: str, threads: int = 1):
    return algorithms.module(problem.operation, name).make(problem, {}, threads)


def assert_close(actual: np.ndarray, expected: np.ndarray, problem: PoolProblem) -> None:
    """Rounding of a sum over the windows that cover a pixel; a power multiplies the error by its exponent."""
    pool = problem.pool
    windows = math.prod(-(-f // s) for f, s in zip(pool.kernel_size, pool.stride, strict=True))
    factor = 8 * (1 + pool.norm_type) if pool.mode == "lp" else 8
    bound = factor * float(np.finfo(problem.dtype).eps) * math.sqrt(windows + 1)
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(PROBLEMS)))
def test_gradient(problem: PoolProblem, name: str) -> None:
    gradient, saved, expected = case(problem)
    results = []
    for threads, end in ((1, True), (2, False), (5, True)):
        out = guarded(as_format(np.full(problem.in_shape, np.nan, problem.dtype), problem.memory_format), end)
        make(problem, name, threads).run(guarded(gradient, end), out, *(guarded(a, end) for a in saved))
        assert_close(out, expected, problem)
        results.append(out.tobytes())
    assert len(set(results)) == 1, "the result depends on the number of threads"


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize(("problem", "name"), rows(in_all_forms(SELECTION, every=1)))
def test_arrays_of_any_strides(problem: PoolProblem, name: str, result_format) -> None:
    gradient, saved, expected = case(problem)
    out = poisoned(problem.in_shape, problem.dtype, result_format)
    kept = []
    for array in saved:
        wide = poisoned(array.shape, str(array.dtype), problem.memory_format).array
        wide[...] = array
        kept.append(wide)
    make(problem, name, threads=2).run(spread(gradient, problem.memory_format), out.array, *kept)
    assert_close(out.array, expected, problem)
    out.check()
    turned = [array[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1] for array in (gradient, *saved)]
    out = poisoned(problem.in_shape, problem.dtype, result_format)
    make(problem, name).run(turned[0], out.array[...], *turned[1:])
    assert_close(out.array, expected, problem)
    out.check()


@pytest.mark.parametrize(("problem", "name"), rows(SELECTION))
def test_one_kernel_in_several_threads(problem: PoolProblem, name: str) -> None:
    gradient, saved, expected = case(problem)
    kernel = make(problem, name, threads=2)

    def run(scale: float) -> tuple[np.ndarray, float]:
        out = np.full(problem.in_shape, np.nan, problem.dtype)
        kernel.run(gradient * np.float32(scale), out, *saved)
        return out, scale

    with ThreadPoolExecutor(4) as pool:
        for out, scale in pool.map(run, [1.0, 2.0, 4.0, 8.0] * 4):
            assert_close(out / np.float32(scale), expected, problem)


def torch_gradient(pool: Pool, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    functional, leaf = torch.nn.functional, torch.from_numpy(x.copy()).requires_grad_()
    if pool.mode == "max":
        y = functional.max_pool2d(leaf, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    elif pool.mode == "avg":
        window = (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad)
        y = functional.avg_pool2d(leaf, *window)
    else:
        y = functional.lp_pool2d(leaf, pool.norm_type, pool.kernel_size, pool.stride, pool.ceil_mode)
    y.backward(torch.from_numpy(np.ascontiguousarray(gradient)))
    return leaf.grad.numpy()


def full(pool: Pool, size: tuple[int, int]) -> bool:
    """Whether every window has a pixel: torch's index of one that has none is outside of the plane."""
    return pool.mode != "max" or bool((reference.pooling(pool, np.zeros((1, 1, *size)))[1] >= 0).all())


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=lambda p: p.descriptor)
def test_the_oracle_is_torchs(problem: PoolProblem) -> None:
    assert full(problem.pool, problem.in_size)
    x = input_of(problem.pool, problem.in_shape, "float64")
    gradient = np.random.default_rng(5).standard_normal(problem.out_shape)
    expected = torch_gradient(problem.pool, x, gradient)
    np.testing.assert_allclose(pool_input(problem, gradient, *saved_by(problem.pool, x)), expected, 1e-11, 1e-12)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=lambda p: p.descriptor)
def test_the_oracle_is_the_derivative(problem: PoolProblem) -> None:
    pool, random, step = problem.pool, np.random.default_rng(6), 1e-4
    # All different by much more than a step, and none near 0.
    x = 0.3 + random.permutation(math.prod(problem.in_shape)).reshape(problem.in_shape) / 50
    gradient, direction = random.standard_normal(problem.out_shape), random.uniform(-1, 1, problem.in_shape)
    ends = [(reference.pooling(pool, x + t * direction)[0] * gradient).sum() for t in (-step, step)]
    found = (pool_input(problem, gradient, *saved_by(pool, x)) * direction).sum()
    np.testing.assert_allclose(found, (ends[1] - ends[0]) / (2 * step), rtol=1e-5, atol=1e-5)


def call(pool: Pool, gradient: np.ndarray, size: tuple[int, ...], saved: tuple, **options) -> np.ndarray:
    """The public function for a pooling window."""
    window = {"stride": pool.stride, "ceil_mode": pool.ceil_mode} | options
    if pool.mode == "max":
        return grad.max_pool2d(
            gradient, *saved, size, pool.kernel_size, padding=pool.padding, dilation=pool.dilation, **window
        )
    if pool.mode == "avg":
        window |= {"padding": pool.padding, "count_include_pad": pool.count_include_pad}
        return grad.avg_pool2d(gradient, size, pool.kernel_size, **window)
    return grad.lp_pool2d(gradient, saved[1], saved[0], pool.norm_type, pool.kernel_size, **window)


@pytest.mark.parametrize("problem", in_all_forms(PROBLEMS), ids=lambda p: p.descriptor)
def test_call(problem: PoolProblem) -> None:
    gradient, saved, expected = case(problem)
    result = call(problem.pool, gradient, problem.in_shape, saved)
    assert_close(result, expected, problem)
    assert result.dtype == problem.dtype
    order = result.transpose(0, 2, 3, 1) if fastconv.arrays.memory_format(gradient) == "channels_last" else result
    assert order.flags.c_contiguous
    if problem.batch:
        alone = call(problem.pool, gradient[0], problem.in_shape[1:], tuple(a[0] for a in saved))
        assert_close(alone, expected[0], problem)


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize("problem", in_all_forms(SELECTION), ids=lambda p: p.descriptor)
def test_a_given_out_decides_the_memory_format(problem: PoolProblem, result_format) -> None:
    gradient, saved, expected = case(problem)
    out = poisoned(problem.in_shape, problem.dtype, result_format)
    assert call(problem.pool, gradient, problem.in_shape, saved, out=out.array) is out.array
    assert_close(out.array, expected, problem)
    out.check()
    single = np.empty(problem.in_shape[1:], problem.dtype)
    assert call(problem.pool, gradient[0], problem.in_shape[1:], tuple(a[0] for a in saved), out=single) is single
    assert_close(single, expected[0], problem)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("algorithm", ["direct", "reference"])
@pytest.mark.parametrize(
    "pool", [Pool("max", 3, 2, 1), Pool("max", 2, 1), Pool("avg", 3, 3, 1), Pool("lp", 2), Pool("lp", 3, 1)], ids=str
)
def test_nan_infinity_and_zero_as_in_torch(pool, algorithm, memory_format) -> None:
    x = input_of(pool, (2, 19, 9, 12), "float32", special=True)
    values, indices = reference.pooling(pool, x)
    gradient = rng.standard_normal(values.shape).astype("float32")
    gradient[0, 5, 1, 1], gradient[1, 7, 2, 3], gradient[1, 8, 0, 0] = np.nan, np.inf, -np.inf
    expected = torch_gradient(pool, x, gradient)
    saved = (indices,) if pool.mode == "max" else (values.astype("float32"), x)
    gradient, *saved = (as_format(a, memory_format) for a in (gradient, *saved))
    with np.errstate(all="ignore"):
        result = call(pool, gradient, x.shape, tuple(saved), algorithm=algorithm)
    np.testing.assert_allclose(result, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("algorithm", ["direct", "reference"])
def test_an_index_outside_of_the_plane_names_no_pixel(algorithm, memory_format) -> None:
    outside = [-1, 12, 13, -(2**63), 2**63 - 1, 2**32 + 1]
    indices = as_format(np.array([*outside, 5, 5, 11]).reshape(1, 1, 3, 3).repeat(18, 1), memory_format)
    gradient = as_format(np.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(18, 1), memory_format)
    out = poisoned((1, 18, 3, 4), "float64", memory_format)
    result = grad.max_pool2d(gradient, indices, (1, 18, 3, 4), algorithm=algorithm, out=out.array)
    out.check()
    expected = np.zeros(12)
    expected[5], expected[11] = 15, 9
    assert (result.reshape(18, 12) == expected).all()


@pytest.mark.parametrize("size", [(5, 7), (4, 9), (6, 6), (12, 13), (1, 1)])
@pytest.mark.parametrize("out_size", [(1, 1), (2, 1), (1, 2), (5, 6), (6, 7), (7, 7)])
def test_indices_say_where_whatever_the_window_was(size, out_size) -> None:
    indices = rng.integers(-1, math.prod(size), (2, 3, *out_size))
    gradient = rng.integers(1, 9, indices.shape).astype(np.float64)
    if any(windows > pixels + 1 for windows, pixels in zip(out_size, size, strict=True)):
        with pytest.raises(ValueError, match="grad_output has more windows than input_size"):
            grad.max_pool2d(gradient, indices, (2, 3, *size))
        return
    expected = np.zeros((6, math.prod(size) + 1))
    np.add.at(expected, (np.arange(6)[:, None], indices.reshape(6, -1)), gradient.reshape(6, -1))
    result = grad.max_pool2d(gradient, indices, (2, 3, *size))
    np.testing.assert_array_equal(result.reshape(6, -1), expected[:, :-1])


GATHERED = [
    replace(parse(text), direction="backward_input")
    for text in [
        "n2c70h9w8_max3u2p1_nhwc",
        "n1c16h7w9_max2_f64_nhwc",
        "n1c5h6w2_max3u1p1_nhwc",
        "n1c33h2w7_max3u3p1_nhwc",
    ]
]


@pytest.mark.parametrize("problem", GATHERED, ids=lambda p: p.descriptor)
def test_indices_in_their_windows_need_no_second_look(problem: PoolProblem) -> None:
    gradient, saved, expected = case(problem)
    kernel, out = make(problem, "direct", threads=2), np.empty_like(expected, problem.dtype)
    out = as_format(out, problem.memory_format)
    kernel.run(gradient, out, *saved)
    assert_close(out, expected, problem)
    assert isinstance(kernel, pool_backward.GatherMaxima)
    assert "anywhere" not in kernel.__dict__


@pytest.mark.parametrize("one", [False, True], ids=["all", "one"])
@pytest.mark.parametrize("problem", GATHERED, ids=lambda p: p.descriptor)
def test_indices_that_are_not_in_their_windows(problem: PoolProblem, one: bool) -> None:
    gradient, (indices,), _ = case(problem)
    area = math.prod(problem.in_size)
    wrong = rng.integers(-2, area + 2, indices.shape)
    for place in [area - 1, 0, problem.in_size[1] - 1, -1, -(2**63), 2**32] if one else [0]:
        if one:
            wrong = indices.copy()
            wrong[0, 3, 0, 0] = place
        expected = pool_input(problem, gradient, wrong)
        out = guarded(as_format(np.full(problem.in_shape, np.nan, problem.dtype), problem.memory_format), True)
        make(problem, "direct", threads=2).run(gradient, out, as_format(wrong, problem.memory_format))
        np.testing.assert_allclose(out, expected, 1e-5, 1e-5)


def test_a_gathered_sum_has_the_bits_of_a_scattered_one() -> None:
    for problem in GATHERED:
        gradient, saved, _ = case(problem)
        out = [as_format(np.empty(problem.in_shape, problem.dtype), problem.memory_format) for _ in range(2)]
        kernel = make(problem, "direct")
        kernel.run(gradient, out[0], *saved)
        kernel.anywhere.run(gradient, out[1], *saved)
        assert out[0].tobytes() == out[1].tobytes()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("pool", [Pool("avg", 3, 1, 1), Pool("avg", (2, 900), (1, 2)), Pool("lp", (1, 700), 5)])
def test_long_rows(pool, memory_format) -> None:
    x = 1 + rng.random((1, 2, 3, 2500))
    saved = saved_by(pool, x)
    gradient = rng.standard_normal((1, 2, *pool.output_size((3, 2500))))
    problem = PoolProblem(1, 2, (3, 2500), pool, "float64", direction="backward_input")
    gradient, *kept = (as_format(a, memory_format) for a in (gradient, *saved))
    result = call(pool, gradient, x.shape, tuple(kept))
    np.testing.assert_allclose(result, pool_input(problem, gradient, *saved), 1e-10, 1e-10)


@pytest.mark.parametrize("problem", SELECTION, ids=lambda p: p.descriptor)
def test_read_only_arrays(problem: PoolProblem) -> None:
    gradient, saved, expected = case(problem)
    gradient, *saved = (np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for a in (gradient, *saved))
    assert not gradient.flags.writeable
    assert_close(call(problem.pool, gradient, problem.in_shape, tuple(saved)), expected, problem)


def test_a_gradient_may_be_a_broadcast_number() -> None:
    for shape in ((2, 3, 4, 5), (1, 20, 1, 1)):
        gradient = np.broadcast_to(np.float32(2), shape)
        size = (*shape[:2], 2 * shape[2], 3 * shape[3])
        np.testing.assert_allclose(grad.avg_pool2d(gradient, size, (2, 3)), np.full(size, 1 / 3), rtol=1e-6)


def test_global_pooling_is_a_window_of_the_whole_plane() -> None:
    x = rng.standard_normal((2, 5, 6, 7))
    gradient = rng.standard_normal((2, 5, 1, 1))
    average = grad.avg_pool2d(gradient, x.shape, x.shape[-2:])
    np.testing.assert_allclose(average, np.broadcast_to(gradient / 42, x.shape))
    values, indices = fastconv.max_pool2d(x, x.shape[-2:], return_indices=True)
    np.testing.assert_array_equal(values, fastconv.global_max_pool2d(x))
    maximum = grad.max_pool2d(gradient, indices, x.shape)
    np.testing.assert_array_equal(maximum, np.where(x == values, gradient, 0))


def test_arguments_may_be_lists_and_calls_may_repeat() -> None:
    gradient = rng.standard_normal((1, 3, 4, 4))
    for _ in range(2):
        result = grad.avg_pool2d(gradient, [1, 3, 8, 8], [2, 2])
        np.testing.assert_array_equal(result, grad.avg_pool2d(gradient, (1, 3, 8, 8), 2))


def test_nothing_needs_to_be_measured() -> None:
    fastconv.set_mode("wisdom")
    try:
        assert grad.avg_pool2d(np.ones((1, 1, 3, 3)), (1, 1, 5, 5), 2, padding=1).shape == (1, 1, 5, 5)
    finally:
        fastconv.set_mode("heuristic")


def test_workspace_is_a_few_rows() -> None:
    problem = PoolProblem(4, 64, (100, 200), Pool("avg", 3, 2, 1), direction="backward_input")
    assert make(problem, "direct", threads=2).workspace_bytes < 2 * 4 * 4 * 200
    assert make(replace(problem, memory_format="channels_last"), "direct").workspace_bytes == 0


GRADIENT, INDICES, SIZE = np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 4), np.int64), (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "grad_output must be float32 or float64, got int64", (INDICES, SIZE, 2)),
        (ValueError, "grad_output must have 4 axes|grad_output must have 3 or 4 axes", (np.zeros((4, 4)), SIZE, 2)),
        (ValueError, r"grad_output must have shape \(1, 2, 3, 3\) for input_size", (GRADIENT, SIZE, 3, 2)),
        (ValueError, r"grad_output must have shape \(1, 3, 4, 4\)", (GRADIENT, (1, 3, 8, 8), 2)),
        (ValueError, "input_size must be a shape of 4 axes", (GRADIENT, (2, 8, 8), 2)),
        (ValueError, "input_size must be a shape of 4 axes", (GRADIENT, 8, 2)),
        (ValueError, "kernel_size must be at least 1", (GRADIENT, SIZE, 0)),
        (ValueError, "padding must be at most half", (GRADIENT, SIZE, 2, 2, 2)),
    ],
)
def test_errors_name_the_argument(error, message, arguments) -> None:
    with pytest.raises(error, match=message):
        grad.avg_pool2d(*arguments)


def test_errors_about_what_the_forward_pass_kept() -> None:
    with pytest.raises(TypeError, match="indices must be an int64 array, got int32"):
        grad.max_pool2d(GRADIENT, INDICES.astype(np.int32), SIZE)
    with pytest.raises(ValueError, match=r"indices must have the shape of grad_output, \(1, 2, 4, 4\), got"):
        grad.max_pool2d(GRADIENT, INDICES[..., 1:], SIZE)
    with pytest.raises(ValueError, match="out must have shape"):
        grad.max_pool2d(GRADIENT, INDICES, SIZE, out=np.zeros((1, 2, 8, 9)))
    with pytest.raises(ValueError, match="out must not overlap"):
        grad.max_pool2d(GRADIENT, INDICES, GRADIENT.shape, out=GRADIENT)
    x, y = np.zeros(SIZE), np.zeros(GRADIENT.shape)
    with pytest.raises(TypeError, match="input must have the dtype of grad_output, float64, got float32"):
        grad.lp_pool2d(GRADIENT, x.astype(np.float32), y, 2, 2)
    with pytest.raises(ValueError, match="output must have the shape of grad_output"):
        grad.lp_pool2d(GRADIENT, x, x, 2, 2)
    with pytest.raises(ValueError, match="grad_output must have shape"):
        grad.lp_pool2d(GRADIENT, x[..., 1:], y, 2, 2)
    with pytest.raises(ValueError, match="input must have as many axes as grad_output"):
        grad.lp_pool2d(GRADIENT[0], x, y[0], 2, 2)
    with pytest.raises(ValueError, match="algorithm must be None or one of direct, reference"):
        grad.max_pool2d(GRADIENT, INDICES, SIZE, algorithm="im2col")

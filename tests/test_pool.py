"""Pooling as users call it."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import FORMATS, as_format, spread

import fastconv
from fastconv.pooling import Pool
from fastconv.problem import PoolProblem
from fastconv.reference import pooling

ALGORITHMS = ["direct", "im2col", "reference"]
rng = np.random.default_rng(7)


def call(pool: Pool, x: np.ndarray, **options):
    """The public function for a pooling window."""
    window = {"stride": pool.stride, "ceil_mode": pool.ceil_mode} | options
    if pool.mode == "max":
        return fastconv.max_pool2d(x, pool.kernel_size, padding=pool.padding, dilation=pool.dilation, **window)
    if pool.mode == "avg":
        window |= {"padding": pool.padding, "count_include_pad": pool.count_include_pad}
        return fastconv.avg_pool2d(x, pool.kernel_size, **window)
    return fastconv.lp_pool2d(x, pool.norm_type, pool.kernel_size, **window)


def torch_call(pool: Pool, x: np.ndarray):
    torch = pytest.importorskip("torch")
    functional, x = torch.nn.functional, torch.from_numpy(np.ascontiguousarray(x))
    if pool.mode == "max":
        return functional.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
        )
    if pool.mode == "avg":
        return functional.avg_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad
        )
    return functional.lp_pool2d(x, pool.norm_type, pool.kernel_size, pool.stride, pool.ceil_mode)


def close(actual: np.ndarray, expected) -> None:
    tolerance = 1e-5 if actual.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=tolerance, atol=tolerance)


@st.composite
def calls(draw) -> tuple[Pool, np.ndarray]:
    """A window and an image that it fits, of small integers so that many maxima are equal."""
    mode = draw(st.sampled_from(["max", "avg", "lp"]))
    kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if mode == "max" else (1, 1)
    padding = tuple(draw(st.integers(0, f // 2)) if mode != "lp" else 0 for f in kernel)
    pool = Pool(
        mode, kernel, draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), padding, dilation,
        draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([1, 2, 3, 2.5])),
    )  # fmt: skip
    size = draw(st.integers(1, 20)), draw(st.integers(1, 45))
    assume(all(n + 2 * p > d * (f - 1) for n, p, d, f in zip(size, padding, dilation, kernel, strict=True)))
    batch, channels = draw(st.integers(0, 2)), draw(st.sampled_from([1, 2, 5, 17, 70]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-3, 4, (batch, channels, *size))
    values = np.abs(values) if mode == "lp" else values
    x = as_format(values.astype(draw(st.sampled_from(["float32", "float64"]))), draw(st.sampled_from(FORMATS)))
    return pool, x


@settings(max_examples=120, deadline=None)
@given(calls(), st.sampled_from(ALGORITHMS))
def test_any_call_equals_the_oracle(case, algorithm):
    pool, x = case
    expected, positions = pooling(pool, x)
    if pool.mode == "max":
        values, indices = call(pool, x, algorithm=algorithm, return_indices=True)
        np.testing.assert_array_equal(indices, positions)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(call(pool, x, algorithm=algorithm), values)
    else:
        values = call(pool, x, algorithm=algorithm)
    assert values.dtype == x.dtype
    close(values, expected)


@settings(max_examples=120, deadline=None)
@given(calls())
def test_any_call_equals_torch(case):
    pool, x = case
    expected = torch_call(pool, x)
    if pool.mode != "max":
        close(call(pool, x), expected)
        return
    values, indices = call(pool, x, return_indices=True)
    np.testing.assert_array_equal(values, expected[0])
    some = indices >= 0  # torch's index of a window without a pixel is outside the image
    np.testing.assert_array_equal(indices[some], expected[1].numpy()[some])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "pool", [Pool("max", 3, 2, 1), Pool("max", 2, 1), Pool("avg", 3, 3, 1), Pool("lp", 2)], ids=str
)
def test_nan_and_infinity_as_in_torch(pool, algorithm, memory_format):
    x = rng.integers(1, 9, (2, 19, 14, 21)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.02] = value
    x[0, 0] = -np.inf
    expected = torch_call(pool, x)
    x = as_format(x, memory_format)
    if pool.mode == "max":
        values, indices = call(pool, x, algorithm=algorithm, return_indices=True)
        np.testing.assert_array_equal(values, expected[0])
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_array_equal(call(pool, x, algorithm=algorithm), expected[0])
    else:
        close(call(pool, x, algorithm=algorithm), expected)


WIDE = [
    Pool("max", 3, 1, 1), Pool("max", (2, 5), 2), Pool("avg", 3, (1, 2), 1, count_include_pad=False), Pool("avg", 4, 3),
    Pool("lp", 3, 2), Pool("max", (1, 1500), 7), Pool("avg", (2, 2000), (1, 9), (0, 40)),
    Pool("max", (2, 600), 3, 0, (1, 4)), Pool("avg", (3, 2500)), Pool("max", (1, 2500), 1),
]  # fmt: skip


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("pool", WIDE, ids=lambda pool: pool.descriptor)
def test_images_wider_than_the_kernels_line(pool, memory_format):
    x = as_format(rng.integers(0, 1000, (1, 2, 4, 2500)).astype(np.float64), memory_format)
    expected, positions = pooling(pool, x)
    close(call(pool, x), expected)
    if pool.mode == "max":
        values, indices = call(pool, x, return_indices=True)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(indices, positions)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mode", ["max", "avg", "lp"])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (3, 2)])
def test_small_windows_of_small_maps(kernel, mode, memory_format):
    for size, stride, ceil_mode in product([(1, 3), (2, 2), (3, 17), (4, 40)], [1, 2], [False, True]):
        options = {"norm_type": 2.0} if mode == "lp" else {"padding": (kernel[0] // 2, 1)}
        fitting = tuple(map(max, kernel, size)) if mode == "lp" else size  # which has no padding
        x = as_format(rng.standard_normal((2, 19, *fitting), np.float32), memory_format)
        x[0, 3:5, 0, ::2] = np.nan
        pool = Pool(mode, kernel, stride, ceil_mode=ceil_mode, **options)
        expected = call(pool, x, algorithm="reference")
        assert np.isnan(expected).any() and np.isfinite(expected).any()
        np.testing.assert_allclose(call(pool, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(2, 130, 7, 7), (1, 3, 112, 112), (1, 1, 1, 9), (3, 65, 1, 1), (1, 4, 33, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_pooling(shape, dtype, memory_format):
    x = as_format(rng.standard_normal(shape).astype(dtype), memory_format)
    average, maximum = fastconv.global_avg_pool2d(x), fastconv.global_max_pool2d(x)
    assert average.shape == maximum.shape == (*shape[:2], 1, 1)
    close(average, x.mean((2, 3), dtype=np.float64, keepdims=True))
    np.testing.assert_array_equal(maximum, x.max((2, 3), keepdims=True))
    assert fastconv.global_avg_pool2d(x[0]).shape == (shape[1], 1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_average_of_a_constant_is_exact(dtype, memory_format):
    x = as_format(np.full((1, 20, 50, 49), 0.1, dtype), memory_format)
    for pool in (Pool("avg", 2), Pool("avg", 2, 1, 1, count_include_pad=False)):
        assert (call(pool, x) == x.flat[0]).all()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_result_has_the_memory_format_of_the_input(memory_format):
    x = as_format(rng.standard_normal((2, 6, 9, 10)).astype(np.float32), memory_format)
    values, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    for result in (values, indices, fastconv.avg_pool2d(x, 3, 2, 1), fastconv.lp_pool2d(x, 2, 2)):
        as_nhwc = result.transpose(0, 2, 3, 1)
        assert (result if memory_format == "contiguous" else as_nhwc).flags.c_contiguous


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_input_and_out_of_any_strides(algorithm, memory_format):
    whole = rng.standard_normal((2, 7, 23, 30))
    for pool in (Pool("max", 3, 2, 1), Pool("avg", 2, 2, 1), Pool("lp", 2)):
        for x in (spread(whole, memory_format), whole[:, ::2, ::-1, ::3], np.broadcast_to(whole[:1, :1], whole.shape)):
            expected, _ = pooling(pool, x)
            out = spread(np.zeros(expected.shape), "channels_last")
            assert call(pool, x, algorithm=algorithm, out=out) is out
            close(out, expected)
            close(call(pool, x, algorithm=algorithm), expected)


def test_unbatched_images():
    x = rng.standard_normal((5, 9, 8)).astype(np.float32)
    values, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    batched = fastconv.max_pool2d(x[None], 3, 2, 1, return_indices=True)
    np.testing.assert_array_equal(values, batched[0][0])
    np.testing.assert_array_equal(indices, batched[1][0])
    out = np.empty_like(values)
    assert fastconv.max_pool2d(x, 3, 2, 1, out=out) is out
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_indices_beside_an_out_of_another_layout(memory_format):
    x = rng.integers(0, 5, (2, 5, 9, 8)).astype(np.float64)
    expected, positions = pooling(Pool("max", 2), x)
    out = as_format(np.zeros_like(expected), memory_format)
    values, indices = fastconv.max_pool2d(x, 2, return_indices=True, out=out)
    assert values is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(indices, positions)
    assert (np.take_along_axis(x.reshape(2, 5, -1), indices.reshape(2, 5, -1), 2) == out.reshape(2, 5, -1)).all()


def test_arguments_may_be_lists_and_calls_may_repeat():
    x = rng.standard_normal((1, 3, 8, 8))
    for _ in range(2):
        np.testing.assert_array_equal(fastconv.max_pool2d(x, [2, 2]), fastconv.max_pool2d(x, 2))
    assert fastconv.avg_pool2d(x, 2).dtype == np.float64
    assert fastconv.avg_pool2d(x.astype(np.float32), 2).dtype == np.float32


def test_a_cube_root_of_a_negative_sum_is_nan():
    x = np.full((1, 1, 2, 2), -1.0)
    assert math.isnan(fastconv.lp_pool2d(x, 3, 2).item())


def test_workspace_is_bounded():
    problem = PoolProblem(1, 64, (224, 224), Pool("max", 224))
    kernel = fastconv.dispatch.kernel_for(problem, "im2col", threads=1)[0]
    assert kernel.workspace_bytes <= 1 << 21
    assert fastconv.dispatch.kernel_for(problem, "direct", threads=1)[0].workspace_bytes == 0


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "kernel_size 9 .* use a smaller kernel", {"kernel_size": 9}),
        (ValueError, "kernel_size must be at least 1", {"kernel_size": 0}),
        (ValueError, "kernel_size must be an int or a pair", {"kernel_size": 2.5}),
        (ValueError, "stride must be at least 1", {"kernel_size": 2, "stride": 0}),
        (ValueError, "padding must be at most half", {"kernel_size": 2, "padding": 2}),
        (ValueError, "algorithm must be None or one of", {"kernel_size": 2, "algorithm": "fast"}),
        (ValueError, r"out must have shape \(1, 2, 4, 4\)", {"kernel_size": 2, "out": np.zeros((1, 2, 4, 5))}),
        (TypeError, "out must be .* float64", {"kernel_size": 2, "out": np.zeros((1, 2, 4, 4), np.float32)}),
    ],
)
def test_errors_name_the_argument(error, message, arguments):
    with pytest.raises(error, match=message):
        fastconv.max_pool2d(np.zeros((1, 2, 8, 8)), **arguments)


def test_errors_about_the_image():
    with pytest.raises(ValueError, match="x must have 3 or 4 axes"):
        fastconv.max_pool2d(np.zeros((8, 8)), 2)
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        fastconv.avg_pool2d(np.zeros((1, 1, 8, 8), np.int64), 2)
    with pytest.raises(ValueError, match="norm_type must be positive"):
        fastconv.lp_pool2d(np.zeros((1, 1, 8, 8)), 0, 2)
    x = np.zeros((1, 1, 8, 8))
    with pytest.raises(ValueError, match="out must not overlap"):
        fastconv.max_pool2d(x, 1, out=x)


def test_kernels_refuse_indices_that_do_not_fit():
    x, out = np.zeros((1, 2, 8, 8), np.float32), np.zeros((1, 2, 4, 4), np.float32)
    plain = fastconv.dispatch.kernel_for(PoolProblem(1, 2, (8, 8), Pool("max", 2)), "direct")[0]
    indexed = fastconv.dispatch.kernel_for(PoolProblem(1, 2, (8, 8), Pool("max", 2), return_indices=True), "direct")[0]
    with pytest.raises(ValueError, match="returns none"):
        plain.run(x, out, np.zeros(out.shape, np.int64))
    for indices in (None, np.zeros(out.shape, np.int32), as_format(np.zeros(out.shape, np.int64), "channels_last")):
        with pytest.raises(ValueError, match="indices"):
            indexed.run(x, out, indices)


def test_a_second_call_prepares_nothing(monkeypatch):
    from fastconv.functional import pool

    prepared = []
    monkeypatch.setattr(pool, "_prepare", lambda *given, real=pool._prepare: prepared.append(given) or real(*given))
    for shape in ((3, 9, 8), (2, 3, 9, 8)):
        x = np.zeros(shape, np.float32)
        for _ in range(3):
            fastconv.avg_pool2d(x, 3, 2)
    assert len(prepared) <= 2

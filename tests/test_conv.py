"""conv2d, conv1d and plans as users call them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FORMATS, as_format, assert_close, guarded, poisoned

import fastconv
from fastconv import algorithms
from fastconv.arrays import memory_format
from fastconv.dispatch import kernel_for
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem
from fastconv.reference import convolve

rng = np.random.default_rng(3)


def arrays(x_shape, weight_shape, dtype="float32", format="contiguous"):
    x = as_format(rng.standard_normal(x_shape).astype(dtype), format)
    weight = rng.standard_normal(weight_shape).astype(dtype) / np.sqrt(np.prod(weight_shape[1:]))
    return x, weight.astype(dtype), rng.standard_normal(weight_shape[0]).astype(dtype)


def is_format(array, format) -> bool:
    return (array if format == "contiguous" else array.transpose(0, 2, 3, 1)).flags.c_contiguous


def sizes(draw) -> tuple:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, filters = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    x = (draw(st.integers(0, 2)), groups * channels, draw(st.integers(1, 12)), draw(st.integers(1, 14)))
    return x, (groups * filters, channels, draw(st.integers(1, 4)), draw(st.integers(1, 4))), groups


@st.composite
def calls(draw):
    """Shapes and options that a user may give; some do not fit together."""
    x, weight, groups = sizes(draw)
    small = st.integers(1, 3)
    padding = st.one_of(
        st.integers(0, 4), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["same", "valid"]),
        st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    )  # fmt: skip
    options = {
        "stride": draw(st.one_of(small, st.tuples(small, small))),
        "padding": draw(padding),
        "dilation": draw(st.one_of(small, st.tuples(small, small))),
        "groups": groups,
        "activation": draw(st.sampled_from([None, "relu", "relu6", "leaky_relu"])),
        "pool": draw(st.sampled_from([None, None, Pool("max", 2), Pool("avg", 3, 2, 1), Pool("max", 3, 2, 1)])),
    }
    return x, weight, options, draw(st.sampled_from(["float32", "float64"])), draw(st.sampled_from(FORMATS))


@settings(max_examples=100, deadline=None)
@given(calls(), st.booleans(), st.data())
def test_any_call_agrees_with_the_oracle(call, with_bias, data) -> None:
    x_shape, weight_shape, options, dtype, format = call
    x, weight, bias = arrays(x_shape, weight_shape, dtype, format)
    bias = bias if with_bias else None
    try:
        problem = ConvProblem.create(
            x_shape, weight_shape, dtype=dtype, memory_format=memory_format(x), bias=with_bias, **options
        )
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            fastconv.conv2d(x, weight, bias, **options)
        assert str(raised.value) == str(error)
        return
    expected = convolve(problem, x, weight, bias)
    algorithm = data.draw(st.sampled_from([None, *algorithms.supporting(problem)]))
    assert_close(fastconv.conv2d(x, weight, bias, **options, algorithm=algorithm), expected, problem)
    plan = fastconv.plan(x.shape, weight, bias, **options, memory_format=format)
    assert_close(plan(x), expected, problem)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_memory_format_and_dtype_are_kept(format, dtype) -> None:
    x, weight, bias = arrays((2, 5, 9, 8), (7, 5, 3, 3), dtype, format)
    y = fastconv.conv2d(x, weight, bias, padding=1)
    assert y.shape == (2, 7, 9, 8) and y.dtype == dtype and is_format(y, format)
    assert is_format(fastconv.plan(x.shape, weight, bias, memory_format=format)(x), format)


def test_unbatched_input_gives_unbatched_output() -> None:
    x, weight, bias = arrays((1, 5, 9, 8), (7, 5, 3, 3))
    expected = fastconv.conv2d(x, weight, bias)
    np.testing.assert_array_equal(fastconv.conv2d(x[0], weight, bias), expected[0])
    plan, out = fastconv.plan(x[0].shape, weight, bias), np.empty_like(expected[0])
    np.testing.assert_array_equal(plan(x[0]), plan(x)[0])
    assert plan(x[0], out) is out and fastconv.conv2d(x[0], weight, bias, out=out) is out


def test_empty_batch() -> None:
    x, weight, bias = arrays((0, 5, 9, 8), (7, 5, 3, 3))
    assert fastconv.conv2d(x, weight, bias).shape == (0, 7, 7, 6)
    assert fastconv.plan(x.shape, weight, bias)(x).shape == (0, 7, 7, 6)


@pytest.mark.parametrize("view", ["flipped", "every second", "transposed", "broadcast", "read-only"])
def test_any_strides(view) -> None:
    x, weight, bias = arrays((2, 5, 12, 12), (7, 5, 3, 3))
    x = {
        "flipped": x[:, ::-1, ::-1, ::-1], "every second": x[:, :, ::2, ::2], "transposed": x.transpose(0, 1, 3, 2),
        "broadcast": np.broadcast_to(x[:1, :1], x.shape), "read-only": x,
    }[view]  # fmt: skip
    x.flags.writeable = False
    problem = ConvProblem.create(x.shape, weight.shape, padding=1)
    for name in algorithms.supporting(problem):
        y = fastconv.conv2d(x, weight[:, :, ::-1], bias[::-1], padding=1, algorithm=name)
        assert_close(y, convolve(problem, x, weight[:, :, ::-1], bias[::-1]), problem)


@pytest.mark.parametrize("format", FORMATS)
def test_out_is_written_and_returned(format) -> None:
    x, weight, bias = arrays((2, 5, 9, 8), (7, 5, 3, 3), format=format)
    expected = fastconv.conv2d(x, weight, bias)
    for result_format in FORMATS:
        out = poisoned(expected.shape, "float32", result_format)
        assert fastconv.conv2d(x, weight, bias, out=out.array) is out.array
        np.testing.assert_array_equal(out.array, expected)
        out.check()


def test_arguments_at_the_end_of_memory() -> None:
    x, weight, bias = arrays((1, 3, 13, 11), (17, 3, 3, 3))
    y = fastconv.conv2d(guarded(x), guarded(weight), guarded(bias), padding=1)
    np.testing.assert_array_equal(y, fastconv.conv2d(x, weight, bias, padding=1))


def test_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    x, weight, _ = arrays((1, 2, 6, 7), (3, 2, 4, 2))
    y = fastconv.conv2d(x, weight, padding="same")
    np.testing.assert_array_equal(y, fastconv.conv2d(x, weight, padding=((1, 2), (0, 1))))
    assert y.shape[2:] == x.shape[2:]


@pytest.mark.parametrize(
    "options", [{}, {"padding": 2, "dilation": 2}, {"stride": 3, "padding": (4, 1)}, {"groups": 2}]
)
def test_conv1d_is_conv2d_one_pixel_high(options) -> None:
    x, weight, bias = arrays((2, 6, 1, 31), (8, 6 // options.get("groups", 1), 1, 5))
    wide = (
        {**options, "padding": ((0, 0), options["padding"])} if isinstance(options.get("padding"), tuple) else options
    )
    if isinstance(wide.get("padding"), int):
        wide = {**wide, "padding": (0, wide["padding"])}
    wide = {**wide, "stride": (1, wide.get("stride", 1)), "dilation": (1, wide.get("dilation", 1))}
    expected = fastconv.conv2d(x, weight, bias, **wide)[:, :, 0]
    y = fastconv.conv1d(x[:, :, 0], weight[:, :, 0], bias, **options)
    np.testing.assert_array_equal(y, expected)
    out = np.empty_like(y)
    assert fastconv.conv1d(x[:, :, 0], weight[:, :, 0], bias, **options, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(fastconv.conv1d(x[0, :, 0], weight[:, :, 0], bias, **options), expected[0])


def bad_calls() -> dict:
    x, w, b = np.zeros((1, 4, 8, 8), np.float32), np.zeros((6, 4, 3, 3), np.float32), np.zeros(6, np.float32)
    xwb = (x, w, b)
    return {
        "rank of x": ((x[0, 0], w, b), {}, ValueError, r"x must have 3 or 4 axes, got shape \(8, 8\)"),
        "rank of weight": ((x, w[0], b), {}, ValueError, "weight must have 4 axes"),
        "integers": ((x.astype(int), w, b), {}, TypeError, r"x must be float32 or float64, got int64; use x\.astype"),
        "complex": ((x, w.astype(complex), b), {}, TypeError, "weight must be float32 or float64, got complex128"),
        "half": ((x.astype("f2"), w, b), {}, TypeError, "got float16"),
        "byte order": ((x.astype(">f4"), w, b), {}, TypeError, "got >f4"),
        "mixed dtypes": ((x, w.astype("f8"), b), {}, TypeError, "weight must have the dtype of x, float32"),
        "bias dtype": ((x, w, b.astype("f8")), {}, TypeError, "bias must have the weights' dtype"),
        "bias shape": ((x, w, b[:5]), {}, ValueError, r"bias must have shape \(6,\), one for each filter, got \(5,\)"),
        "channels": ((x, w[:, :3], b), {}, ValueError, "weight has 3 channels per filter, but x has 4"),
        "groups": (xwb, {"groups": 3}, ValueError, "groups must divide"),
        "zero groups": (xwb, {"groups": 0}, ValueError, "groups must be a positive int, got 0"),
        "kernel": ((x[:, :, :2], w, b), {}, ValueError, "kernel_size 3 .* more than the padded input of 2"),
        "padding": (xwb, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        "padding name": (xwb, {"padding": "full"}, ValueError, "'same' or 'valid', got 'full'"),
        "same, strided": (xwb, {"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
        "stride": (xwb, {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        "stride type": (xwb, {"stride": 1.5}, ValueError, "stride must be an int or a pair of ints, got 1.5"),
        "dilation": (xwb, {"dilation": (1, 0)}, ValueError, r"dilation must be at least 1, got \(1, 0\)"),
        "activation": (xwb, {"activation": "tanh"}, ValueError, "activation must be None or one of .* got 'tanh'"),
        "pool": (xwb, {"pool": "max"}, ValueError, "pool must be a fastconv.Pool or None, got 'max'"),
        "algorithm": (xwb, {"algorithm": "fft"}, ValueError, "algorithm must be None or one of direct, .* got 'fft'"),
        "unsupported": (xwb, {"algorithm": "depthwise"}, ValueError, "'depthwise' does not support .* one group; use"),
        "pool window": (xwb, {"pool": Pool("max", 9)}, ValueError, "kernel_size 9"),
        "empty axis": ((x[:, :, :0], w, b), {}, ValueError, "x must not have an empty axis other than N"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_named(name) -> None:
    (x, weight, bias), options, error, message = bad_calls()[name]
    with pytest.raises(error, match=message):
        fastconv.conv2d(x, weight, bias, **options)


def bad_outs() -> dict:
    x = np.zeros((1, 4, 8, 8), np.float32)
    frozen = np.zeros((1, 4, 8, 8), np.float32)
    frozen.flags.writeable = False
    twice = np.lib.stride_tricks.as_strided(x.copy(), x.shape, (1024, 0, 32, 4))
    return {
        "shape": (x, x[:, :, 1:].copy(), ValueError, r"out must have shape \(1, 4, 8, 8\), got \(1, 4, 7, 8\)"),
        "dtype": (x, np.zeros_like(x, "f8"), TypeError, "out must be a NumPy array of float32, got float64"),
        "list": (x, [1.0], TypeError, "out must be a NumPy array"),
        "read-only": (x, frozen, ValueError, "out must be writeable"),
        "the input": (x, x, ValueError, "out must not overlap x"),
        "part of the input": (x, x[:, ::-1], ValueError, "out must not overlap x"),
        "itself": (x, twice, ValueError, "out has elements that share memory"),
    }


@pytest.mark.parametrize("name", bad_outs())
def test_bad_out_is_named_and_nothing_written(name) -> None:
    x, out, error, message = bad_outs()[name]
    weight = np.ones((4, 4, 3, 3), np.float32)
    before = np.array(out, copy=True)
    with pytest.raises(error, match=message):
        fastconv.conv2d(x, weight, padding=1, out=out)
    plan = fastconv.plan(x.shape, weight, padding=1)
    plan(x, np.empty_like(x))  # arrays like this one are checked less the next time
    with pytest.raises(error, match=message):
        plan(x, out)
    np.testing.assert_array_equal(out, before)


def test_a_plan_refuses_what_it_was_not_made_for() -> None:
    x, weight, bias = arrays((1, 4, 8, 8), (6, 4, 3, 3))
    plan = fastconv.plan(x.shape, weight, bias)
    with pytest.raises(ValueError, match=r"x must have the plan's shape \(1, 4, 8, 8\), got \(1, 4, 8, 7\)"):
        plan(x[..., 1:])
    with pytest.raises(TypeError, match="x must have the plan's dtype float32, got float64"):
        plan(x.astype("f8"))
    with pytest.raises(TypeError, match="dtype must agree"):
        fastconv.plan(x.shape, weight, dtype="float64")
    with pytest.raises(ValueError, match="memory_format must be"):
        fastconv.plan(x.shape, weight, memory_format="nhwc")


def test_a_plan_keeps_its_own_weights() -> None:
    x, weight, bias = arrays((1, 4, 8, 8), (6, 4, 3, 3))
    for algorithm in algorithms.supporting(ConvProblem.create(x.shape, weight.shape)):
        w, b = weight.copy(), bias.copy()
        plan = fastconv.plan(x.shape, w, b, algorithm=algorithm)
        expected = plan(x)
        w[:], b[:] = 0, 0
        np.testing.assert_array_equal(plan(x), expected)


def test_a_plan_explains_itself() -> None:
    x, weight, bias = arrays((1, 4, 8, 8), (6, 4, 3, 3))
    explanation = fastconv.plan(x.shape, weight, bias, activation="relu", algorithm="im2col").explain()
    assert explanation.algorithm == "im2col" and explanation.source == "requested"
    assert explanation.workspace_bytes > 0 and explanation.predicted_ns > 0
    assert explanation.descriptor == "n1c4h8w8k6r3s3_f32_nchw_bias_relu"
    assert explanation.others["depthwise"] == "it has one group"
    assert "im2col" in str(explanation) and explanation.as_dict()["params"] == explanation.params


def test_wisdom_of_a_bare_convolution_serves_with_bias_and_activation(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FASTCONV_WISDOM", str(tmp_path / "wisdom.jsonl"))
    _, weight, bias = arrays((1, 4, 8, 8), (6, 4, 3, 3))
    fastconv.tune("n1c4h8w8k6r3s3")
    bare = fastconv.plan((1, 4, 8, 8), weight).choice
    dressed = fastconv.plan((1, 4, 8, 8), weight, bias, activation="relu").choice
    assert bare.source == dressed.source == "wisdom" and bare.candidate == dressed.candidate


def test_one_plan_in_many_threads() -> None:
    _, weight, bias = arrays((2, 16, 30, 30), (24, 16, 3, 3))
    plan = fastconv.plan((2, 16, 30, 30), weight, bias, padding=1, pool=Pool("max", 2))
    inputs = [arrays((2, 16, 30, 30), (1, 1, 1, 1))[0] for _ in range(8)]
    expected = [plan(x) for x in inputs]
    barrier = threading.Barrier(4)

    def work(index: int) -> bool:
        if index < 4:
            barrier.wait()
        return all((plan(inputs[i % 8]) == expected[i % 8]).all() for i in range(index, index + 10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes_on() -> None:
    x, weight, bias = arrays((2, 64, 40, 40), (96, 64, 3, 3))
    plan = fastconv.plan(x.shape, weight, bias)
    expected = plan(x)
    child = os.fork()
    if child == 0:
        same = (plan(x) == expected).all() and (fastconv.plan(x.shape, weight, bias)(x) == expected).all()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_kernel_first_used_on_one_thread_uses_more_later() -> None:
    x, weight, _ = arrays((2, 32, 60, 60), (64, 32, 3, 3))
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        expected = fastconv.conv2d(x, weight)
    finally:
        numba.set_num_threads(before)
    problem = ConvProblem.create(x.shape, weight.shape, raw=True)
    assert kernel_for(problem)[0].threads == numba.config.NUMBA_NUM_THREADS
    np.testing.assert_array_equal(fastconv.conv2d(x, weight), expected)


def test_conv2d_in_many_threads() -> None:
    x, weight, bias = arrays((2, 16, 30, 30), (24, 16, 3, 3))
    expected = [fastconv.conv2d(x * i, weight, bias, padding=1) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda i: fastconv.conv2d(x * (i % 8), weight, bias, padding=1), range(40))
        assert all((y == expected[i % 8]).all() for i, y in enumerate(results))


def run_with(variables: dict[str, str], code: str) -> subprocess.CompletedProcess:
    """Run code in a process with other environment variables."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def test_calls_take_turns_where_threads_cannot_be_shared() -> None:
    """Numba's workqueue layer, the only one that is always there, aborts on two parallel regions at once."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import numba, numpy as np, fastconv
x, w = np.ones((2, 16, 60, 60), np.float32), np.ones((24, 16, 3, 3), np.float32)
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(lambda i: fastconv.conv2d(i * x, w), range(24)))
assert all((y == 144 * i).all() for i, y in enumerate(results))
assert numba.threading_layer() == "workqueue"
"""
    done = run_with({"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}, code)
    assert done.returncode == 0, done.stderr


def test_an_unknown_mode_in_the_environment_is_named_at_the_first_call() -> None:
    code = "import numpy as np, fastconv; fastconv.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))"
    done = run_with({"FASTCONV_MODE": "fast"}, code)
    assert "ValueError: the environment variable FASTCONV_MODE must be one of" in done.stderr


@pytest.mark.parametrize(
    "shapes", [((1, 0, 8, 8), (4, 0, 3, 3)), ((1, 4, 8, 8), (0, 4, 3, 3)), ((1, 4, 8, 0), (2, 4, 1, 1))]
)
def test_a_plan_wants_something_to_compute(shapes) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        fastconv.plan(shapes[0], np.zeros(shapes[1], np.float32))


def test_mode_wisdom_wants_wisdom(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FASTCONV_WISDOM", str(tmp_path / "wisdom.jsonl"))
    x, weight, _ = arrays((1, 3, 7, 7), (5, 3, 3, 3))
    fastconv.set_mode("wisdom")
    try:
        with pytest.raises(LookupError, match="no wisdom for n1c3h7w7k5r3s3_f32_nchw_raw"):
            fastconv.conv2d(x, weight)
        fastconv.set_mode("measure")
        expected = fastconv.conv2d(x, weight)
        fastconv.set_mode("wisdom")
        np.testing.assert_array_equal(fastconv.conv2d(x, weight), expected)
    finally:
        fastconv.set_mode("heuristic")
    with pytest.raises(ValueError, match="mode must be one of"):
        fastconv.set_mode("fast")


def test_a_plan_for_an_empty_batch_explains_itself() -> None:
    plan = fastconv.plan((0, 3, 8, 8), np.ones((4, 3, 3, 3), np.float32), algorithm="direct")
    assert plan.explain().workspace_bytes == plan.workspace_bytes >= 0

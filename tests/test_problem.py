"""Problems: descriptors, sizes and errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import POOL_PROBLEMS, PROBLEMS

from fastconv.descriptor import parse
from fastconv.pooling import Pool
from fastconv.problem import ACTIVATIONS, ConvProblem, PoolProblem, Problem
from fastconv.sizes import conv_output_size

small = st.integers(1, 5)
pairs = st.tuples(small, small)
paddings = st.tuples(st.integers(0, 4), st.integers(0, 4))
dtypes = st.sampled_from(["float32", "float64"])
memory_formats = st.sampled_from(["contiguous", "channels_last"])


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    mode, kernel = draw(st.sampled_from(["max", "avg", "lp"])), draw(pairs)
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if mode == "max" else (1, 1)
    options = draw(st.tuples(st.booleans(), st.booleans()))  # ceil_mode, count_include_pad
    most = [(d * (f - 1) + 1) // 2 for d, f in zip(dilation, kernel, strict=True)]
    padding = (0, 0) if mode == "lp" else tuple(draw(st.integers(0, m)) for m in most)
    norm = draw(st.floats(0.01, 1e9, allow_subnormal=False))
    return Pool(mode, kernel, draw(st.none() | pairs), padding, dilation, *options, norm)


def fits(pool: Pool, size: tuple[int, int]) -> bool:
    try:
        pool.output_size(size)
    except ValueError:
        return False
    return True


epilogues = st.fixed_dictionaries(
    {"bias": st.booleans(), "activation": st.sampled_from([None, *ACTIVATIONS]), "raw": st.booleans()}
)
directions = st.sampled_from(
    [
        {"direction": "backward_input"},
        {"direction": "backward_input", "bias": True},
        {"direction": "backward_weight"},
    ]
)


@st.composite
def conv_problems(draw: st.DrawFn) -> ConvProblem:
    groups = draw(st.integers(1, 4))
    kernel, dilation, padding = draw(pairs), draw(pairs), draw(st.tuples(paddings, paddings))
    size = tuple(draw(st.integers(d * (f - 1) + 1, 60)) for f, d in zip(kernel, dilation, strict=True))
    channels, filters = draw(small), draw(small) * groups
    problem = ConvProblem.create(
        (draw(st.integers(0, 3)), channels * groups, *size), (filters, channels, *kernel), stride=draw(pairs),
        padding=padding, dilation=dilation, groups=groups, dtype=draw(dtypes), memory_format=draw(memory_formats),
        **draw(epilogues | directions),
    )  # fmt: skip
    if problem.direction != "forward":
        return problem
    pool = draw(st.none() | pools())
    return replace(problem, pool=pool) if pool and fits(pool, problem.conv_size) else problem


@st.composite
def pool_problems(draw: st.DrawFn) -> PoolProblem:
    pool = draw(pools())
    size = (draw(st.integers(13, 40)), draw(st.integers(13, 40)))
    return PoolProblem(
        draw(st.integers(0, 3)), draw(small), size, pool, draw(dtypes), draw(memory_formats), draw(st.booleans())
    )


@given(conv_problems() | pool_problems())
def test_a_descriptor_reads_back_as_its_problem(problem: Problem) -> None:
    assert parse(problem.descriptor) == problem
    assert hash(parse(problem.descriptor)) == hash(problem)


@pytest.mark.parametrize("problem", PROBLEMS + POOL_PROBLEMS, ids=lambda p: p.descriptor)
def test_listed_problems_read_back(problem: Problem) -> None:
    assert parse(problem.descriptor) == problem
    assert problem.flops < 2e7, "too slow for the oracle"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n1c64h56w56k64r3s3p1", ConvProblem(1, 64, (56, 56), 64, (3, 3), padding=((1, 1), (1, 1)))),
        (
            "n2c3h9w8k6r3s5p0.1.2.3u2.1d2g3_nhwc_relu_f64_bias",
            ConvProblem(2, 3, (9, 8), 6, (3, 5), (2, 1), ((0, 1), (2, 3)), (2, 2), 3, "float64", "channels_last", True,
                        "relu"),
        ),
        ("n1c8h9w9k8r1s1_max2_raw", ConvProblem(1, 8, (9, 9), 8, (1, 1), pool=Pool("max", 2), raw=True)),
        ("n1c64h112w112_max3u2p1_nhwc_indices",
         PoolProblem(1, 64, (112, 112), Pool("max", 3, 2, 1), memory_format="channels_last", return_indices=True)),
        ("n1c8h9w9_lp2.3u1n3ceil", PoolProblem(1, 8, (9, 9), Pool("lp", (2, 3), 1, ceil_mode=True, norm_type=3))),
        ("n1c8h9w9_avg3u2p1nopad", PoolProblem(1, 8, (9, 9), Pool("avg", 3, 2, 1, count_include_pad=False))),
    ],
)  # fmt: skip
def test_a_descriptor_says_what_its_grammar_says(text: str, expected: Problem) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not like"),
        ("n1c3h9", "is not like"),
        ("n1c3h9w9k4r3s3x2", "is not like"),
        ("n1c3h9w9", "neither a kernel"),
        ("n1c3h9w9k4r3s3_f8", "'f8'"),
        ("n1c3h9w9k4r3s3_bf16", "on device 'cpu'"),
        ("n1c3h9w9_max2_bf16", "on device 'cpu'"),
        ("n1c3h9w9k4r3s3_f64_tf32_cuda", "precision"),
        ("n1c3h2w9k4r3s3", "kernel_size 3"),
        ("n1c3h9w9k4r3s3p1.2.3", "padding"),
        ("n1c3h9w9k4r3s3g2", "groups"),
        ("n1c3h9w9k4r3s3u0", "stride"),
        ("n1c3h9w9k4r3s3_max2p2", "padding"),
        ("n1c3h9w9k4r3s3_indices", "return_indices"),
        ("n1c3h9w9_max2_relu", "activation"),
    ],
)
def test_a_bad_descriptor_is_quoted_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="descriptor") as error:
        parse(text)
    assert repr(text) in str(error.value) and message in str(error.value)


@given(st.integers(1, 30), small, st.integers(0, 4), st.integers(0, 4), small, small)
def test_output_size_counts_the_positions_of_the_window(W, F, begin, end, stride, dilation) -> None:
    taps = [f * dilation for f in range(F)]
    padded = W + begin + end
    positions = [o for o in range(0, padded, stride) if o + taps[-1] < padded]
    if positions:
        assert conv_output_size(W, F, (begin, end), stride, dilation) == len(positions)
        assert begin != end or conv_output_size(W, F, begin, stride, dilation) == len(positions)
    else:
        with pytest.raises(ValueError, match=f"kernel_size {F}.*padded"):
            conv_output_size(W, F, (begin, end), stride, dilation)


@given(pools(), st.integers(1, 30))
def test_pooled_size_counts_the_windows(pool: Pool, size: int) -> None:
    (f, _), (s, _), (p, _), (d, _) = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    padded, span = size + 2 * p, d * (f - 1) + 1
    starts = range(0, padded, s)
    if pool.ceil_mode:  # a window may stick out at the end, by less than a step, if it starts before the padding
        positions = [o for o in starts if o < size + p and o + span < padded + s]
    else:
        positions = [o for o in starts if o + span <= padded]
    square = replace(pool, kernel_size=(f, f), stride=(s, s), padding=(p, p), dilation=(d, d))
    if positions:
        assert square.output_size((size, size)) == (len(positions), len(positions))
    else:
        with pytest.raises(ValueError, match="than the padded"):
            square.output_size((size, size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"W": 5, "F": 3, "stride": 0}, "stride must be at least 1, got 0"),
        ({"W": 5, "F": 0}, "F must be at least 1"),
        ({"W": 5, "F": 3, "dilation": -1}, "dilation"),
        ({"W": 5, "F": 3, "padding": -1}, "padding must not be negative"),
        ({"W": 5, "F": 3, "padding": (0, -2)}, "padding must not be negative"),
        ({"W": 2, "F": 3}, "use a smaller kernel or more padding"),
    ],
)
def test_output_size_names_a_bad_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv_output_size(**arguments)


def test_sizes_and_cost_of_a_convolution() -> None:
    problem = parse("n2c6h9w8k4r3s5p1u2.1g2_f64_bias_max2")
    assert problem.conv_size == (5, 6)
    assert problem.in_shape == (2, 6, 9, 8)
    assert problem.weight_shape == (4, 3, 3, 5)
    assert problem.out_shape == (2, 4, 2, 3)
    assert problem.flops == 2 * (3 * 3 * 5) * (2 * 4 * 5 * 6)
    assert problem.itemsize == 8
    assert problem.bytes == 8 * (2 * 6 * 9 * 8 + 4 * 3 * 3 * 5 + 2 * 4 * 2 * 3)
    assert problem.without_epilogue() == parse("n2c6h9w8k4r3s5p1u2.1g2_f64")


def test_sizes_and_cost_of_a_pooling() -> None:
    problem = parse("n2c6h9w8_max3u2p1_indices")
    assert problem.in_shape == (2, 6, 9, 8)
    assert problem.out_shape == (2, 6, 5, 4)
    assert problem.flops == 2 * 6 * 5 * 4 * 9
    assert problem.bytes == 4 * (2 * 6 * 9 * 8 + 2 * 6 * 5 * 4) + 8 * (2 * 6 * 5 * 4)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (1, ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (1, 2))),
        (np.int64(2), ((2, 2), (2, 2))),
    ],
)
def test_padding_takes_many_forms(padding: object, expected: tuple) -> None:
    problem = ConvProblem.create((1, 3, 9, 9), (4, 3, 3, 4), padding=padding)
    assert problem.padding == expected
    if padding == "same":
        assert problem.out_size == problem.in_size


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "message"),
    [
        ((3, 9, 9), (4, 3, 3, 3), {}, r"x must have 4 axes.*\(3, 9, 9\)"),
        ((1, 3, 9, 9), (4, 3, 3), {}, r"weight must have 4 axes.*\(4, 3, 3\)"),
        ((1, 4, 9, 9), (4, 3, 3, 3), {}, "weight has 3 channels per filter, but x has 4"),
        ((1, 4, 9, 9), (4, 4, 3, 3), {"groups": 3}, "groups must divide.*got 3"),
        ((1, 4, 9, 9), (4, 4, 3, 3), {"groups": 0}, "groups must be a positive int, got 0"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"stride": 0}, "stride must be at least 1, got 0"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"stride": (1, 2, 3)}, "stride must be an int or a pair"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"stride": 1.5}, "stride must be an int or a pair"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"dilation": True}, "dilation must be an int or a pair"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"padding": -1}, "padding must be at least 0"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"padding": "full"}, "padding must be ints, 'same' or 'valid', got 'full'"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"activation": "gelu"}, "activation must be None or one of.*'gelu'"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"pool": 2}, "pool must be a fastconv.Pool or None, got 2"),
        ((1, 3, 2, 9), (4, 3, 3, 3), {}, "kernel_size 3 with dilation 1 spans 3 pixels"),
        ((1, 3, 9, 9), (4, 3, 3, 3), {"pool": Pool("max", 8)}, "kernel_size 8"),
    ],
)
def test_an_error_names_the_argument(x_shape: tuple, weight_shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvProblem.create(x_shape, weight_shape, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mean", 2), "mode must be 'max', 'avg' or 'lp', got 'mean'"),
        (("max", 0), "kernel_size must be at least 1"),
        (("max", 2, 0), "stride must be at least 1"),
        (("max", 3, 1, 2), r"padding must be at most half the \(dilated\) kernel"),
        (("avg", 3, 1, 0, 2), "dilation is for max pooling only"),
        (("lp", 3, 1, 1), "padding is not defined for lp"),
        (("lp", 3, 1, 0, 1, False, True, 0), "norm_type must be positive and finite"),
        (("lp", 3, 1, 0, 1, False, True, float("nan")), "norm_type must be positive and finite"),
        (("lp", 3, 1, 0, 1, False, True, "2"), "norm_type must be positive and finite, got '2'"),
    ],
)
def test_a_window_names_a_bad_argument(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(*arguments)


def test_a_window_is_normalised() -> None:
    assert Pool("max", 2) == Pool("max", (2, 2), (2, 2), (0, 0), norm_type=7, count_include_pad=False)

"""im2col and col2im against torch, NumPy and the convolution that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from support import FORMATS, as_format, spread

import fastconv

rng = np.random.default_rng(11)


def windows(x, kernel_size, dilation, padding, stride) -> np.ndarray:
    """The same matrix from NumPy's views."""
    (r, s), (dh, dw), (ph, pw), (sh, sw) = kernel_size, dilation, padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    view = sliding_window_view(padded, (dh * (r - 1) + 1, dw * (s - 1) + 1), axis=(2, 3))
    view = view[:, :, ::sh, ::sw, ::dh, ::dw]
    n, c, high, wide = view.shape[:4]
    return view.transpose(0, 1, 4, 5, 2, 3).reshape(n, c * r * s, high * wide)


@st.composite
def cases(draw) -> tuple[np.ndarray, tuple]:
    def pairs(least: int, most: int):
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    kernel, dilation, padding, stride = pairs(1, 4), pairs(1, 3), pairs(0, 5), pairs(1, 4)
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), *pairs(1, 20))
    assume(all(n + 2 * p > d * (f - 1) for n, p, d, f in zip(shape[2:], padding, dilation, kernel, strict=True)))
    x = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape)
    x = as_format(x.astype(draw(st.sampled_from(["float32", "float64"]))), draw(st.sampled_from(FORMATS)))
    return x[:, :, :: draw(st.sampled_from([1, -1]))], (kernel, dilation, padding, stride)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_im2col_equals_numpy(case):
    x, window = case
    columns = fastconv.im2col(x, *window)
    assert columns.dtype == x.dtype and columns.flags.c_contiguous
    np.testing.assert_array_equal(columns, windows(x, *window))


@settings(max_examples=80, deadline=None)
@given(cases())
def test_both_equal_torch(case):
    torch = pytest.importorskip("torch")
    x, window = case
    expected = torch.nn.functional.unfold(torch.from_numpy(x.copy()), *window)
    columns = fastconv.im2col(x, *window)
    np.testing.assert_array_equal(columns, expected)
    folded = torch.nn.functional.fold(expected, x.shape[2:], *window)
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(fastconv.col2im(columns, x.shape[2:], *window), folded, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_folding_the_columns_counts_the_windows(case):
    x, window = case
    x = np.rint(4 * x)
    cover = fastconv.col2im(fastconv.im2col(np.ones_like(x), *window), x.shape[2:], *window)
    np.testing.assert_array_equal(fastconv.col2im(fastconv.im2col(x, *window), x.shape[2:], *window), x * cover)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_col2im_is_the_adjoint_of_im2col(case):
    x, window = case
    x = x.astype(np.float64)
    columns = fastconv.im2col(x, *window)
    y = rng.standard_normal(columns.shape)
    np.testing.assert_allclose((columns * y).sum(), (x * fastconv.col2im(y, x.shape[2:], *window)).sum(), atol=1e-9)


def test_the_first_layer_of_alexnet_as_a_matrix_product():
    x = rng.standard_normal((3, 227, 227)).astype(np.float32)
    weight = rng.standard_normal((96, 3, 11, 11)).astype(np.float32)
    columns, matrix = fastconv.im2col(x, 11, stride=4), weight.reshape(96, -1)
    assert columns.shape == (363, 3025) and matrix.shape == (96, 363)
    product = (matrix @ columns).reshape(96, 55, 55)
    np.testing.assert_allclose(product, fastconv.conv2d(x, weight, stride=4), rtol=1e-3, atol=1e-3)


def test_large_images_are_spread_over_threads_with_the_same_result():
    x = as_format(rng.standard_normal((2, 16, 70, 90)).astype(np.float32), "channels_last")
    window = (3, 3), (1, 2), (1, 2), (2, 1)
    columns = fastconv.im2col(x, *window)
    np.testing.assert_array_equal(columns, windows(x, *window))
    one = np.stack(
        [fastconv.col2im(columns[n, 9 * c : 9 * c + 9], (70, 90), *window)[0] for n in (0, 1) for c in range(16)]
    )
    np.testing.assert_array_equal(fastconv.col2im(columns, (70, 90), *window), one.reshape(2, 16, 70, 90))


def test_columns_of_any_strides():
    columns = rng.standard_normal((2, 12, 30))
    expected = fastconv.col2im(columns, (6, 7), 2)[:, :]
    np.testing.assert_array_equal(
        fastconv.col2im(columns.transpose(0, 2, 1).copy().transpose(0, 2, 1), (6, 7), 2), expected
    )
    np.testing.assert_array_equal(fastconv.col2im(columns[:, ::-1][:, ::-1], (6, 7), 2), expected)
    x = rng.standard_normal((1, 3, 9, 8))
    np.testing.assert_array_equal(fastconv.im2col(spread(x, "channels_last"), 3), fastconv.im2col(x, 3))


def test_unbatched_and_empty_batches():
    x = rng.standard_normal((3, 8, 9))
    columns = fastconv.im2col(x, (2, 3))
    assert columns.shape == (18, 49)
    np.testing.assert_array_equal(columns, fastconv.im2col(x[None], (2, 3))[0])
    np.testing.assert_array_equal(
        fastconv.col2im(columns, (8, 9), (2, 3)), fastconv.col2im(columns[None], (8, 9), (2, 3))[0]
    )
    assert fastconv.im2col(np.zeros((0, 3, 8, 9)), 3).shape == (0, 27, 42)
    assert fastconv.col2im(np.zeros((0, 27, 42)), (8, 9), 3).shape == (0, 3, 8, 9)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must have 3 or 4 axes", lambda: fastconv.im2col(np.zeros((4, 4)), 2)),
        ("kernel_size must be at least 1", lambda: fastconv.im2col(np.zeros((1, 4, 4)), 0)),
        ("stride must be at least 1", lambda: fastconv.im2col(np.zeros((1, 4, 4)), 2, stride=0)),
        ("padding must be at least 0", lambda: fastconv.im2col(np.zeros((1, 4, 4)), 2, padding=-1)),
        ("use a smaller kernel", lambda: fastconv.im2col(np.zeros((1, 4, 4)), 5)),
        ("columns must have 2 or 3 axes", lambda: fastconv.col2im(np.zeros((1, 2, 4, 9)), 4, 2)),
        (r"columns must have C \* 4 rows", lambda: fastconv.col2im(np.zeros((6, 9)), 4, 2)),
        (r"columns must have 3 \* 3 = 9 columns", lambda: fastconv.col2im(np.zeros((8, 8)), 4, 2)),
        ("output_size must be at least 1", lambda: fastconv.col2im(np.zeros((8, 9)), 0, 2)),
    ],
)
def test_errors_name_the_argument(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="x must be float32 or float64, got int32"):
        fastconv.im2col(np.zeros((1, 4, 4), np.int32), 2)
    with pytest.raises(TypeError, match="columns must be float32 or float64"):
        fastconv.col2im(np.zeros((4, 9), np.complex128), 4, 2)

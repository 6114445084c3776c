"""Filters of a real photograph equal SciPy's image filters, borders included."""

from __future__ import annotations

import numpy as np
import pytest
import skimage
from scipy import ndimage

import fastconv

SIGMA, RADIUS = 1.5, 6
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """(3, 512, 512), values 0 to 1."""
    return (skimage.data.astronaut() / 255.0).transpose(2, 0, 1)


def batch_of(image: np.ndarray, dtype: str, memory_format: str) -> np.ndarray:
    x = image[None].astype(dtype)
    if memory_format == "contiguous":
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def gaussian() -> np.ndarray:
    """The weights of `ndimage.gaussian_filter1d`: samples of the bell curve that sum to 1."""
    bell = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    return bell / bell.sum()


both = pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
floats = pytest.mark.parametrize("dtype", ["float32", "float64"])


@both
@floats
def test_gaussian_blur(photograph, dtype, memory_format):
    kernel = np.tile(np.outer(gaussian(), gaussian()), (3, 1, 1, 1)).astype(dtype)
    got = fastconv.conv2d(batch_of(photograph, dtype, memory_format), kernel, padding="same", groups=3)
    expected = ndimage.gaussian_filter(photograph, SIGMA, mode="constant", radius=RADIUS, axes=(1, 2))
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=TOLERANCE[dtype])


@both
@floats
def test_separable_blur_in_two_passes(photograph, dtype, memory_format):
    line = gaussian().astype(dtype)
    rows, columns = np.tile(line, (3, 1, 1, 1)), np.tile(line[:, None], (3, 1, 1, 1))
    x = batch_of(photograph, dtype, memory_format)
    got = fastconv.conv2d(fastconv.conv2d(x, rows, padding="same", groups=3), columns, padding="same", groups=3)
    expected = ndimage.gaussian_filter(photograph, SIGMA, mode="constant", radius=RADIUS, axes=(1, 2))
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=TOLERANCE[dtype])


@both
@floats
def test_sobel(photograph, dtype, memory_format):
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype)
    filters = np.stack([across, across.T])  # for each channel: along the width, along the height
    got = fastconv.conv2d(
        batch_of(photograph, dtype, memory_format), np.tile(filters[:, None], (3, 1, 1, 1)), padding=1, groups=3
    )
    for channel in range(3):
        for k, axis in enumerate((1, 0)):
            expected = ndimage.sobel(photograph[channel], axis=axis, mode="constant")
            np.testing.assert_allclose(got[0, 2 * channel + k], expected, rtol=0, atol=10 * TOLERANCE[dtype])


@both
def test_pooling_is_a_maximum_filter(photograph, memory_format):
    got = fastconv.max_pool2d(batch_of(photograph, "float64", memory_format), 3, stride=1, padding=1)
    expected = ndimage.maximum_filter(photograph, (1, 3, 3), mode="constant", cval=-np.inf)
    np.testing.assert_array_equal(got[0], expected)

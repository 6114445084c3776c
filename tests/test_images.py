"""Images to batches, and random crops and flips, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format, guarded, spread

import fastconv
from fastconv import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(shape: tuple[int, ...] = (3, 19, 7, 3), dtype: Any = np.uint8) -> np.ndarray:
    found = np.random.default_rng(0).integers(0, 256, shape)
    return found.astype(dtype) if dtype == np.uint8 else (found / 255).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_become_normalized_floats(dtype: Any) -> None:
    images = guarded(photos())
    x = fastconv.from_images(images, mean=MEAN, std=STD, dtype=dtype)
    expected = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert x.dtype == dtype and x.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14)


def test_bytes_alone_are_scaled_to_one() -> None:
    x = fastconv.from_images(photos((2, 4, 5, 1)))
    assert x.dtype == np.float32 and x.shape == (2, 1, 4, 5)
    np.testing.assert_allclose(x[:, 0], photos((2, 4, 5, 1))[..., 0] / 255, rtol=1e-6)
    assert fastconv.from_images(np.full((1, 1, 1, 1), 255, np.uint8)) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_a_view_unless_something_changes(dtype: Any) -> None:
    images = photos(dtype=dtype)
    assert np.shares_memory(fastconv.from_images(images), images)
    np.testing.assert_array_equal(fastconv.from_images(images), images.transpose(0, 3, 1, 2))
    for changed in ({"mean": 0.5}, {"std": MEAN}, {"dtype": np.float64 if dtype == np.float32 else np.float32}):
        x = fastconv.from_images(images, **changed)
        expected = (images - changed.get("mean", 0)) / changed.get("std", 1)
        assert not np.shares_memory(x, images) and x.dtype == changed.get("dtype", dtype)
        np.testing.assert_allclose(x, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_one_image_and_lists_of_them() -> None:
    images = photos()
    one = fastconv.from_images(images[1])
    assert one.shape == (3, 19, 7)
    np.testing.assert_array_equal(one, fastconv.from_images(images)[1])
    np.testing.assert_array_equal(fastconv.from_images(list(images), std=2), fastconv.from_images(images, std=2))
    network = nn.Sequential(nn.Conv2d(3, 4, 3, rng=np.random.default_rng(0)))
    assert network(fastconv.from_images(list(images))).shape == (3, 4, 17, 5)


def test_images_of_any_strides_into_a_given_array() -> None:
    images = photos((2, 21, 10, 6))[:, ::-1, ::2, ::2]
    out = np.full((2, 3, 21, 5), np.nan, np.float32)
    assert fastconv.from_images(images, mean=0.5, out=out) is out
    np.testing.assert_allclose(out, (images / 255 - 0.5).transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_floats_may_lie_between_other_bytes() -> None:
    records = np.zeros((4, 5, 3), [("value", np.float32), ("other", np.uint16)])
    records["value"] = photos((4, 5, 3), np.float32)
    assert not records["value"].flags.aligned
    for mean in (None, 0.5):
        x = fastconv.from_images(records["value"], mean=mean)
        np.testing.assert_allclose(x, records["value"].transpose(2, 0, 1) - (mean or 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: fastconv.from_images([photos()[0], photos(dtype=np.float32)[0]]), TypeError, "one type of elements"),
    (lambda: fastconv.from_images(photos().astype(np.int32)), TypeError, "images must be uint8"),
    (lambda: fastconv.from_images(photos()[0, 0]), ValueError, r"gray images an axis"),
    (lambda: fastconv.from_images([]), ValueError, "at least one"),
    (lambda: fastconv.from_images([photos()[0], photos()[0, 1:]]), ValueError, "one size"),
    (lambda: fastconv.from_images(photos(), mean=(1, 2)), ValueError, "mean must be a number or one for each of 3"),
    (lambda: fastconv.from_images(photos(), std=(1, 0, 1)), ValueError, "std must be positive"),
    (lambda: fastconv.from_images(photos(), dtype=np.float16), TypeError, "dtype must be float32 or float64"),
    (lambda: fastconv.random_crop(photos(), 2), TypeError, "x must be float32 or float64"),
    (lambda: fastconv.random_crop(np.ones((1, 1, 4, 4)), 7, 1), ValueError, "size must be at most"),
    (lambda: fastconv.random_horizontal_flip(np.ones((1, 1, 4, 4)), 1.5), ValueError, "p must be between 0 and 1"),
])  # fmt: skip
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def numbered(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Every element another number, none of them zero."""
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scatter", [lambda x, form: guarded(as_format(x, form)), spread])
def test_crops_are_windows_of_the_padded_images(form: str, dtype: Any, scatter: Any) -> None:
    images = numbered((40, 3, 18, 5), dtype)
    out = fastconv.random_crop(scatter(images, form), (17, 4), (2, 1), rng=np.random.default_rng(0))
    assert out.shape == (40, 3, 17, 4) and out.dtype == dtype
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (1, 1)))
    seen = set()
    for n, crop in enumerate(out):
        places = [(i, j) for i in range(6) for j in range(4) if (padded[n, :, i : i + 17, j : j + 4] == crop).all()]
        assert len(places) == 1
        seen.add(places[0])
    assert {i for i, _ in seen} == set(range(6)) and {j for _, j in seen} == set(range(4))


@pytest.mark.parametrize("form", FORMATS)
def test_flips_mirror_some_images(form: str) -> None:
    images = numbered((64, 2, 3, 5))
    out = fastconv.random_horizontal_flip(as_format(images, form), rng=np.random.default_rng(0))
    mirrored = [bool((a == b[..., ::-1]).all()) for a, b in zip(out, images, strict=True)]
    kept = [bool((a == b).all()) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True)) and 16 < sum(mirrored) < 48
    np.testing.assert_array_equal(fastconv.random_horizontal_flip(images[0], 1.0), images[0, ..., ::-1])
    np.testing.assert_array_equal(fastconv.random_horizontal_flip(images, 0.0), images)


def test_random_numbers_come_from_the_seed() -> None:
    images, results = numbered((8, 1, 6, 6)), []
    for _ in range(2):
        nn.manual_seed(5)
        results.append(fastconv.random_crop(fastconv.random_horizontal_flip(images), 4))
    np.testing.assert_array_equal(*results)
    out = np.empty((8, 1, 4, 4), np.float32)
    assert fastconv.random_crop(images, 4, out=out) is out
    assert fastconv.random_crop(images[:0], 4).shape == (0, 1, 4, 4)

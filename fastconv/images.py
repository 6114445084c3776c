"""From images as libraries read them, (H, W, C) bytes, to batches for networks; random crops and flips of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arrays import FLOATS, as_dtype, as_image, memory_format, plain, target
from fastconv.cpu import images as kernels
from fastconv.nn.init import generator
from fastconv.sizes import pair, real, shown

_WHITE = 255


def from_images(
    images: np.ndarray | Sequence[np.ndarray], *, mean: Any = None, std: Any = None, dtype: Any = None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Images with channels last and values as bytes, as a batch for a network.

    Bytes become ``(x / 255 - mean) / std``, as with torchvision's ToTensor and Normalize; floats are taken to be
    scaled already, ``(x - mean) / std``.

    Parameters
    ----------
    images : array (N, H, W, C) or (H, W, C), or a sequence of arrays (H, W, C)
        uint8, float32 or float64; the images of a sequence have one size.
    mean, std : float or sequence of C floats, optional
        Of the scaled values, for each channel; 0 and 1 if not given.
    dtype : float32 or float64, optional
        Of the result: that of floats, float32 for bytes.
    out : array (N, C, H, W) or (C, H, W), optional
        Where to write.

    Returns
    -------
    array (N, C, H, W), or (C, H, W) for an array (H, W, C)
        In channels-last memory format. Floats that need no change are not copied: the result is a view of them.

    Raises
    ------
    TypeError
        If the elements are of another type.
    ValueError
        If the images have other axes or differ in size, `mean` or `std` do not fit or a `std` is not positive.

    Examples
    --------
    >>> photo = np.full((4, 6, 3), 255, np.uint8)
    >>> x = fastconv.from_images([photo, photo], mean=0.5, std=0.5)
    >>> x.shape, float(x.max())
    ((2, 3, 4, 6), 1.0)
    """
    pixels, batched = _pixels(images)
    x = pixels.transpose(0, 3, 1, 2)
    wanted = as_dtype((np.float32 if x.dtype == np.uint8 else x.dtype) if dtype is None else dtype)
    if out is None and mean is None and std is None and x.dtype == wanted and x.flags.aligned:
        return x if batched else x[0]
    means, deviations = _each("mean", mean, 0, x.shape[1]), _each("std", std, 1, x.shape[1])
    if not (deviations > 0).all():
        raise ValueError(f"std must be positive, got {shown(std)}")
    if x.dtype != np.uint8 and not (x.dtype == wanted and x.flags.aligned):
        x = x.astype(wanted)
    result, answer = target(out, x.shape, batched, wanted, "channels_last", x)
    scale = 1 / (deviations * (_WHITE if x.dtype == np.uint8 else 1))
    kernels.normalize(x, scale.astype(wanted), (-means / deviations).astype(wanted), result)
    return answer


def random_crop(
    x: np.ndarray, size: int | tuple[int, int], padding: int | tuple[int, int] = 0, *,
    rng: np.random.Generator | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """A window of each image, at a place of its own.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides.
    size : int or (int, int)
        Height and width of the windows.
    padding : int or (int, int), default 0
        Zeros around the images, above and below, left and right, into which windows may reach.
    rng : numpy.random.Generator, optional
        Where to draw places from; that of `fastconv.nn.manual_seed` if not given.
    out : array, optional
        Where to write; it must not overlap `x`.

    Returns
    -------
    array (N, C, *size) or (C, *size)
        In the memory format of `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, such as windows that are larger than the padded images.
    """
    image, batched = as_image(x, "x")
    height, width = pair(size, "size", least=1)
    pads = pair(padding, "padding", least=0)
    room = [n + 2 * pad - window for n, pad, window in zip(image.shape[2:], pads, (height, width), strict=True)]
    if min(room) < 0:
        raise ValueError(f"size must be at most that of the padded images, got {shown(size)} for {image.shape[2:]}")
    random, places = generator(rng), np.zeros((len(image), 3), np.int64)
    for axis, (most, pad) in enumerate(zip(room, pads, strict=True)):
        places[:, axis] = random.integers(0, most, len(image), endpoint=True) - pad
    return _cropped(image, batched, (height, width), places, out)


def random_horizontal_flip(
    x: np.ndarray, p: float = 0.5, *, rng: np.random.Generator | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Each image as it is, or with probability `p` mirrored left to right.

    Parameters, result and errors as `random_crop`; ValueError unless 0 <= p <= 1.
    """
    image, batched = as_image(x, "x")
    p = real(p, "p", 0, 1)
    places = np.zeros((len(image), 3), np.int64)
    places[:, 2] = generator(rng).random(len(image)) < p
    return _cropped(image, batched, (image.shape[2], image.shape[3]), places, out)


def _cropped(
    image: np.ndarray, batched: bool, size: tuple[int, int], places: np.ndarray, out: np.ndarray | None
) -> np.ndarray:
    result, answer = target(out, (*image.shape[:2], *size), batched, image.dtype, memory_format(image), image)
    kernels.crop(image, places, result)
    return answer


def _pixels(images: Any) -> tuple[np.ndarray, bool]:
    """An array (N, H, W, C), and whether it had the first axis."""
    if isinstance(images, np.ndarray) or not isinstance(images, Sequence):
        array = plain(images, "images")
        pixels, batched = (array, True) if array.ndim == 4 else (array[None], False)
    else:
        found = [plain(image, "images") for image in images]
        shapes = {image.shape for image in found}
        if len(shapes) != 1:
            raise ValueError(f"images must be at least one, and have one size, got shapes {sorted(shapes)}")
        if len({image.dtype for image in found}) != 1:
            raise TypeError(f"images must have one type of elements, got {sorted({str(i.dtype) for i in found})}")
        pixels, batched = np.stack(found), True
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise ValueError(
            f"images must have axes (N, H, W, C) or (H, W, C), none of H, W and C empty, got shape {pixels.shape} in "
            "all; give gray images an axis: x[..., None]"
        )
    if pixels.dtype != np.uint8 and not (pixels.dtype in FLOATS and pixels.dtype.isnative):
        raise TypeError(f"images must be uint8, float32 or float64, got {pixels.dtype}")
    return pixels, batched


def _each(name: str, value: Any, default: float, channels: int) -> np.ndarray:
    """A number for each channel, in float64."""
    try:
        numbers = np.asarray(default if value is None else value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a number or one for each channel, got {shown(value)}") from None
    if numbers.shape not in ((), (1,), (channels,)):
        raise ValueError(f"{name} must be a number or one for each of {channels} channels, got {shown(value)}")
    return np.broadcast_to(numbers, (channels,))

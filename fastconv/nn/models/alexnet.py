"""AlexNet and ZFNet: five convolutions and three fully connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activation import Dropout, ReLU
from fastconv.nn.container import Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.pool import AdaptiveAvgPool2d, MaxPool2d
from fastconv.nn.shape import Flatten

_MAP = 6  # pixels of the last map along each axis
_FEATURES = 4096


def alexnet(
    num_classes: int = 1000, dropout: float = 0.5, *, rng: np.random.Generator | None = None, dtype: str = "float32"
) -> Sequential:
    """Krizhevsky 2014 (arXiv 1404.5997), one tower: 61.1 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores for each image.
    dropout : float
        Share of the features that are left out before the fully connected layers in training.
    rng, dtype
        As in `Conv2d`.

    Returns
    -------
    Sequential
        For images (N, 3, H, W) of at least 63 pixels along each axis, made for 224.
    """
    own: Any = {"rng": rng, "dtype": dtype}
    features = Sequential(
        Conv2d(3, 64, 11, 4, 2, **own), ReLU(), MaxPool2d(3, 2),
        Conv2d(64, 192, 5, padding=2, **own), ReLU(), MaxPool2d(3, 2),
        *_top(192, 384, 256, **own),
    )  # fmt: skip
    return _whole(features, num_classes, dropout, **own)


def zfnet(
    num_classes: int = 1000, dropout: float = 0.5, *, rng: np.random.Generator | None = None, dtype: str = "float32"
) -> Sequential:
    """Zeiler and Fergus 2013 (arXiv 1311.2901), figure 3: AlexNet with a finer first layer, 62.4 million parameters.

    The contrast normalisation after the first two poolings is left out. The parameters have AlexNet's names.

    Parameters
    ----------
    num_classes, dropout, rng, dtype
        As in `alexnet`.

    Returns
    -------
    Sequential
        For images (N, 3, H, W), made for 224.
    """
    own: Any = {"rng": rng, "dtype": dtype}
    features = Sequential(
        Conv2d(3, 96, 7, 2, 1, **own), ReLU(), MaxPool2d(3, 2, 1),
        Conv2d(96, 256, 5, 2, **own), ReLU(), MaxPool2d(3, 2, 1),
        *_top(256, 384, 384, **own),
    )  # fmt: skip
    return _whole(features, num_classes, dropout, **own)


def _top(channels: int, first: int, second: int, **own: Any) -> list[Any]:
    """The last three convolutions."""
    return [
        Conv2d(channels, first, 3, padding=1, **own), ReLU(), Conv2d(first, second, 3, padding=1, **own), ReLU(),
        Conv2d(second, 256, 3, padding=1, **own), ReLU(), MaxPool2d(3, 2),
    ]  # fmt: skip


def _whole(features: Sequential, num_classes: int, dropout: float, **own: Any) -> Sequential:
    classifier = Sequential(
        Dropout(dropout, rng=own["rng"]), Linear(256 * _MAP**2, _FEATURES, **own), ReLU(),
        Dropout(dropout, rng=own["rng"]), Linear(_FEATURES, _FEATURES, **own), ReLU(),
        Linear(_FEATURES, num_classes, **own),
    )  # fmt: skip
    return Sequential(
        {"features": features, "avgpool": AdaptiveAvgPool2d(_MAP), "flatten": Flatten(), "classifier": classifier}
    )

"""VGG: 3x3 convolutions in five stages, and three fully connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activation import Dropout, ReLU
from fastconv.nn.container import Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.models.initial import he_normal
from fastconv.nn.module import Module
from fastconv.nn.pool import AdaptiveAvgPool2d, MaxPool2d
from fastconv.nn.shape import Flatten

_CHANNELS = (64, 128, 256, 512, 512)  # of each stage
_MAP = 7  # pixels of the last map along each axis
_FEATURES = 4096


def vgg16(
    num_classes: int = 1000, dropout: float = 0.5, *, rng: np.random.Generator | None = None, dtype: str = "float32"
) -> Sequential:
    """Simonyan and Zisserman 2014 (arXiv 1409.1556), configuration D: 138.4 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores for each image.
    dropout : float
        Share of the features that are left out after the fully connected layers in training.
    rng, dtype
        As in `Conv2d`.

    Returns
    -------
    Sequential
        For images (N, 3, H, W) of at least 32 pixels along each axis, made for 224.
    """
    return _vgg((2, 2, 3, 3, 3), num_classes, dropout, rng=rng, dtype=dtype)


def vgg19(
    num_classes: int = 1000, dropout: float = 0.5, *, rng: np.random.Generator | None = None, dtype: str = "float32"
) -> Sequential:
    """As `vgg16`, configuration E: 143.7 million parameters.

    Parameters
    ----------
    num_classes, dropout, rng, dtype
        As in `vgg16`.

    Returns
    -------
    Sequential
        As `vgg16`.
    """
    return _vgg((2, 2, 4, 4, 4), num_classes, dropout, rng=rng, dtype=dtype)


def _vgg(depths: tuple[int, ...], num_classes: int, dropout: float, **own: Any) -> Sequential:
    features: list[Module] = []
    before = 3
    for depth, channels in zip(depths, _CHANNELS, strict=True):
        for _ in range(depth):
            features += [Conv2d(before, channels, 3, padding=1, **own), ReLU()]
            before = channels
        features.append(MaxPool2d(2))
    classifier = Sequential(
        Linear(before * _MAP**2, _FEATURES, **own), ReLU(), Dropout(dropout, rng=own["rng"]),
        Linear(_FEATURES, _FEATURES, **own), ReLU(), Dropout(dropout, rng=own["rng"]),
        Linear(_FEATURES, num_classes, **own),
    )  # fmt: skip
    parts = {"features": Sequential(*features), "avgpool": AdaptiveAvgPool2d(_MAP), "flatten": Flatten()}
    return he_normal(Sequential(parts | {"classifier": classifier}), own["rng"])

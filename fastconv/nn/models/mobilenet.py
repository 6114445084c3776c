"""MobileNet-V2: depthwise convolutions between 1x1 convolutions that widen and narrow."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activation import Dropout, ReLU6
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.models.initial import he_normal
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d
from fastconv.nn.shape import Flatten

# Table 2 of the paper: expansion, output channels, repeats, stride of the first.
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_FIRST, _LAST = 32, 1280  # channels


def mobilenet_v2(
    num_classes: int = 1000, dropout: float = 0.2, *, rng: np.random.Generator | None = None, dtype: str = "float32"
) -> Sequential:
    """Sandler et al. 2018 (arXiv 1801.04381), width 1.0: 3.5 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores for each image.
    dropout : float
        Share of the features that are left out before the last layer in training.
    rng, dtype
        As in `Conv2d`.

    Returns
    -------
    Sequential
        For images (N, 3, H, W), made for 224.
    """
    own: Any = {"rng": rng, "dtype": dtype}
    features: list[Module] = [_conv_norm_relu(3, _FIRST, 3, 2, **own)]
    channels = _FIRST
    for expansion, out, repeats, first_stride in _STAGES:
        for number in range(repeats):
            features.append(_block(channels, out, expansion, 1 if number else first_stride, **own))
            channels = out
    features.append(_conv_norm_relu(channels, _LAST, 1, **own))
    classifier = Sequential(Dropout(dropout, rng=rng), Linear(_LAST, num_classes, **own))
    parts = {"features": Sequential(*features), "avgpool": AdaptiveAvgPool2d(1), "flatten": Flatten()}
    return he_normal(Sequential(parts | {"classifier": classifier}), rng)


def _block(channels: int, out: int, expansion: int, stride: int, **own: Any) -> Module:
    """An inverted residual: the input is added where the output has its size."""
    wide = channels * expansion
    widened = [] if expansion == 1 else [_conv_norm_relu(channels, wide, 1, **own)]
    layers = Sequential(
        *widened, _conv_norm_relu(wide, wide, 3, stride, groups=wide, **own), *_conv_norm(wide, out, 1, **own)
    )
    if stride == 1 and channels == out:
        return Residual({"conv": layers, "identity": Sequential()})
    return Sequential({"conv": layers})


def _conv_norm_relu(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, **own: Any) -> Sequential:
    return Sequential(*_conv_norm(channels, out, kernel, stride, groups, **own), ReLU6())


def _conv_norm(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, **own: Any
) -> tuple[Module, Module]:
    conv = Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False, **own)
    return conv, BatchNorm2d(out, dtype=own["dtype"])

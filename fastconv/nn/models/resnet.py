"""ResNet: blocks that add to their input what two or three convolutions make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.nn.activation import ReLU
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.models.initial import he_normal
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, MaxPool2d
from fastconv.nn.shape import Flatten

_WIDTHS = (64, 128, 256, 512)  # of each stage
_EXPANSION = 4  # of a bottleneck's last convolution

# Input channels, width, stride -> what the branch with convolutions does, and its output channels.
_Branch = Callable[..., tuple[dict[str, Module], int]]


def resnet18(num_classes: int = 1000, *, rng: np.random.Generator | None = None, dtype: str = "float32") -> Sequential:
    """He et al. 2015 (arXiv 1512.03385), 18 layers: 11.7 million parameters.

    Parameters
    ----------
    num_classes : int
        Scores for each image.
    rng, dtype
        As in `Conv2d`.

    Returns
    -------
    Sequential
        For images (N, 3, H, W), made for 224.
    """
    return _resnet(_basic, (2, 2, 2, 2), num_classes, rng=rng, dtype=dtype)


def resnet50(num_classes: int = 1000, *, rng: np.random.Generator | None = None, dtype: str = "float32") -> Sequential:
    """As `resnet18`, with 50 layers in bottlenecks: 25.6 million parameters.

    The stride is that of the 3x3 convolutions, as in torchvision ("version 1.5"), not of the 1x1 before them.

    Parameters
    ----------
    num_classes, rng, dtype
        As in `resnet18`.

    Returns
    -------
    Sequential
        As `resnet18`.
    """
    return _resnet(_bottleneck, (3, 4, 6, 3), num_classes, rng=rng, dtype=dtype)


def _resnet(branch: _Branch, depths: tuple[int, ...], num_classes: int, **own: Any) -> Sequential:
    parts: dict[str, Module] = {**_conv_norm("1", 3, 64, 7, 2, **own), "relu": ReLU(), "maxpool": MaxPool2d(3, 2, 1)}
    channels = 64
    for stage, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True)):
        blocks = []
        for number in range(depth):
            block, channels = _block(branch, channels, width, 2 if stage and not number else 1, **own)
            blocks.append(block)
        parts[f"layer{stage + 1}"] = Sequential(*blocks)
    head = {"avgpool": AdaptiveAvgPool2d(1), "flatten": Flatten(), "fc": Linear(channels, num_classes, **own)}
    return he_normal(Sequential(parts | head), own["rng"], linear=False)


def _block(branch: _Branch, channels: int, width: int, stride: int, **own: Any) -> tuple[Sequential, int]:
    """ReLU(branch(x) + x), where x is projected if it has another size."""
    layers, wider = branch(channels, width, stride, **own)
    projection = Sequential()
    if stride > 1 or wider != channels:
        projection = Sequential(*_conv_norm("", channels, wider, 1, stride, **own).values())
    return Sequential({"": Residual({"": Sequential(layers), "downsample": projection}), "relu": ReLU()}), wider


def _basic(channels: int, width: int, stride: int, **own: Any) -> tuple[dict[str, Module], int]:
    first, second = _conv_norm("1", channels, width, 3, stride, **own), _conv_norm("2", width, width, 3, **own)
    return {**first, "relu1": ReLU(), **second}, width


def _bottleneck(channels: int, width: int, stride: int, **own: Any) -> tuple[dict[str, Module], int]:
    wide = _EXPANSION * width
    narrow, middle = _conv_norm("1", channels, width, 1, **own), _conv_norm("2", width, width, 3, stride, **own)
    return {**narrow, "relu1": ReLU(), **middle, "relu2": ReLU(), **_conv_norm("3", width, wide, 1, **own)}, wide


def _conv_norm(number: str, channels: int, out: int, kernel: int, stride: int = 1, **own: Any) -> dict[str, Module]:
    """A convolution and its batch normalisation, which makes a bias needless."""
    conv = Conv2d(channels, out, kernel, stride, kernel // 2, bias=False, **own)
    return {f"conv{number}": conv, f"bn{number}": BatchNorm2d(out, dtype=own["dtype"])}

"""First values for deep networks of ReLUs."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from fastconv.nn.conv import Conv2d
from fastconv.nn.init import generator
from fastconv.nn.linear import Linear
from fastconv.nn.module import Module

_Model = TypeVar("_Model", bound=Module)
_LINEAR_DEVIATION = 0.01


def he_normal(model: _Model, rng: np.random.Generator | None, linear: bool = True) -> _Model:
    """Draw the weights of convolutions anew, so that gradients neither vanish nor explode; returns the model.

    They are normal with the standard deviation sqrt(2 / fan_out), where ``fan_out`` counts the outputs that an input
    takes part in (He et al. 2015, arXiv 1502.01852), as if there were one group: that is torch's way. Those of
    `Linear` layers, if `linear`, have 0.01, as in torchvision's networks; biases are 0.
    """
    random = generator(rng)
    for layer in model.modules():
        if isinstance(layer, Conv2d):
            outputs, _, height, width = layer.weight.value.shape
            _draw(layer, random, math.sqrt(2 / (outputs * height * width)))
        elif isinstance(layer, Linear) and linear:
            _draw(layer, random, _LINEAR_DEVIATION)
    return model


def _draw(layer: Conv2d | Linear, random: np.random.Generator, deviation: float) -> None:
    value = layer.weight.value
    layer.weight.value = random.normal(0, deviation, value.shape).astype(value.dtype)
    if layer.bias is not None:
        layer.bias.value = np.zeros_like(layer.bias.value)

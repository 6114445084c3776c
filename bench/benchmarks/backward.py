"""Gradients of convolution and pooling."""

from __future__ import annotations

import numpy as np

import fastconv
from fastconv import grad

from .common import FORMATS, TINY, Layer, OfLayers, normal

# Of ResNet-50 and MobileNet-V2, eight images at a time.
LAYERS = {
    "tiny 3x3": TINY,
    "3x3, 128 at 28": Layer(128, 28, 128, (3, 3), batch=8),
    "1x1, 1024 at 14": Layer(1024, 14, 256, (1, 1), batch=8),
    "1x1 stride 2, 256 at 56": Layer(256, 56, 128, (1, 1), stride=2, batch=8),
    "depthwise 3x3, 144 at 56": Layer(144, 56, 144, (3, 3), groups=144, batch=8),
}


class Conv2d(OfLayers):
    """Gradients with respect to the input and the weights."""

    layers = LAYERS
    params = (list(LAYERS), FORMATS)

    def setup(self, layer, memory_format):
        """Make arrays, and call once so that nothing is compiled while timing."""
        super().setup(layer, memory_format)
        out_shape = fastconv.conv2d(self.x, self.weight, **self.options).shape
        self.grad_output = normal(out_shape, memory_format=memory_format)
        self.time_input(layer, memory_format)
        self.time_weight(layer, memory_format)

    def time_input(self, layer, memory_format):
        """Gradient of the input."""
        grad.conv2d_input(self.x.shape, self.weight, self.grad_output, **self.options)

    def time_weight(self, layer, memory_format):
        """Gradient of the weights."""
        grad.conv2d_weight(self.x, self.weight.shape, self.grad_output, **self.options)


class Pool2d:
    """Gradients of pooling in windows of 3x3, stride 2, 64 channels at 56x56."""

    params = (["max_pool2d", "avg_pool2d", "lp_pool2d"], FORMATS)
    param_names = ("function", "memory_format")

    def setup(self, function, memory_format):
        """Make arrays, and call once so that nothing is compiled while timing."""
        x = normal((8, 64, 56, 56), memory_format=memory_format)
        self.pool = getattr(grad, function)
        if function == "max_pool2d":
            y, indices = fastconv.max_pool2d(x, 3, 2, return_indices=True)
            self.rest = (indices, x.shape, 3, 2)
        elif function == "avg_pool2d":
            y = fastconv.avg_pool2d(x, 3, 2)
            self.rest = (x.shape, 3, 2)
        else:
            y = fastconv.lp_pool2d(x, 2, 3, 2)
            self.rest = (x, y, 2, 3, 2)
        self.grad_output = np.ones_like(y)
        self.time_input(function, memory_format)

    def time_input(self, function, memory_format):
        """Gradient of the input."""
        self.pool(self.grad_output, *self.rest)

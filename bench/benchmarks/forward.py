"""Convolution on the kernels that the cost model chooses: set-up and compilation stay outside the timed part."""

from __future__ import annotations

import fastconv

from .common import FORMATS, LAYERS, Layer, OfLayers, normal


class Conv2d(OfLayers):
    """The function, which arranges the weights in every call, and the plan, which did so once."""

    layers = LAYERS
    params = (list(LAYERS), FORMATS)

    def setup(self, layer, memory_format):
        """Make arrays, and call once so that nothing is compiled while timing."""
        super().setup(layer, memory_format)
        self.plan = fastconv.plan(self.x.shape, self.weight, memory_format=memory_format, **self.options)
        self.plan(self.x)
        fastconv.conv2d(self.x, self.weight, **self.options)

    def time_conv2d(self, layer, memory_format):
        """One call with raw weights."""
        fastconv.conv2d(self.x, self.weight, **self.options)

    def time_plan(self, layer, memory_format):
        """One call of a plan."""
        self.plan(self.x)


class _Plans:
    """Plans for channels-last arrays of the `layers` of a subclass."""

    layers: dict[str, Layer]
    dtype = "float32"
    param_names = ("layer",)

    def setup(self, layer):
        """Make arrays, and call once so that nothing is compiled while timing."""
        this = self.layers[layer]
        self.x, weight = this.arrays("channels_last", self.dtype)
        self.plan = fastconv.plan(self.x.shape, weight, memory_format="channels_last", **this.options)
        self.plan(self.x)

    def time_plan(self, layer):
        """One call of a plan."""
        self.plan(self.x)


class Grouped(_Plans):
    """Groups of channels, as in ResNeXt-50."""

    layers = {
        "32 groups of 4, at 56": Layer(128, 56, 128, (3, 3), groups=32),
        "32 groups of 16, at 14": Layer(512, 14, 512, (3, 3), groups=32),
    }
    params = (list(layers),)


class Dilated(_Plans):
    """Taps that are apart, as in DeepLab."""

    layers = {
        "3x3 dilation 2, 128 at 28": Layer(128, 28, 128, (3, 3), dilation=2),
        "3x3 dilation 6, 64 at 33": Layer(64, 33, 64, (3, 3), dilation=6),
    }
    params = (list(layers),)


class OneDimensional(_Plans):
    """Filters of one row or one column, as in Inception-v3."""

    layers = {"1x7, 128 at 17": Layer(128, 17, 128, (1, 7)), "7x1, 128 at 17": Layer(128, 17, 128, (7, 1))}
    params = (list(layers),)


class FewChannels(_Plans):
    """Too few channels to fill a vector: photographs, and images in one colour."""

    layers = {"3x3, RGB at 224": Layer(3, 224, 64, (3, 3)), "5x5, gray at 256": Layer(1, 256, 8, (5, 5))}
    params = (list(layers),)


class Float64(_Plans):
    """Double precision."""

    dtype = "float64"
    layers = {"3x3, 64 at 28": Layer(64, 28, 64, (3, 3)), "1x1, 256 at 14": Layer(256, 14, 256, (1, 1))}
    params = (list(layers),)


class Fused:
    """Bias, ReLU and 2x2 max pooling in the same pass, and the pooling in one of its own."""

    params = (FORMATS,)
    param_names = ("memory_format",)

    def setup(self, memory_format):
        """Make arrays, and call once so that nothing is compiled while timing."""
        layer = Layer(64, 56, 64, (3, 3))
        self.x, weight = layer.arrays(memory_format)
        how = {**layer.options, "bias": normal((64,)), "activation": "relu", "memory_format": memory_format}
        self.plan = fastconv.plan(self.x.shape, weight, **how)
        self.fused = fastconv.plan(self.x.shape, weight, pool=fastconv.Pool("max", 2), **how)
        self.time_fused(memory_format)
        self.time_separate(memory_format)

    def time_fused(self, memory_format):
        """One plan."""
        self.fused(self.x)

    def time_separate(self, memory_format):
        """A plan for convolution, bias and ReLU, then ``max_pool2d``."""
        fastconv.max_pool2d(self.plan(self.x), 2)

"""Layers and arrays that the suites share.

Sizes are written out here and in the suites, never taken from the installed package: a benchmark must mean the same
at every commit. What has "tiny" in its name is a subset of two minutes: ``asv run --bench tiny``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

FORMATS = ["channels_last", "contiguous"]


def normal(shape: tuple[int, ...], dtype: str = "float32", memory_format: str = "contiguous") -> np.ndarray:
    """Normally distributed numbers, the same in every process; (N, C, H, W) if in a memory format."""
    rng = np.random.default_rng(0)
    if memory_format == "contiguous":
        return rng.standard_normal(shape, dtype)
    batch, channels, height, width = shape
    return rng.standard_normal((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)


class Layer(NamedTuple):
    """A convolution of square images, padded so that stride 1 keeps their size."""

    channels: int
    size: int
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    batch: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images, (N, C, H, W)."""
        return (self.batch, self.channels, self.size, self.size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Of the weights, (K, C/groups, R, S)."""
        return (self.filters, self.channels // self.groups, *self.kernel)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``fastconv.conv2d`` and others beyond arrays."""
        height, width = (self.dilation * (k - 1) // 2 for k in self.kernel)
        rest = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return {"padding": (height, width), **rest}

    def arrays(self, memory_format: str, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """Images and weights."""
        return normal(self.shape, dtype, memory_format), normal(self.weight_shape, dtype)


class OfLayers:
    """Arrays of one of the `layers` of a subclass, in both memory formats."""

    layers: dict[str, Layer]
    param_names = ("layer", "memory_format")

    def setup(self, layer, memory_format):
        """Make arrays."""
        self.x, self.weight = self.layers[layer].arrays(memory_format)
        self.options = self.layers[layer].options


TINY = Layer(8, 8, 8, (3, 3))
# Of ResNet-50 and MobileNet-V2.
LAYERS = {
    "tiny 3x3": TINY,
    "7x7 stride 2, RGB at 224": Layer(3, 224, 64, (7, 7), stride=2),
    "3x3, 64 at 56": Layer(64, 56, 64, (3, 3)),
    "3x3, 256 at 14": Layer(256, 14, 256, (3, 3)),
    "1x1, 512 at 28": Layer(512, 28, 128, (1, 1)),
    "depthwise 3x3, 144 at 56": Layer(144, 56, 144, (3, 3), groups=144),
}

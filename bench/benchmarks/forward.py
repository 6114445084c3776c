"""Convolution and pooling on the predicted kernels: set-up and compilation stay outside the timed part."""

from __future__ import annotations

import numpy as np

import fastconv

# channels, size, filters, kernel, stride, groups
CONVS = {
    "first 7x7": (3, 224, 64, 7, 2, 1),
    "3x3 at 56": (64, 56, 64, 3, 1, 1),
    "3x3 at 14": (256, 14, 256, 3, 1, 1),
    "1x1 at 28": (512, 28, 128, 1, 1, 1),
    "depthwise at 56": (144, 56, 144, 3, 1, 144),
    "tiny": (8, 8, 8, 3, 1, 1),
}
# channels, size, kernel, stride, padding
POOLS = {"3x3/2 at 112": (64, 112, 3, 2, 1), "2x2/2 at 28": (256, 28, 2, 2, 0)}


def image(channels: int, size: int, memory_format: str) -> np.ndarray:
    """A random float32 batch of one, (1, C, H, W) in the given memory format."""
    x = np.random.default_rng(0).standard_normal((1, size, size, channels), dtype=np.float32).transpose(0, 3, 1, 2)
    return x if memory_format == "channels_last" else np.ascontiguousarray(x)


class Conv2d:
    """The function, weights packed in every call, and the plan, packed once."""

    params = (list(CONVS), ["contiguous", "channels_last"])
    param_names = ("layer", "memory_format")

    def setup(self, layer, memory_format):
        """Make arrays, and call once so that nothing is compiled while timing."""
        channels, size, filters, kernel, stride, groups = CONVS[layer]
        self.x = image(channels, size, memory_format)
        shape = (filters, channels // groups, kernel, kernel)
        self.weight = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        self.how = {"stride": stride, "padding": kernel // 2, "groups": groups}
        self.plan = fastconv.plan(self.x.shape, self.weight, memory_format=memory_format, **self.how)
        self.out = self.plan(self.x)
        fastconv.conv2d(self.x, self.weight, **self.how)

    def time_conv2d(self, layer, memory_format):
        """One call with raw weights."""
        fastconv.conv2d(self.x, self.weight, **self.how)

    def time_plan(self, layer, memory_format):
        """One call of a plan."""
        self.plan(self.x, out=self.out)


class Pool2d:
    """Max and average pooling."""

    params = (["max_pool2d", "avg_pool2d"], list(POOLS), ["contiguous", "channels_last"])
    param_names = ("function", "layer", "memory_format")

    def setup(self, function, layer, memory_format):
        """Make the array, and call once so that nothing is compiled while timing."""
        channels, size, *self.window = POOLS[layer]
        self.x = image(channels, size, memory_format)
        self.pool = getattr(fastconv, function)
        self.pool(self.x, *self.window)

    def time_pool(self, function, layer, memory_format):
        """One call."""
        self.pool(self.x, *self.window)

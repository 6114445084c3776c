"""Pooling."""

from __future__ import annotations

import fastconv

from .common import FORMATS, normal

# channels, size, window, stride
WINDOWS = {
    "tiny 2x2": (8, 8, 2, 2),
    "3x3 stride 2, 64 at 112": (64, 112, 3, 2),
    "2x2, 256 at 28": (256, 28, 2, 2),
    "7x7 global, 2048 at 7": (2048, 7, 7, 7),
}


class Pool2d:
    """Maximum, with and without indices, average and norm."""

    calls = {
        "max": lambda x, *window: fastconv.max_pool2d(x, *window),
        "max, indices": lambda x, *window: fastconv.max_pool2d(x, *window, return_indices=True),
        "average": lambda x, *window: fastconv.avg_pool2d(x, *window),
        "L2 norm": lambda x, *window: fastconv.lp_pool2d(x, 2, *window),
    }
    params = (list(calls), list(WINDOWS), FORMATS)
    param_names = ("pooling", "window", "memory_format")

    def setup(self, pooling, window, memory_format):
        """Make the array, and call once so that nothing is compiled while timing."""
        channels, size, *self.window = WINDOWS[window]
        self.x = normal((1, channels, size, size), memory_format=memory_format)
        self.pool = self.calls[pooling]
        self.pool(self.x, *self.window)

    def time_pool(self, pooling, window, memory_format):
        """One call."""
        self.pool(self.x, *self.window)

"""Bytes: scratch memory of plans, and what calls allocate. Nearly the same in every run, unlike times."""

from __future__ import annotations

import tracemalloc

import fastconv
from fastconv import grad

from .common import FORMATS, TINY, Layer
from .layers import NETWORKS, training_step

LAYERS = {
    "tiny 3x3": TINY,
    # ResNet-50
    "7x7 stride 2, RGB at 224": Layer(3, 224, 64, (7, 7), stride=2),
    "3x3, 64 at 56": Layer(64, 56, 64, (3, 3)),
    "1x1, 256 at 56": Layer(256, 56, 64, (1, 1)),
    "1x1 stride 2, 512 at 28": Layer(512, 28, 1024, (1, 1), stride=2),
    "3x3, 512 at 7": Layer(512, 7, 512, (3, 3)),
    # VGG-16
    "3x3, 64 at 224": Layer(64, 224, 64, (3, 3)),
    "3x3, 256 at 56": Layer(256, 56, 256, (3, 3)),
    "3x3, 512 at 14": Layer(512, 14, 512, (3, 3)),
}


class Workspace:
    """Scratch memory of one call of a plan, on as many threads as there are cores."""

    params = (list(LAYERS), FORMATS)
    param_names = ("layer", "memory_format")
    unit = "bytes"

    def track_workspace(self, layer, memory_format):
        """``Plan.workspace_bytes``."""
        this = LAYERS[layer]
        _, weight = this.arrays(memory_format)
        return fastconv.plan(this.shape, weight, memory_format=memory_format, **this.options).workspace_bytes


def peak_bytes(call):
    """The most that NumPy and Python hold during a second call beyond what they held before it."""
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Peak:
    """What functions allocate at their peak, results included: 8x64 maps of 56x56, filters of 3x3."""

    calls = {
        "conv2d": lambda x, w: fastconv.conv2d(x, w, padding=1),
        "grad.conv2d_input": lambda x, w: grad.conv2d_input(x.shape, w, x, padding=1),
        "grad.conv2d_weight": lambda x, w: grad.conv2d_weight(x, w.shape, x, padding=1),
    }
    params = (list(calls), FORMATS)
    param_names = ("function", "memory_format")
    unit = "bytes"

    def track_peak(self, function, memory_format):
        """By tracemalloc's account."""
        arrays = Layer(64, 56, 64, (3, 3), batch=8).arrays(memory_format)
        return peak_bytes(lambda: self.calls[function](*arrays))


class Training:
    """What a step of training with Adam allocates at its peak, beyond parameters and the optimizer's state."""

    params = (list(NETWORKS),)
    param_names = ("network",)
    unit = "bytes"

    def track_peak(self, network):
        """By tracemalloc's account."""
        return peak_bytes(training_step(network, "Adam"))

"""Layers, and whole steps of training with them."""

from __future__ import annotations

import copy

import numpy as np

from fastconv import nn, optim

from .common import normal


class Layers:
    """Single layers on channels-last arrays."""

    makers = {
        "Conv2d 3x3, 32x64 at 28": lambda: (nn.Conv2d(64, 64, 3, padding=1), (32, 64, 28, 28)),
        "BatchNorm2d, 32x64 at 28": lambda: (nn.BatchNorm2d(64), (32, 64, 28, 28)),
        "Linear, 64x1024 to 256": lambda: (nn.Linear(1024, 256), (64, 1024)),
    }
    params = (list(makers),)
    param_names = ("layer",)

    def setup(self, layer):
        """Make arrays, and call once so that nothing is compiled while timing."""
        nn.manual_seed(0)
        self.layer, shape = self.makers[layer]()
        self.x = normal(shape, memory_format="channels_last" if len(shape) == 4 else "contiguous")
        self.grad_output = np.ones_like(self.layer(self.x))
        self.eval = copy.deepcopy(self.layer).eval()
        self.time_eval(layer)
        for _ in range(2):  # the first one sets gradients, the others add to them
            self.time_forward_backward(layer)

    def time_eval(self, layer):
        """Forward in eval mode."""
        self.eval(self.x)

    def time_forward_backward(self, layer):
        """Forward and backward in training mode."""
        self.layer(self.x)
        self.layer.backward(self.grad_output)


def _block(channels, filters):
    conv = nn.Conv2d(channels, filters, 3, padding=1)
    return [conv, nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]


# images, their channels and size, layers
NETWORKS = {
    "tiny": (16, 1, 8, lambda: [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)]),
    "3 blocks at 32": (
        64, 3, 32, lambda: [*_block(3, 32), *_block(32, 64), *_block(64, 128), nn.Flatten(), nn.Linear(128 * 4 * 4, 10)]
    ),
}  # fmt: skip


def training_step(network, optimizer):
    """A function that does a whole step: forward, loss, backward and the optimizer's update."""
    batch, channels, size, make = NETWORKS[network]
    nn.manual_seed(0)
    net, loss = nn.Sequential(*make()), nn.CrossEntropyLoss()
    images = normal((batch, channels, size, size), memory_format="channels_last")
    labels = np.arange(batch) % 10
    rule = getattr(optim, optimizer)(net.parameters(), lr=0.001)

    def step():
        loss(net(images), labels)
        net.backward(loss.backward(), input_grad=False)
        rule.step()
        rule.zero_grad()

    return step


class Training:
    """A step of training."""

    params = (list(NETWORKS), ["SGD", "Adam"])
    param_names = ("network", "optimizer")

    def setup(self, network, optimizer):
        """Take a first step, so that nothing is compiled while timing."""
        self.step = training_step(network, optimizer)
        self.step()

    def time_step(self, network, optimizer):
        """Forward, loss, backward and update."""
        self.step()

"""Which neighbouring modules of a `Sequential` are computed in one pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastconv.nn.activation import LeakyReLU, ReLU, ReLU6
from fastconv.nn.conv import Conv2d, ConvPlans
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AvgPool2d, LPPool2d, MaxPool2d


class Fusion:
    """A convolution and the modules after it that it can take over.

    If none of them records, all are one plan. Else, an activation right after the convolution is computed with
    it if both record, and each module keeps what its `backward` needs.

    Parameters
    ----------
    conv : Conv2d
    norm, activation, pool : Module or None
        In this order.
    """

    def __init__(self, conv: Conv2d, norm: Any, activation: Any, pool: Any) -> None:
        self.modules: list[Any] = [m for m in (conv, norm, activation, pool) if m is not None]
        self.pair = (conv, activation) if norm is None and activation is not None else None
        fused, window = activation and activation.fused, pool and pool.window
        self.plans = ConvPlans(conv, norm, fused, window)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The last module's output."""
        if not any(module.recording for module in self.modules):
            for module in self.modules:
                module.keep()  # forgets what an earlier forward kept
            return self.plans(x)
        rest = self.modules
        if self.pair is not None and all(module.recording for module in self.pair):
            conv, activation = self.pair
            x = conv.activated(x, activation.fused)
            activation.keep(x, output=x)
            rest = self.modules[2:]
        for module in rest:
            x = module.forward(x)
        return x


def stages(modules: Iterable[Module]) -> list[Callable[[np.ndarray], np.ndarray]]:
    """The modules, with those that are computed in one pass joined to a `Fusion`."""
    queue = deque(modules)
    found: list[Callable[[np.ndarray], np.ndarray]] = []

    def take(conv: Conv2d, *kinds: type) -> Any:
        # Exactly these types: a subclass may compute something else.
        return queue.popleft() if queue and type(queue[0]) in kinds and _fits(queue[0], conv) else None

    while queue:
        module = queue.popleft()
        if type(module) is Conv2d:
            norm = take(module, BatchNorm2d)
            activation = take(module, ReLU, ReLU6, LeakyReLU)
            pool = take(module, MaxPool2d, AvgPool2d, LPPool2d)
            if (norm, activation, pool) != (None, None, None):
                found.append(Fusion(module, norm, activation, pool))
                continue
        found.append(module)
    return found


def _fits(module: Any, conv: Conv2d) -> bool:
    if isinstance(module, BatchNorm2d):
        return module.running_mean is not None and module.num_features == conv.weight.value.shape[0]
    return not isinstance(module, LeakyReLU) or module.fused is not None

"""The calls of `bench/crowds.py` made of PyTorch, to compare what a crowd of threads costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn import grad


def calls() -> list[tuple[Callable[[], np.ndarray], np.ndarray]]:
    """The same 13 kinds and shapes, each with its result."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tiny, small = normal(1, 8, 8, 8), normal(8, 8, 3, 3)
    x, weight, wide = normal(2, 32, 28, 28), normal(32, 32, 3, 3), normal(32, 1, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: F.conv2d(tiny, small),
        lambda: F.conv2d(x, weight, padding=1),
        lambda: F.conv2d(x.double(), weight.double()),
        lambda: F.conv2d(last, wide, padding=1, groups=32),
        lambda: F.conv_transpose2d(x, weight, padding=1),
        lambda: grad.conv2d_input(x.shape, weight, x, padding=1),
        lambda: grad.conv2d_weight(x, weight.shape, x, padding=1),
        lambda: x.sum((0, 2, 3)),
        lambda: F.max_pool2d(last, 3, stride=2),
        lambda: F.avg_pool2d(x, 2),
        lambda: F.unfold(x, 3),
        lambda: F.conv2d(last, weight, padding=1).relu_(),
        lambda: F.max_pool2d(F.conv2d(x, weight, padding=1), 2),
    ]
    return [(_as_array(kind), kind().numpy()) for kind in kinds]


def _as_array(kind: Callable[[], torch.Tensor]) -> Callable[[], np.ndarray]:
    return lambda: kind().numpy()

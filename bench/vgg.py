"""What the section ``vgg-step`` trains: the same network, first values and batch for fastconv and for torch."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastconv

BATCH, CLASSES = 64, 10
LEARNING_RATE, MOMENTUM = 0.01, 0.9
CHECKED_STEPS = 3  # whose losses are compared before anything is timed


def network(nn: Any) -> Any:
    """The layers, from `fastconv.nn` or `torch.nn`: their names and arguments are the same."""

    def block(channels: int, filters: int) -> list[Any]:
        first, second = nn.Conv2d(channels, filters, 3, padding=1), nn.Conv2d(filters, filters, 3, padding=1)
        return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(3, 64), *block(64, 128), *block(128, 256),
        nn.Flatten(), nn.Linear(256 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, CLASSES),
    )  # fmt: skip


def seeded() -> fastconv.nn.Sequential:
    """fastconv's network, with the first values that all start from."""
    fastconv.nn.manual_seed(0)
    return network(fastconv.nn)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Channels-last images (64, 3, 32, 32), each the pattern of its class with noise on it, and the classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(BATCH) % CLASSES
    patterns = rng.standard_normal((CLASSES, 32, 32, 3), dtype=np.float32)
    images = patterns[classes] + rng.standard_normal((BATCH, 32, 32, 3), dtype=np.float32)
    return images.transpose(0, 3, 1, 2), classes

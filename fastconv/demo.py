"""A small network that learns to read digits: what ``fastconv train-demo`` runs, and a training loop to copy.

The 1797 images of 8x8 pixels come with scikit-learn (Alpaydin and Kaynak, 1998, UCI Machine Learning Repository).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from fastconv import nn, optim

_HELD_OUT = 4  # one image in so many is for testing
_PACKAGES = {"scikit-learn": "sklearn", "matplotlib": "matplotlib"}  # what pip calls them, and Python


@dataclass(frozen=True)
class Settings:
    """How to train; the same settings give the same results.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8), float32 from 0 to 1, and the digits they show, to train on and to test with."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave: their mean loss, and then the accuracy on the test images.

    The speed is that of training; kernels are compiled in the first epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float


def check_packages() -> None:
    """Raise ImportError, which names the extra, if a package that the demo needs is not installed."""
    missing = [name for name, module in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"train-demo needs {' and '.join(missing)}: pip install 'fastconv[demo]'")


def digits(rng: np.random.Generator) -> Digits:
    """The images in random order, a quarter of them for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = rng.permutation(len(images))
    test, train = np.split(order, [len(images) // _HELD_OUT])
    return Digits(images[train], labels[train], images[test], labels[test])


def network(rng: np.random.Generator) -> nn.Sequential:
    """Two times convolution, ReLU and pooling, then a fully connected layer: scores for ten digits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3, rng=rng), nn.Linear(64 * 2 * 2, 10, rng=rng),
    )  # fmt: skip


def train(net: nn.Sequential, data: Digits, settings: Settings, rng: np.random.Generator) -> Iterator[Epoch]:
    """Train with Adam, and yield the figures of each epoch."""
    optimizer, loss = optim.Adam(net.parameters(), lr=settings.learning_rate), nn.CrossEntropyLoss()
    count = len(data.train_labels)
    for epoch in range(1, settings.epochs + 1):
        start, total = time.perf_counter(), 0.0
        order = rng.permutation(count)
        net.train()
        for first in range(0, count, settings.batch_size):
            batch = order[first : first + settings.batch_size]
            total += len(batch) * loss(net(data.train_images[batch]), data.train_labels[batch])
            net.backward(loss.backward(), input_grad=False)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        yield Epoch(epoch, total / count, accuracy(net, data), count / seconds)


def accuracy(net: nn.Sequential, data: Digits) -> float:
    """Share of the test images that the network reads correctly."""
    scores = net.eval()(data.test_images)
    return float((scores.argmax(axis=1) == data.test_labels).mean())


def draw(history: list[Epoch], path: str | os.PathLike) -> None:
    """Loss and accuracy of each epoch as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws into memory: no display is needed
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot(xlabel="epoch", ylabel="loss (training images)", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = left.twinx()
    right.set_ylabel("accuracy (test images)")
    numbers = [e.epoch for e in history]
    lines = [
        *left.plot(numbers, [e.loss for e in history], "C0o-", label="loss"),
        *right.plot(numbers, [e.accuracy for e in history], "C1s-", label="accuracy"),
    ]
    left.legend(handles=lines, loc="center right")
    FigureCanvasAgg(figure).print_png(os.fspath(path))

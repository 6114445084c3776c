"""Fine-tuning on a few images, against training from scratch; and what frozen layers save of a step's time.

    python bench/finetune.py --markdown docs/fine-tuning.md

draws half of the ten digits, trains a network to tell those apart, on images that are moved by up to a pixel, and
stores it. Then it trains on 5 images of each of the other digits: from scratch, only a new head on the stored network,
or all of it with a smaller rate below the head. The rate of each way was chosen for it in draws from 100 on, which
are not among those that are reported. Needs scikit-learn and matplotlib, ``pip install ".[demo]"``. Everything is
seeded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import vgg
from report import circumstances, table

import fastconv
from fastconv import demo, nn, optim


@dataclass(frozen=True)
class Way:
    """How to train: the rate of Adam, what the rate below the head is multiplied by, whether from stored values."""

    name: str
    rate: float
    below: float
    stored: bool = True


WAYS = (
    Way("from scratch", 0.001, 1, stored=False), Way("head only", 0.003, 0),
    Way("all layers, smaller rate below the head", 0.003, 0.3),
)  # fmt: skip
_PER_CLASS, _HALF = 5, 5
_STEPS, _EVERY, _EPOCHS, _BATCH = 160, 5, 30, 32
_HEAD = "fc.*"
_ROUNDS = 15
# Of the network of `vgg`, and the patterns of their parameters' names.
_FROZEN = {"nothing": (), "the first 4 convolutions": ("[0-9].*",), "all 6 convolutions": ("[0-9].*", "1[0-4].*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write figures here, and the plot beside it")
    options = parser.parse_args()
    numba.set_num_threads(options.threads)
    curves = {way: np.array(accuracies) for way, accuracies in compared(options.seeds).items()}
    text = report(curves, step_times(), options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
        draw(curves, options.markdown.with_suffix(".png"))


def compared(seeds: int) -> dict[str, list[list[float]]]:
    """For each way and seed, accuracies on the images left over."""
    found: dict[str, list[list[float]]] = {way.name: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            images, labels = drawn(rng)
            stored = Path(folder, f"{seed}.npz")
            fastconv.save(trained_base(images, labels, rng), stored)
            few = few_images(images, labels, rng)
            for way in WAYS:
                found[way.name].append(list(accuracies(way, stored, few, seed)))
    return found


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All images, and the digits they show, which are renamed at random."""
    data = demo.digits(rng)
    labels = np.concatenate([data.train_labels, data.test_labels])
    return np.concatenate([data.train_images, data.test_images]), rng.permutation(10)[labels]


def network(rng: np.random.Generator) -> nn.Sequential:
    """Two convolutions with batch normalisation, and scores for half of the digits."""
    features = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, rng=rng), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, rng=rng), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    head = nn.Linear(64 * 4 * 4, _HALF, rng=rng)
    return nn.Sequential({"features": features, "flatten": nn.Flatten(), "dropout": nn.Dropout(rng=rng), "fc": head})


def trained_base(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> nn.Sequential:
    """A network that tells the first half of the digits apart."""
    images, labels = images[labels < _HALF], labels[labels < _HALF]
    net = network(rng)
    optimizer, loss = optim.Adam(net.parameters(), lr=0.003), nn.CrossEntropyLoss()
    for _ in range(_EPOCHS):
        for batch in np.array_split(rng.permutation(len(labels)), len(labels) // _BATCH):
            loss(net(fastconv.random_crop(images[batch], 8, padding=1, rng=rng)), labels[batch])
            net.backward(loss.backward(), input_grad=False)
            optimizer.step()
            optimizer.zero_grad()
    return net


def few_images(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> demo.Digits:
    """Of the other half of the digits, numbered from 0: some images of each to train on, all others to test with."""
    labels = labels - _HALF
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == n))[:_PER_CLASS] for n in range(_HALF)])
    rest = np.setdiff1d(np.flatnonzero(labels >= 0), chosen)
    return demo.Digits(images[chosen], labels[chosen], images[rest], labels[rest])


def accuracies(way: Way, stored: Path, few: demo.Digits, seed: int) -> Iterator[float]:
    """Train on all of the few images at each step; the accuracy after every few steps."""
    rng = np.random.default_rng(seed)
    net = network(rng)
    if way.stored:
        net.load_state_dict(fastconv.load(stored))
        nn.replace_head(net, _HALF, rng=rng)
    if way.below == 0:
        net.freeze("features.*")
    groups = optim.parameter_groups(net, way.rate, {_HEAD: 1, "*": way.below})
    optimizer, loss = optim.Adam(groups), nn.CrossEntropyLoss()
    for step in range(1, _STEPS + 1):
        net.train()
        net.features.train(way.below > 0)  # the statistics of frozen features stay, too
        loss(net(few.train_images), few.train_labels)
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
        if step % _EVERY == 0:
            yield demo.accuracy(net, few)


def step_times() -> dict[str, dict[str, float]]:
    """Median milliseconds of forward and backward of a VGG-style network, with more and more of it frozen."""
    calls = {}
    for name, patterns in _FROZEN.items():
        net = vgg.seeded()
        for pattern in patterns:
            net.freeze(pattern)
        calls[name] = timed_step(net)
    for call in calls.values():
        call()  # compiles
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            samples[name].append(call())
    return {
        name: {kind: 1e3 * statistics.median(s[n] for s in found) for n, kind in enumerate(("forward", "backward"))}
        for name, found in samples.items()
    }


def timed_step(net: nn.Sequential) -> Callable[[], tuple[float, float]]:
    """A call that gives the seconds of a forward and of a backward pass."""
    images, classes = vgg.batch()
    loss = nn.CrossEntropyLoss()

    def call() -> tuple[float, float]:
        for parameter in net.parameters():
            parameter.grad = None
        start = time.perf_counter()
        loss(net(images), classes)
        middle = time.perf_counter()
        net.backward(loss.backward(), input_grad=False)
        return middle - start, time.perf_counter() - middle

    return call


def report(curves: dict[str, np.ndarray], steps: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    """The figures in Markdown."""
    rows: list[list[str]] = []
    for way in WAYS:
        last, scratch = (curves[name][:, -1] for name in (way.name, WAYS[0].name))
        rates = [f"{way.rate:g}", f"{way.rate * way.below:g}"]
        figures = [f"{value:.1%}" for value in (last.mean(), last.std(ddof=1), last.min())]
        rows.append([way.name, *rates, *figures, *(gained(last - scratch) if way.stored else "--")])
    times = [[name, f"{t['forward']:.1f}", f"{t['backward']:.1f}"] for name, t in steps.items()]
    facts: dict[str, Any] = circumstances(options.threads, _ROUNDS)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join([
        "# Fine-tuning", "",
        "Written by `python bench/finetune.py --markdown docs/fine-tuning.md`, not by hand:",
        f"{facts['cpu']}, {options.threads} threads, {versions}, {facts['date']}.", "",
        f"A network that has learned {_HALF} digits, drawn at random, learns the other {10 - _HALF} from {_PER_CLASS}",
        f"images of each, in {_STEPS} steps of Adam; accuracy on all other images of these, {options.seeds} draws.", "",
        table(["trained", "rate of the head", "rate below", "mean", "deviation", "worst", "gain", "wins"], rows), "",
        "The gain over training from scratch, in points, is the mean over the draws with its standard error; wins are",
        "the draws with a gain. Rates were chosen in other draws, for each way by itself.", "",
        "![Accuracy as training goes on](fine-tuning.png)", "",
        f"Milliseconds of a step of the VGG-style network of `bench/vgg.py` on {vgg.BATCH} images, by what is frozen:",
        "nothing is computed for frozen layers below the lowest that learns.", "",
        table(["frozen", "forward", "backward"], times),
    ])  # fmt: skip


def gained(differences: np.ndarray) -> tuple[str, str]:
    """By how much a way is better than another one in the same draws, and in how many of them."""
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return f"{100 * differences.mean():.1f} ± {100 * error:.1f}", f"{(differences > 0).sum()} of {len(differences)}"


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Mean accuracy as training goes on, with a band of a standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="accuracy on other images")
    for way, found in curves.items():
        steps, mean, deviation = _EVERY * np.arange(1, found.shape[1] + 1), found.mean(0), found.std(0, ddof=1)
        axes.plot(steps, mean, label=way)
        axes.fill_between(steps, mean - deviation, mean + deviation, alpha=0.15)
    axes.legend(loc="lower right")
    FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
    main()

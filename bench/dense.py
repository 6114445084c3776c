"""A classifier on all windows of a larger image: as a convolution, and window by window.

    python bench/dense.py --markdown docs/sliding.md

VGG-16 as it is made for 224 pixels, on an image of 384: 6x6 windows, 32 pixels apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numba
import numpy as np
from report import circumstances, table

from fastconv import nn

_OWN, _SIZE, _STRIDE = 224, 384, 32
_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=12, help="windows at a time")
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    numba.set_num_threads(options.threads)
    times, crops = measure(options.batch)
    text = report(times, crops, options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def measure(batch: int) -> tuple[dict[str, float], int]:
    """Median seconds of both, in turns, and the number of windows."""
    net = nn.models.vgg16(rng=np.random.default_rng(0)).eval()
    whole = nn.to_fully_convolutional(net, (3, _OWN, _OWN))
    image = np.random.default_rng(1).standard_normal((1, _SIZE, _SIZE, 3), np.float32).transpose(0, 3, 1, 2)
    starts = range(0, _SIZE - _OWN + 1, _STRIDE)
    windows = np.concatenate([image[:, :, i : i + _OWN, j : j + _OWN] for i in starts for j in starts])
    last = np.ascontiguousarray(windows.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    parts = [last[first : first + batch] for first in range(0, len(last), batch)]
    calls = {
        "window by window": lambda: [net(part) for part in parts],
        "one image": lambda: nn.dense_scores(whole, image, average=False),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles and packs
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in samples.items()}, len(windows)


def report(times: dict[str, float], windows: int, options: argparse.Namespace) -> str:
    """The figures in Markdown."""
    facts = circumstances(options.threads, _ROUNDS)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    ratio = times["window by window"] / times["one image"]
    return "\n".join([
        "# Sliding over a larger image", "",
        "Written by `python bench/dense.py --markdown docs/sliding.md`, not by hand:",
        f"{facts['cpu']}, {options.threads} threads, {versions}, {facts['date']}; medians of {_ROUNDS} rounds.", "",
        f"Scores of VGG-16 for the {windows} windows of {_OWN} pixels, {_STRIDE} apart, of an image of {_SIZE} pixels:",
        f"{ratio:.1f} times as fast by `fastconv.nn.dense_scores` as window by window ({options.batch} at a time).", "",
        table(["scores of all windows", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in times.items()]),
    ])  # fmt: skip


if __name__ == "__main__":
    main()

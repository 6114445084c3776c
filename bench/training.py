"""The section ``vgg-step``: a whole step of training, against torch, and the memory that it takes."""

from __future__ import annotations

import argparse
import multiprocessing
import tracemalloc
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import vgg
from harness import Worker, interleave, summary
from peers import load

import fastconv

TITLE = f"A step of training: VGG-style network on {vgg.BATCH} images of 32x32, forward, backward and SGD with momentum"
AIM = (
    "At least 1.2 times torch in its faster layout; peak memory of the step within 1.3 times of what "
    "`fastconv.nn.activation_bytes` predicts."
)
_OURS, _RIVALS = "fastconv training", ("torch training, channels-last", "torch training, contiguous")
_WARM_STEPS = 3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time steps of every peer in interleaved rounds, and measure the memory of ours.

    Returns
    -------
    dict
        "rows": {peer: `harness.summary` of the seconds of a step}; "ratio" to the faster torch, of medians
        ("median") and of best times ("min"); "peak_bytes", "predicted_bytes" and "met".
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(step_memory, (options.threads, options.tune))
    with ExitStack() as stack:
        workers = {n: stack.enter_context(closing(Worker(n, options.threads))) for n in (_OURS, *_RIVALS)}
        _check_losses({name: worker.ask("prepare")[0] for name, worker in workers.items()})
        samples = interleave({name: worker.sample for name, worker in workers.items()}, options.rounds)
    rows = {name: summary(seconds) for name, seconds in samples.items()}
    ratio = {kind: min(rows[name][kind] for name in _RIVALS) / rows[_OURS][kind] for kind in ("median", "min")}
    met = ratio["median"] >= 1.2 and memory["peak_bytes"] <= 1.3 * memory["predicted_bytes"]
    return {"rows": rows, "ratio": ratio, **memory, "met": met}


def step_memory(threads: int, tune: bool) -> dict[str, int]:
    """The most that one step allocates, by NumPy's account to tracemalloc, and what is predicted of it.

    What is made once and kept is there before: parameters, the optimizer's state, and the kernels' workspaces.
    The first steps tune what wisdom does not know, if `tune`.
    """
    if tune:
        fastconv.set_mode("measure")
    step = load(_OURS)(threads).call
    for _ in range(_WARM_STEPS):
        step()
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    images, _ = vgg.batch()
    return {"peak_bytes": peak, "predicted_bytes": fastconv.nn.activation_bytes(vgg.seeded(), images.shape)}


def _check_losses(losses: dict[str, np.ndarray]) -> None:
    """Raise RuntimeError unless all peers' first losses agree: then they train the same network alike."""
    for name, found in losses.items():
        if not np.allclose(found, losses[_OURS], rtol=1e-4):
            raise RuntimeError(f"{name}: losses {found} of the first steps, {losses[_OURS]} by {_OURS}")


def table(result: dict[str, Any]) -> list[list[str]]:
    """Heading and lines: images per second, and our speed over the peer's."""
    rows = result["rows"]
    lines = [["who", "images/s", "images/s, best", "theirs / ours, median", "theirs / ours, best"]]
    for name, row in rows.items():
        speeds = [f"{vgg.BATCH / row[kind]:.0f}" for kind in ("median", "min")]
        lines.append([name, *speeds, *(f"{row[kind] / rows[_OURS][kind]:.2f}" for kind in ("median", "min"))])
    return lines


def verdict(result: dict[str, Any]) -> list[str]:
    """What was reached, in parts."""
    peak, predicted = result["peak_bytes"], result["predicted_bytes"]
    return [
        f"{result['ratio']['median']:.2f} times as fast as torch in its faster layout "
        f"({result['ratio']['min']:.2f} by best times)",
        f"peak memory {peak / 2**20:.1f} MiB, {peak / predicted:.2f} times the prediction",
    ]

"""A bit of everything that a user of fastconv does, with results that are known: for odd ways of running Python.

Prints, as JSON, where fastconv came from and what it left on disk.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastconv
from fastconv import nn, optim


def expect(what: str, holds: bool) -> None:
    """As assert, which -O takes away."""
    if not holds:
        raise SystemExit(f"wrong result: {what}")


def functions() -> None:
    """Convolution, its gradient and pooling of ones: every product is a count."""
    x, weight = np.ones((1, 8, 6, 6), np.float32), np.ones((16, 8, 3, 3), np.float32)
    out = fastconv.conv2d(x, weight)
    expect("conv2d", (out == 72).all())
    expect("plan", (fastconv.plan(x.shape, weight, activation="relu")(-x) == 0).all())
    expect("gradient", (fastconv.grad.conv2d_weight(x, weight.shape, np.ones_like(out)) == 16).all())
    expect("max_pool2d", (fastconv.max_pool2d(out, 2) == 72).all())


def training() -> None:
    """A step, and its parameters to disk and back."""
    nn.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    optimizer, loss = optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss()
    x, labels = np.random.default_rng(0).standard_normal((8, 1, 6, 6)).astype(np.float32), np.arange(8) % 2
    before = loss(net(x), labels)
    net.backward(loss.backward(), input_grad=False)
    optimizer.step()
    expect("training", loss(net(x), labels) < before)
    with tempfile.TemporaryDirectory() as folder:
        fastconv.save(net, f"{folder}/net.npz")
        state = fastconv.load(f"{folder}/net.npz")
    expect("checkpoint", all((state[name] == value).all() for name, value in net.state_dict().items()))


def errors() -> None:
    """Bad arguments are refused, by more than an assert."""
    for bad in (lambda: fastconv.conv2d(np.ones((1, 2, 3, 3)), np.ones((1, 3, 3, 3))), lambda: fastconv.parse("n1")):
        try:
            bad()
        except ValueError:
            continue
        raise SystemExit("wrong result: a bad argument was taken")


def main() -> None:
    functions()
    training()
    errors()
    package = Path(fastconv.__file__).parent
    kept = (package, Path(os.environ.get("NUMBA_CACHE_DIR", package)), Path.home() / ".cache")
    folders = sorted({str(file.parent) for place in kept for file in place.rglob("*.nbc")})
    print(json.dumps({"package": str(package), "kernels": folders, "optimize": sys.flags.optimize}))


if __name__ == "__main__":
    main()

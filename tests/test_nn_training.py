"""Training as a whole: it learns, and the same seed gives the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format

from fastconv import nn, optim


def network() -> nn.Sequential:
    """One of every kind of layer that takes part in training; maps of more than one job each."""
    block = nn.Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)), nn.Sequential())
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.LeakyReLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.1),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8), nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(8 * 6 * 5, 2),
    )  # fmt: skip


def train(steps: int, format: Any) -> tuple[list[float], str]:
    """Losses, and a hash of everything that training changes. Bright left halves are told from bright right ones."""
    nn.manual_seed(11)
    rng, net = np.random.default_rng(5), network()
    optimizer, loss = optim.Adam(net.parameters(), lr=0.01), nn.CrossEntropyLoss()
    losses = []
    for _ in range(steps):
        target = rng.integers(0, 2, 16)
        x = rng.standard_normal((16, 3, 28, 25)).astype(np.float32)
        x[target == 0, :, :, :12] += 0.5
        x[target == 1, :, :, 13:] += 0.5
        losses.append(loss(net(as_format(x, format)), target))
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.tobytes())
    digest.update(net.eval()(as_format(x, format)).tobytes())
    return losses, digest.hexdigest()


@pytest.mark.parametrize("format", FORMATS)
def test_training_learns(format: Any) -> None:
    losses, _ = train(25, format)
    assert max(losses[-5:]) < 0.25 < 0.5 < losses[0], losses


def test_training_is_the_same_bit_for_bit_whatever_the_threads() -> None:
    code = "import test_nn_training as t; print(*[t.train(3, format)[1] for format in t.FORMATS])"
    found = set()
    for threads in (1, 2, 2):
        env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": os.path.dirname(__file__)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1, found
    (hashes,) = found
    assert len(set(hashes.split())) == 2, "the two formats sum in different orders, so the hash does see rounding"

"""The bits of everything that fastconv computes on a CPU, as digests, for comparing thread counts and processes.

    NUMBA_NUM_THREADS=4 python bench/bits.py [--limit 2] [--short]

prints one line of JSON: a digest for each result by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numba
import numpy as np
from candidates import FORMATS, AnyProblem, everything, in_format, in_forms, kept_by, operands, run

import fastconv
from fastconv import nn, optim
from fastconv.problem import PoolProblem

_BOTH_GRADIENTS = ("forward", "backward_input", "backward_weight")
# Large enough to be cut for several threads. The first of each list are the short version.
CONVOLUTIONS = [
    ("n4c33h17w19k40r3s3p1_bias_relu", _BOTH_GRADIENTS), ("n2c64h14w14k64r1s1_bias", _BOTH_GRADIENTS),
    ("n2c48h28w28k48r3s3p1g48_relu6", _BOTH_GRADIENTS), ("n2c3h40w40k24r5s5p2u2_bias", _BOTH_GRADIENTS),
    ("n2c24h20w20k36r3s3p1u2g3", _BOTH_GRADIENTS), ("n2c16h24w24k32r3s3p1_bias_relu_max2u2", ("forward",)),
    ("n2c16h24w24k32r3s3p1_avg3u2p1", ("forward",)), ("n1c64h64w64k64r3s3p1", _BOTH_GRADIENTS),
]  # fmt: skip
POOLINGS = [
    ("n4c33h29w27_max3u2p1_indices", ("forward",)), ("n4c33h29w27_max3u2p1", ("backward_input",)),
    ("n4c40h28w28_avg3u1p1", ("forward", "backward_input")), ("n4c40h28w28_lp2u2n2", ("forward", "backward_input")),
    ("n2c24h56w56_avg56u56", ("forward", "backward_input")),
]  # fmt: skip
LOCAL = [("n4c17h12w11k9r3s3p1_bias", _BOTH_GRADIENTS)]


def digest(*arrays: Any) -> str:
    """Of the elements in the order of the axes, whatever the layout."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def kernels(short: bool) -> Iterator[tuple[str, str]]:
    """Every candidate of every direction, as it cuts its work for all threads."""
    threads = numba.config.NUMBA_NUM_THREADS
    lists = (CONVOLUTIONS[:3], POOLINGS[:3], LOCAL) if short else (CONVOLUTIONS, POOLINGS, LOCAL)
    for cases in lists:
        for descriptor, directions in cases:
            for problem in in_forms(descriptor, directions, local=cases is lists[2]):
                if short and problem.dtype == "float64":
                    continue
                arrays, kept = operands(problem), _kept(problem)
                for candidate in everything(problem):
                    if candidate.algorithm != "reference":
                        name = f"{problem.operation} {candidate.algorithm}|{problem.descriptor} {candidate}"
                        yield name, digest(*run(problem, candidate, arrays, threads, kept))


def _kept(problem: AnyProblem) -> tuple:
    if not isinstance(problem, PoolProblem) or problem.direction == "forward":
        return ()
    x = np.random.default_rng(1).random(problem.in_shape).astype(problem.dtype)
    return kept_by(problem, in_format(x, problem.memory_format))


def functions() -> Iterator[tuple[str, str]]:
    """Functions, plans and layers as they choose their algorithms themselves."""
    random = np.random.default_rng(2)
    weight, small = (random.standard_normal(s, np.float32) for s in ((48, 32, 3, 3), (32, 8, 3, 3)))
    for memory_format in FORMATS:
        x, grad = (in_format(random.standard_normal((4, c, 40, 40), np.float32), memory_format) for c in (32, 48))
        plan = fastconv.plan(x.shape, weight, padding=1, memory_format=memory_format)
        norm, average = nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(7)
        results = {
            "conv2d": fastconv.conv2d(x, weight, padding=1), "plan": plan(x),
            "grad.conv2d_input": fastconv.grad.conv2d_input(x.shape, weight, grad, padding=1),
            "grad.conv2d_weight": fastconv.grad.conv2d_weight(x, weight.shape, grad, padding=1),
            "grad.conv2d_bias": fastconv.grad.conv2d_bias(grad),
            "conv_transpose2d": fastconv.conv_transpose2d(x, small, stride=2, padding=1),
            "max_pool2d": fastconv.max_pool2d(x, 3, 2, 1), "avg_pool2d": fastconv.avg_pool2d(x, 3, 2, 1),
            "lp_pool2d": fastconv.lp_pool2d(x, 2, 2), "global_avg_pool2d": fastconv.global_avg_pool2d(x),
            "im2col": fastconv.im2col(x, 3, padding=1), "AdaptiveAvgPool2d": average(x),
            "BatchNorm2d": norm(x), "BatchNorm2d backward": norm.backward(x), "running_var": norm.running_var.value,
        }  # fmt: skip
        for name, result in results.items():
            yield f"{name}|{memory_format}", digest(result)


def network() -> nn.Sequential:
    """Layers of every kind that has parameters, and poolings."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 32, 1), nn.LeakyReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.AvgPool2d(3, 2, 1), nn.Dropout(0.2),
        nn.LocallyConnected2d(16, 8, 11, 3), nn.Flatten(), nn.Linear(8 * 9 * 9, 10),
    )  # fmt: skip


def training() -> Iterator[tuple[str, str]]:
    """Losses, gradients and weights of some steps."""
    for memory_format in FORMATS:
        for name, optimizer in (("SGD", optim.SGD), ("Adam", optim.Adam)):
            nn.manual_seed(3)
            random, net, loss = np.random.default_rng(4), network(), nn.CrossEntropyLoss()
            rule = optimizer(net.parameters(), lr=0.01)
            for step in range(3):
                x = in_format(random.standard_normal((8, 3, 26, 26), np.float32), memory_format)
                value = loss(net(x), random.integers(0, 10, 8))
                rule.zero_grad()
                grad = net.backward(loss.backward())
                rule.step()
                state = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
                yield f"training, {name}|{memory_format}, step {step}", digest(value, grad, *state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, help="for fastconv.threads; all of Numba's threads if not given")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    with fastconv.threads(options.limit) if options.limit else nullcontext():
        found = dict([*kernels(options.short), *functions(), *training()])
    print(json.dumps(found))


if __name__ == "__main__":
    main()

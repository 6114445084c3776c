"""What denormal numbers cost: times with them over times without, beside PyTorch, flushing and not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from candidates import in_format
from torch_twin import tensor, twin

import fastconv
from fastconv import algorithms, nn, optim
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.tuning import measure

# What is denormal: all of x, all of the weights, or the results alone.
KINDS = ("x", "weights", "results")
CONVOLUTIONS = [
    ("n1c64h28w28k64r3s3p1_f32_nhwc", ("direct", "im2col", "tiled")),
    ("n1c64h28w28k64r3s3p1_f32_nchw", ("direct", "im2col", "tiled")),
    ("n1c128h28w28k128r3s3p1g128_f32_nhwc", ("sliding", "depthwise")),
    ("n1c64h28w28k64r3s3p1_f32_nhwc_relu_max2u2", ("two_pass",)),
]  # fmt: skip
POOLINGS = ["n1c64h56w56_avg3u2p1_f32_nhwc", "n1c64h56w56_max3u2p1_f32_nhwc"]
_TINY = 1e-40
Row = tuple[str, str, list[float]]


def scaled(x: np.ndarray, weight: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Operands of order 1, and such that what `kind` says becomes denormal."""
    if kind == "x":
        return x * np.float32(_TINY), weight
    if kind == "weights":
        return x, None if weight is None else weight * np.float32(_TINY)
    return x * np.float32(1e-20), None if weight is None else weight * np.float32(1e-20)


def rows(repeats: int) -> list[Row]:
    """A name, a kind, and the slowdown of fastconv, of fastconv flushing, of PyTorch and of PyTorch flushing."""
    found = []
    for descriptor, names in CONVOLUTIONS:
        problem: Any = parse(descriptor)
        for name in names:
            found += [(f"{descriptor}, {name}", kind, _convolution(problem, name, kind, repeats)) for kind in KINDS]
    for descriptor in POOLINGS:
        found.append((descriptor, "x", _pooling(parse(descriptor), repeats)))
    found.append(("training step, gradients", "results", _training(repeats)))
    return found


def _convolution(problem: ConvProblem, name: str, kind: str, repeats: int) -> list[float]:
    work = measure.workload(problem)
    candidate = algorithms.candidates(problem, name)[0]
    calls = []
    for x, weight in ((work.x, work.weight), scaled(work.x, work.weight, kind)):
        arrays = measure.Workload(in_format(x, problem.memory_format), work.out.copy(order="K"), weight)
        ours = measure.prepare(problem, candidate, arrays, 1)[1]
        calls.append((ours, lambda arrays=arrays: twin(problem, {"x": arrays.x, "weight": arrays.weight})))
    return slowdowns(calls, repeats)


def _pooling(problem: Any, repeats: int) -> list[float]:
    work = measure.workload(problem)
    candidate = algorithms.candidates(problem)[0]
    calls = []
    for x in (work.x, work.x * np.float32(_TINY)):
        arrays = measure.Workload(in_format(x, problem.memory_format), work.out.copy(order="K"))
        ours = measure.prepare(problem, candidate, arrays, 1)[1]
        calls.append((ours, lambda arrays=arrays: twin(problem, {"x": arrays.x})))
    return slowdowns(calls, repeats)


def _training(repeats: int) -> list[float]:
    """Forward, backward and SGD of two convolutions, from a gradient of order 1 and from one that is nearly 0."""
    random = np.random.default_rng(0)
    x = random.standard_normal((8, 16, 28, 28), np.float32)
    mine = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, padding=1)
    )
    rules = optim.SGD(mine.parameters(), lr=1e-3), torch.optim.SGD(theirs.parameters(), lr=1e-3)
    calls = []
    for scale in (1.0, 1e-39):
        grad = random.standard_normal((8, 32, 28, 28), np.float32) * np.float32(scale)

        def ours(grad: np.ndarray = grad) -> None:
            rules[0].zero_grad()
            mine(x)
            mine.backward(grad)
            rules[0].step()

        def pytorch(grad: np.ndarray = grad) -> None:
            rules[1].zero_grad()
            theirs(tensor(x).requires_grad_()).backward(tensor(grad))
            rules[1].step()

        calls.append((ours, pytorch))
    return slowdowns(calls, repeats)


def slowdowns(calls: list[tuple[Callable, Callable]], repeats: int) -> list[float]:
    """Of the second pair over the first, by the best of rounds; not flushing, then flushing."""
    normal, denormal = calls
    times: dict[tuple[int, bool, bool], list[float]] = {}
    for _ in range(repeats):
        for flush in (False, True):
            fastconv.set_flush_denormal(flush)
            torch.set_flush_denormal(flush)
            for library in (0, 1):
                for slow, pair in ((False, normal), (True, denormal)):
                    times.setdefault((library, flush, slow), []).append(_seconds(pair[library]))
    fastconv.set_flush_denormal(False)
    torch.set_flush_denormal(False)
    return [
        min(times[library, flush, True]) / min(times[library, flush, False])
        for library in (0, 1)
        for flush in (False, True)
    ]


def _seconds(call: Callable[[], Any]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""Layers, losses and functions beside PyTorch's on arrays that are not finite everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from candidates import FORMATS, in_format
from nonfinite import kinds, with_specials
from torch_twin import tensor

import fastconv
from fastconv import nn, optim

_SHAPE = (3, 6, 9, 8)
_LAYERS: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
    ("ReLU", nn.ReLU, torch.nn.ReLU), ("ReLU6", nn.ReLU6, torch.nn.ReLU6),
    ("LeakyReLU", nn.LeakyReLU, torch.nn.LeakyReLU),
    ("LeakyReLU(0)", lambda: nn.LeakyReLU(0.0), lambda: torch.nn.LeakyReLU(0.0)),
    ("Softmax", lambda: nn.Softmax(1), lambda: torch.nn.Softmax(1)),
    ("BatchNorm2d", lambda: nn.BatchNorm2d(6), lambda: torch.nn.BatchNorm2d(6)),
    ("BatchNorm2d, eval", lambda: nn.BatchNorm2d(6).eval(), lambda: torch.nn.BatchNorm2d(6).eval()),
    ("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((4, 3)), lambda: torch.nn.AdaptiveAvgPool2d((4, 3))),
    ("AdaptiveAvgPool2d(1)", lambda: nn.AdaptiveAvgPool2d(1), lambda: torch.nn.AdaptiveAvgPool2d(1)),
    ("MaxPool2d", lambda: nn.MaxPool2d(3, 2, 1), lambda: torch.nn.MaxPool2d(3, 2, 1)),
    ("AvgPool2d", lambda: nn.AvgPool2d(3, 2, 1), lambda: torch.nn.AvgPool2d(3, 2, 1)),
    ("ConvTranspose2d", lambda: nn.ConvTranspose2d(6, 5, 3, 2), lambda: torch.nn.ConvTranspose2d(6, 5, 3, 2)),
    ("Linear", lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 7)),
     lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 7))),
]  # fmt: skip


def comparisons(seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """A name, fastconv's result and PyTorch's."""
    for format in FORMATS:
        for name, ours, theirs in _LAYERS:
            for what in ("x", "grad"):
                for part, a, b in _layer(ours(), theirs(), format, what, seed):
                    yield f"{name}, {part}", a, b
    yield from _losses(seed)
    yield from _functions(seed)
    yield from _steps(seed)


def different(seed: int) -> dict[str, int]:
    """How many results there are for each name, and how many elements of them PyTorch has otherwise."""
    found: dict[str, list[int]] = {}
    with np.errstate(all="ignore"):
        for name, ours, theirs in comparisons(seed):
            count = found.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += int((kinds(np.asarray(ours)) != kinds(np.asarray(theirs))).sum())
    return found


def _layer(ours: Any, theirs: Any, format: Any, what: str, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    x = in_format(random.standard_normal(_SHAPE, np.float32), format)
    x = with_specials(x, seed) if what == "x" else x
    if list(theirs.parameters()):
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k})
    leaf = tensor(x).requires_grad_()
    whole = nn.Sequential(ours)  # which, in training, has a layer in eval mode keep what its gradient needs
    y, expected = whole(x), theirs(leaf)
    yield "forward", y, expected.detach().numpy()
    grad = random.standard_normal(y.shape, np.float32)
    grad = with_specials(grad, seed) if what == "grad" else grad
    if y.ndim == 4:
        grad = in_format(grad, format)
    expected.backward(tensor(grad))
    yield "backward", whole.backward(grad), leaf.grad.numpy()
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        yield "gradients of parameters", parameter.grad, twin.grad.numpy()
    for name, twin in theirs.named_buffers():
        if name != "num_batches_tracked":
            yield "running statistics", ours.state_dict()[name], twin.numpy()


def _losses(seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    scores, target = random.standard_normal((7, 5), np.float32), random.integers(0, 5, 7)
    rows = {
        "NaN": np.nan,
        "inf": np.inf,
        "-inf": -np.inf,
    }
    for name, value in rows.items():
        output = scores.copy()
        output[2, 1] = output[3] = value
        output[4, target[4]] = value
        for smoothing in (0.0, 0.1):
            loss = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
            leaf = tensor(output).requires_grad_()
            expected = F.cross_entropy(leaf, tensor(target), label_smoothing=smoothing, reduction="none")
            yield f"CrossEntropyLoss of {name}, forward", loss(output, target), expected.detach().numpy()
            expected.sum().backward()
            yield f"CrossEntropyLoss of {name}, backward", loss.backward(), leaf.grad.numpy()
        loss, leaf = nn.MSELoss(reduction="none"), tensor(output).requires_grad_()
        expected = F.mse_loss(leaf, tensor(scores), reduction="none")
        yield "MSELoss, forward", loss(output, scores), expected.detach().numpy()
        expected.sum().backward()
        yield "MSELoss, backward", loss.backward(), leaf.grad.numpy()


def _functions(seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    for format in FORMATS:
        x = with_specials(in_format(random.standard_normal(_SHAPE, np.float32), format), seed)
        t = tensor(x)
        yield "global_max_pool2d", fastconv.global_max_pool2d(x), t.amax((2, 3), keepdim=True).numpy()
        yield "global_avg_pool2d", fastconv.global_avg_pool2d(x), t.mean((2, 3), keepdim=True).numpy()
        columns = F.unfold(t, 3, padding=1, stride=2)
        yield "im2col", fastconv.im2col(x, 3, padding=1, stride=2), columns.numpy()
        folded = F.fold(columns, _SHAPE[2:], 3, padding=1, stride=2).numpy()
        yield "col2im", fastconv.col2im(columns.numpy(), _SHAPE[2:], 3, padding=1, stride=2), folded


def _steps(seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    options: list[tuple[str, Any, Any, dict]] = [
        ("SGD", optim.SGD, torch.optim.SGD, {"momentum": 0.9}), ("Adam", optim.Adam, torch.optim.Adam, {}),
        ("Adam, amsgrad", optim.Adam, torch.optim.Adam, {"amsgrad": True}),
        ("RMSprop", optim.RMSprop, torch.optim.RMSprop, {}), ("Adagrad", optim.Adagrad, torch.optim.Adagrad, {}),
    ]  # fmt: skip
    for name, ours, theirs, rest in options:
        value = random.standard_normal((4, 5), np.float32)
        mine, twin = nn.Parameter(value.copy()), torch.nn.Parameter(tensor(value.copy()))
        rules = ours([mine], lr=0.1, **rest), theirs([twin], lr=0.1, **rest)
        for step in range(2):
            grad = random.standard_normal((4, 5), np.float32)
            grad = with_specials(grad, seed) if step == 0 else grad
            mine.grad, twin.grad = grad.copy(), tensor(grad.copy())
            for rule in rules:
                rule.step()
            yield f"{name}, step", mine.value, twin.detach().numpy()

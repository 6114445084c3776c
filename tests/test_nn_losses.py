"""Losses: formulas, finite differences, torch, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn

REDUCTIONS = ["mean", "sum", "none"]
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
LOSSES = {
    "mse": lambda reduction: nn.MSELoss(reduction),
    "cross entropy": lambda reduction: nn.CrossEntropyLoss(reduction=reduction),
    "smoothed": lambda reduction: nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.2),
}
losses = pytest.mark.parametrize("name", LOSSES)


def data(name: str, dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    """Output and target."""
    rng = np.random.default_rng(0)
    if name == "mse":
        return rng.standard_normal((3, 2, 4, 5)).astype(dtype), rng.standard_normal((3, 2, 4, 5)).astype(dtype)
    return 3 * rng.standard_normal((6, 5)).astype(dtype), rng.integers(0, 5, 6)


@losses
@reductions
def test_gradients(name: str, reduction: str) -> None:
    loss, (output, target) = LOSSES[name](reduction), data(name)

    def backward(grad: np.ndarray, output: np.ndarray) -> np.ndarray:
        loss(output, target)
        return loss.backward() * (grad if grad.ndim < 1 or grad.ndim == output.ndim else grad[:, None])

    fastconv.gradcheck((lambda output: loss(output, target), backward), output, atol=1e-8, rtol=1e-6)


@losses
@reductions
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_like_torch(name: str, reduction: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    (output, target), loss = data(name, dtype), LOSSES[name](reduction)
    smoothing = {"label_smoothing": 0.2} if name == "smoothed" else {}
    kind = torch.nn.MSELoss if name == "mse" else torch.nn.CrossEntropyLoss
    twin, twins_output = kind(reduction=reduction, **smoothing), torch.tensor(output, requires_grad=True)
    expected = twin(twins_output, torch.tensor(target))
    result = loss(output, target)
    bound = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(result, expected.detach().numpy(), **bound)
    assert reduction == "none" or isinstance(result, float)
    expected.sum().backward()
    grad = loss.backward()
    assert grad.dtype == dtype
    np.testing.assert_allclose(grad, twins_output.grad.numpy(), **bound)


def test_cross_entropy_by_hand() -> None:
    loss = nn.CrossEntropyLoss()
    assert loss(np.zeros((2, 4), np.float32), [1, 3]) == pytest.approx(np.log(4))
    np.testing.assert_allclose(loss.backward(), [[0.125, -0.375, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])


def test_cross_entropy_of_extreme_scores() -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    scores = np.array([[3e38, -3e38, 0], [1000, 999, -np.inf], [-1e30, -1e30, -1e30]], np.float32)
    np.testing.assert_allclose(loss(scores, [0, 0, 2]), [0, np.log1p(np.exp(-1)), np.log(3)], rtol=1e-6)
    assert np.isfinite(loss.backward()).all()


@losses
def test_backward_needs_a_forward(name: str) -> None:
    loss, (output, target) = LOSSES[name]("mean"), data(name)
    with pytest.raises(RuntimeError, match="backward needs a forward before each backward"):
        loss.backward()
    loss(output, target)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward needs a forward before each backward"):
        loss.backward()


def classify(shape: tuple[int, ...], target: list) -> float:
    return nn.CrossEntropyLoss()(np.zeros(shape), target)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.MSELoss("median"), ValueError, "reduction must be one of"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, "label_smoothing must be between 0 and 1, got 2"),
        (lambda: classify((2, 3, 4), [0, 1]), ValueError, r"output must have shape \(N, K\)"),
        (lambda: classify((2, 3), [0, 3]), ValueError, r"target must be in \[0, 3\), got 0 to 3"),
        (lambda: classify((2, 3), [0, -1]), ValueError, r"target must be in \[0, 3\), got -1"),
        (lambda: classify((2, 3), [0]), ValueError, r"target must have shape \(2,\)"),
        (lambda: classify((2, 3), [0.0, 1.0]), TypeError, "target must hold integers"),
        (lambda: nn.MSELoss()(np.zeros((2, 3)), np.zeros(3)), ValueError, r"target must have shape \(2, 3\)"),
        (lambda: nn.MSELoss()(np.zeros(3), np.zeros(3, np.float32)), TypeError, "target must have dtype float64"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

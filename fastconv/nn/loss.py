"""Losses: a number from a network's output, and the gradient from which `backward` starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from fastconv.arrays import as_floats
from fastconv.cpu.elementwise import check_alike

_REDUCTIONS = ("mean", "sum", "none")


class Loss(ABC):
    """Base class: `forward` keeps the gradient of each item's loss, `backward` hands it out.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Of the items' losses: their mean, their sum, or the array of them.

    Raises
    ------
    ValueError
        For another reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        self.reduction = reduction
        self._gradient: np.ndarray | None = None

    @abstractmethod
    def items(self, output: np.ndarray, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each item, and its gradient with respect to `output`."""

    def forward(self, output: np.ndarray, target: Any) -> Any:
        """The loss: a float, or an array if nothing is reduced.

        Raises
        ------
        TypeError, ValueError
            If `output` and `target` do not fit.
        """
        losses, gradient = self.items(as_floats(output, "output"), target)
        if self.reduction == "none":
            self._gradient = gradient
            return losses
        total, share = losses.sum(dtype=np.float64), losses.size if self.reduction == "mean" else 1
        with np.errstate(invalid="ignore", divide="ignore"):  # the mean of nothing is NaN, as in torch
            self._gradient = gradient if share == 1 else gradient / share
            return float(total / share)

    def __call__(self, output: np.ndarray, target: Any) -> Any:
        """`forward`."""
        return self.forward(output, target)

    def backward(self) -> np.ndarray:
        """Gradient of the (summed) loss with respect to `output`.

        Raises
        ------
        RuntimeError
            If there was no `forward` since the last `backward`.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward before each backward")
        return gradient


class MSELoss(Loss):
    """(output - target)**2, of arrays of the same shape and dtype; parameters as `Loss`."""

    def items(self, output: np.ndarray, target: Any) -> tuple[np.ndarray, np.ndarray]:
        target = as_floats(target, "target")
        check_alike(output, target, "target")
        difference = output - target
        return difference**2, 2 * difference


class CrossEntropyLoss(Loss):
    """-log softmax(output)[target], of scores for K classes and the right one.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
    label_smoothing : float, default 0
        Between 0 and 1: this share of the target is spread evenly over all classes.

    Notes
    -----
    `forward` takes `output` (N, K), before any softmax, and `target`, N integers in [0, K).

    Raises
    ------
    ValueError
        For an argument out of range.
    """

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing!r}")
        self.label_smoothing = float(label_smoothing)

    def items(self, output: np.ndarray, target: Any) -> tuple[np.ndarray, np.ndarray]:
        classes = _classes(output, target)
        rows, smoothing = np.arange(len(classes)), self.label_smoothing
        with np.errstate(over="ignore", invalid="ignore"):  # -inf, whose exp is 0, and NaN, as in torch
            shifted = output - output.max(axis=1, keepdims=True)
        powers = np.exp(shifted)
        sums = powers.sum(axis=1, keepdims=True)
        logs = shifted - np.log(sums)
        losses = (smoothing - 1) * logs[rows, classes]
        if smoothing:  # 0 * inf would be NaN
            losses -= smoothing * logs.mean(axis=1)
        gradient = powers / sums - output.dtype.type(smoothing / output.shape[1])
        gradient[rows, classes] -= 1 - smoothing
        return losses, gradient


def _classes(output: np.ndarray, target: Any) -> np.ndarray:
    classes = np.asarray(target)
    if output.ndim != 2:
        raise ValueError(f"output must have shape (N, K), got {output.shape}")
    if classes.dtype.kind not in "iu":
        raise TypeError(f"target must hold integers, the classes, got {classes.dtype}")
    if classes.shape != output.shape[:1]:
        raise ValueError(f"target must have shape {output.shape[:1]}, one class for each row, got {classes.shape}")
    if classes.size and not 0 <= classes.min() <= classes.max() < output.shape[1]:
        raise ValueError(f"target must be in [0, {output.shape[1]}), got {classes.min()} to {classes.max()}")
    return classes

"""Losses: a number from a network's output, and the gradient from which `backward` starts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from fastconv.nn.backend import as_floats, backend, check_alike, check_place, device_of
from fastconv.sizes import real, shown

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
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {shown(reduction)}")
        self.reduction = reduction
        self._gradient: Any = None

    @abstractmethod
    def items(self, output: np.ndarray, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each item, and its gradient with respect to `output`."""

    def forward(self, output: np.ndarray, target: Any) -> Any:
        """The loss: a float, which on a GPU waits for it, or an array, without waiting, if nothing is reduced.

        Raises
        ------
        TypeError, ValueError
            If `output` and `target` do not fit.
        """
        losses, gradient = self.items(as_floats(output, "output"), target)
        if self.reduction == "none":
            self._gradient = gradient
            return losses
        ops, share = backend(output), math.prod(losses.shape) if self.reduction == "mean" else 1
        with np.errstate(invalid="ignore", divide="ignore"):  # the mean of nothing is NaN, as in torch
            self._gradient = gradient if share == 1 else ops.divided(gradient, share)
            return float(np.float64(ops.total(losses)) / share)

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
        target = as_floats(target, "target", beside=output, what="output")
        check_alike(output, target, "target")
        return backend(output).squared_error(output, target)


class CrossEntropyLoss(Loss):
    """-log softmax(output)[target], of scores for K classes and the right one.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
    label_smoothing : float, default 0
        Between 0 and 1: this share of the target is spread evenly over all classes.

    Notes
    -----
    `forward` takes `output` (N, K), before any softmax, and `target`, N integers in [0, K). On a GPU, where to look at
    them would be to wait, the loss and the gradient of a row whose class is out of range are NaN.

    Raises
    ------
    ValueError
        For an argument out of range.
    """

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__(reduction)
        self.label_smoothing = real(label_smoothing, "label_smoothing", 0, 1)

    def items(self, output: np.ndarray, target: Any) -> tuple[np.ndarray, np.ndarray]:
        return backend(output).cross_entropy(output, _classes(output, target), self.label_smoothing)


def _classes(output: Any, target: Any) -> Any:
    if len(output.shape) != 2:
        raise ValueError(f"output must have shape (N, K), got {tuple(output.shape)}")
    check_place(target, "target", device_of(output), "output")
    classes = backend(output).as_classes(target)
    if tuple(classes.shape) != (len(output),):
        raise ValueError(f"target must have shape {(len(output),)}, one class for each row, got {tuple(classes.shape)}")
    return classes

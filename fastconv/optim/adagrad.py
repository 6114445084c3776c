"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastconv.cpu import updates
from fastconv.nn.backend import backend
from fastconv.optim.optimizer import Optimizer


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients (Duchi et al., 2011).

    ``d = grad + weight_decay * value; s += d**2; value -= lr / (1 + (t - 1) * lr_decay) * d / (sqrt(s) + eps)``
    at step t = 1, 2, ...

    Parameters
    ----------
    params
        As `Optimizer`.
    lr : float, default 1e-2
    lr_decay, weight_decay : float, default 0
    initial_accumulator_value : float, default 0
        What the sum of squares starts from.
    eps : float, default 1e-10

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.
    """

    non_negative = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def __init__(
        self, params: Iterable, lr: float = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value, eps=eps,
        )  # fmt: skip

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def update(self, value: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], initial: bool) -> None:
        rate = group["lr"] / (1 + state.setdefault("step", 0) * group["lr_decay"])
        state["step"] += 1
        constants = {"rate": rate, "weight_decay": group["weight_decay"], "eps": group["eps"]}
        backend(value).update(updates.ADAGRAD, value, grad, state["sum"], **constants)

"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastconv.cpu import updates
from fastconv.nn.backend import backend
from fastconv.optim.optimizer import Optimizer
from fastconv.sizes import flag


class RMSprop(Optimizer):
    """Steps divided by the root of a running mean of squared gradients (Hinton's lecture 6, 2012).

    ``d = grad + weight_decay * value; s = alpha * s + (1 - alpha) * d**2``. If `centered`, the square of the
    running mean of ``d`` (Graves, 2013, arXiv 1308.0850) is subtracted from ``s`` below the root.
    ``b = momentum * b + d / (sqrt(s) + eps); value -= lr * b``.

    Parameters
    ----------
    params
        As `Optimizer`.
    lr : float, default 1e-2
    alpha : float, default 0.99
    eps : float, default 1e-8
    weight_decay, momentum : float, default 0
    centered : bool, default False

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.
    """

    non_negative = ("lr", "alpha", "eps", "weight_decay", "momentum")

    def __init__(
        self, params: Iterable, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )
        for group in self.param_groups:
            flag(group["centered"], "centered")

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        needed = {"square_avg": True, "momentum_buffer": group["momentum"], "grad_avg": group["centered"]}
        return {name: 0 for name, need in needed.items() if need}

    def update(self, value: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], initial: bool) -> None:
        rule = updates.RMSPROP_CENTERED if group["centered"] else updates.RMSPROP
        arrays = (state.get(name) for name in ("square_avg", "momentum_buffer", "grad_avg"))
        backend(value).update(
            rule, value, grad, *arrays, rate=group["lr"], eps=group["eps"],
            weight_decay=group["weight_decay"], momentum=group["momentum"], decay=group["alpha"],
            share=1 - group["alpha"],
        )  # fmt: skip

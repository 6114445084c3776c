"""Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fastconv.cpu import updates
from fastconv.nn.backend import backend
from fastconv.optim.optimizer import Optimizer
from fastconv.sizes import flag, real, shown


class Adam(Optimizer):
    """Running means of gradients and of their squares (Kingma and Ba, 2015, arXiv 1412.6980).

    ``d = grad + weight_decay * value; m = beta1 * m + (1 - beta1) * d; v = beta2 * v + (1 - beta2) * d**2;
    value -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)`` at step t = 1, 2, ...

    Parameters
    ----------
    params
        As `Optimizer`.
    lr : float, default 1e-3
    betas : (float, float), default (0.9, 0.999)
        Each in [0, 1).
    eps : float, default 1e-8
    weight_decay : float, default 0
    amsgrad : bool, default False
        Use the largest ``v`` so far (Reddi et al., 2018, arXiv 1904.09237).

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.
    """

    non_negative = ("lr", "eps", "weight_decay")

    def __init__(
        self, params: Iterable, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        for group in self.param_groups:
            flag(group["amsgrad"], "amsgrad")
            betas = group["betas"]
            if not isinstance(betas, (tuple, list)) or len(betas) != 2:
                raise TypeError(f"betas must be two numbers, got {shown(betas)}")
            if not all(0 <= real(beta, "betas") < 1 for beta in betas):
                raise ValueError(f"betas must be in [0, 1), got {shown(betas)}")

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        return dict.fromkeys(("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])), 0)

    def update(self, value: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], initial: bool) -> None:
        rule = updates.ADAM_AMSGRAD if group["amsgrad"] else updates.ADAM
        arrays = [state[name] for name in self.buffers(group)]
        t = state["step"] = state.get("step", 0) + 1
        first, second = group["betas"]
        backend(value).update(
            rule, value, grad, *arrays, rate=group["lr"] / (1 - first**t), eps=group["eps"],
            weight_decay=group["weight_decay"], gain=1 - first, decay=second, share=1 - second,
            correction=math.sqrt(1 - second**t),
        )  # fmt: skip

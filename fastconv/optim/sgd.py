"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastconv.cpu import updates
from fastconv.nn.backend import backend
from fastconv.optim.optimizer import Optimizer
from fastconv.sizes import flag, real


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

    ``d = grad + weight_decay * value``; with momentum ``b = momentum * b + (1 - dampening) * d`` (at first
    ``b = d``) takes its place, or ``d + momentum * b`` with `nesterov` (Sutskever et al., 2013);
    ``value -= lr * d``.

    Parameters
    ----------
    params
        As `Optimizer`.
    lr : float, default 1e-3
    momentum, dampening, weight_decay : float, default 0
    nesterov : bool, default False
        Needs a momentum and no dampening.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.
    """

    non_negative = ("lr", "momentum", "weight_decay")

    def __init__(
        self, params: Iterable, lr: float = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )
        for group in self.param_groups:
            real(group["dampening"], "dampening")
            if flag(group["nesterov"], "nesterov") and not (group["momentum"] > 0 == group["dampening"]):
                raise ValueError(
                    f"nesterov needs momentum > 0 and dampening 0, got {group['momentum']} and {group['dampening']}"
                )

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        return {"momentum_buffer": 0} if group["momentum"] else {}

    def update(self, value: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], initial: bool) -> None:
        momentum, constants = group["momentum"], {"rate": group["lr"], "weight_decay": group["weight_decay"]}
        if not momentum:
            backend(value).update(updates.SGD, value, grad, **constants)
            return
        gain = 1 if initial else 1 - group["dampening"]
        rule = updates.SGD_NESTEROV if group["nesterov"] else updates.SGD_MOMENTUM
        backend(value).update(rule, value, grad, state["momentum_buffer"], momentum=momentum, gain=gain, **constants)

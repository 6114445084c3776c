"""Every public function, and what makes calls of it; and those that need none, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import fastconv
from fastconv import grad, nn, optim
from hostile import functions, windows
from hostile.call import Call
from hostile.layers import LAYERS
from hostile.others import OTHERS

PUBLIC = {"fastconv": fastconv, "fastconv.grad": grad, "fastconv.nn": nn, "fastconv.optim": optim,
          "fastconv.nn.models": nn.models}  # fmt: skip
LEFT_OUT = {
    **dict.fromkeys(("fastconv.GradcheckError", "fastconv.WisdomError"), "an exception"),
    "fastconv.nn.ReceptiveField": "a result",
    "fastconv.optim.Optimizer": "abstract: its kinds have calls",
    **{f"fastconv.nn.models.{name}": "takes what its layers take, and seconds to make" for name in nn.models.__all__},
}


def _named() -> dict[str, Callable[[Random], Call]]:
    made = {}
    for function, generate in {**functions.FUNCTIONS, **windows.FUNCTIONS}.items():
        where = "fastconv.grad" if function.__module__.startswith("fastconv.grad") else "fastconv"
        made[f"{where}.{function.__name__}"] = generate
    for name, generate in {**OTHERS, **LAYERS}.items():
        where = next(key for key, module in PUBLIC.items() if hasattr(module, name))
        made[f"{where}.{name}"] = generate
    return made


INVENTORY = _named()


def missing() -> set[str]:
    """Public callables that have no calls and no reason for that."""
    public = {f"{where}.{name}" for where, module in PUBLIC.items() for name in module.__all__
              if callable(getattr(module, name))}  # fmt: skip
    return public - INVENTORY.keys() - LEFT_OUT.keys()

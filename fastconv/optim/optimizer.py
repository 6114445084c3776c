"""What all optimizers share: parameter groups, state, and the loop over parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from fastconv.nn.backend import backend, check_place, moved
from fastconv.nn.module import Parameter
from fastconv.sizes import real, shown


class Optimizer(ABC):
    """Base class.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts
        A dict is a group of parameters with options of its own: ``{"params": [...], "lr": 0.1}``.
    **defaults
        Options of groups that do not set them.

    Attributes
    ----------
    param_groups : list of dict
        Each with ``"params"`` and every option; options may be changed between steps.
    state : dict
        For each parameter that has been updated, what its update rule remembers.

    Raises
    ------
    TypeError, ValueError
        If there are no parameters, one comes twice, or an option is unknown or out of range.
    """

    non_negative: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")

    def __init__(self, params: Iterable, **defaults: Any) -> None:
        if isinstance(params, (str, bytes)) or not isinstance(params, Iterable):
            raise TypeError(f"params must be Parameters or groups of them, got {shown(params)}")
        groups: list = list(params)
        if not groups:
            raise ValueError("params must hold at least one Parameter, got none")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.param_groups = [self._group(group, defaults) for group in groups]
        self.state: dict[Parameter, dict[str, Any]] = {}
        everything = [id(p) for group in self.param_groups for p in group["params"]]
        if len(set(everything)) < len(everything):
            raise ValueError("params must hold each Parameter once, got one of them again")

    def _group(self, group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"a parameter group must be a dict with the key 'params', got {group!r:.80}")
        unknown = group.keys() - defaults.keys() - {"params"}
        if unknown:
            raise ValueError(f"options must be among {sorted(defaults)}, got {sorted(unknown)}")
        whole = {**defaults, **group, "params": list(group["params"])}
        for parameter in whole["params"]:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"params must be fastconv.nn.Parameter objects, got {type(parameter).__name__}")
        for name in self.non_negative:
            real(whole[name], name, 0)
        return whole

    @abstractmethod
    def update(self, value: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], initial: bool) -> None:
        """Move one parameter's `value`, in place; `state` has its `buffers`, and `initial` says if that is all."""

    def step(self) -> None:
        """Update all parameters but those that are frozen or have no gradient; on a GPU, without waiting for it.

        State follows a parameter that was moved to another device.

        Raises
        ------
        MemoryError
            If there is no room for new state; nothing has been updated then.
        """
        moving = [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        ready = [(group, p, *self._prepared(group, p)) for group, p in moving if p.grad is not None]
        for group, parameter, grad, new in ready:
            state = self.state.setdefault(parameter, {})
            initial = not state
            state |= new
            with parameter.edit() as value:
                self.update(value, grad, state, group, initial)

    def _prepared(self, group: dict[str, Any], parameter: Parameter) -> tuple[Any, dict[str, Any]]:
        """A parameter's gradient as its update takes it, and arrays for what its state lacks."""
        state = self.state.get(parameter, {})
        for name, array in state.items():
            state[name] = moved(array, parameter.device) if hasattr(array, "shape") else array
        grad, value = parameter.grad, parameter.value
        check_place(grad, "grad", parameter.device, "its parameter")
        missing = {name: start for name, start in self.buffers(group).items() if name not in state}
        new = {name: backend(value).full_like(value, start) for name, start in missing.items()}
        return np.ascontiguousarray(grad) if isinstance(grad, np.ndarray) else grad, new

    def buffers(self, group: dict[str, Any]) -> dict[str, float]:
        """Names of the arrays like the parameter that `update` remembers, and what they are filled with at first."""
        return {}

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """A copy of options and state, arrays as NumPy's; parameters are numbered in order, as in torch."""
        numbers = {p: n for n, p in enumerate(self._parameters())}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[p]: _copied(state) for p, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over options and state of an optimizer of this kind, for as many parameters in as many groups.

        Raises
        ------
        ValueError
            If the groups, their options or the shapes differ; nothing has been loaded then.
        """
        if missing := {"param_groups", "state"} - state_dict.keys():
            raise ValueError(f"state_dict must be that of an optimizer, got none of its {sorted(missing)}")
        sizes, given = [len(g["params"]) for g in self.param_groups], state_dict["param_groups"]
        if [len(g["params"]) for g in given] != sizes:
            raise ValueError(
                f"state_dict must have groups of {sizes} parameters, got {[len(g['params']) for g in given]}"
            )
        options = self.param_groups[0].keys()
        if other := next((group for group in given if group.keys() != options), None):
            wanted, got = (sorted(names - {"params"}) for names in (options, other.keys()))
            raise ValueError(f"state_dict must be that of an optimizer with the options {wanted}, got {got}")
        parameters, state = self._parameters(), {}
        for number, values in state_dict["state"].items():
            shape = parameters[number].value.shape
            for name, value in values.items():
                if hasattr(value, "shape") and tuple(value.shape) != shape:
                    raise ValueError(f"{name} of parameter {number} must have shape {shape}, got {value.shape}")
            state[parameters[number]] = _copied(values)
        self.state = state
        for own, group in zip(self.param_groups, given, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"]]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: moved(x, "cpu").copy() if hasattr(x, "shape") else x for name, x in state.items()}

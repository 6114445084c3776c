"""Rates of their own for parts of a network."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from fastconv.nn.module import Module, Parameter
from fastconv.sizes import real, shown


def parameter_groups(model: Module, lr: float, multipliers: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups for an optimizer, with learning rates by the parameters' names.

    Parameters
    ----------
    model : Module
    lr : float
        Of parameters that no pattern fits.
    multipliers : mapping of str to float
        From patterns of names, as in `fnmatch.fnmatchcase`, to what `lr` is multiplied by. The first that fits counts.

    Returns
    -------
    list of dict
        One for each multiplier, with all parameters, frozen ones too: optimizers pass over those.

    Raises
    ------
    ValueError
        If a multiplier is negative, or a pattern is not the first to fit any name.

    Examples
    --------
    >>> from fastconv import nn, optim
    >>> net = nn.Sequential({"features": nn.Conv2d(3, 8, 3), "flatten": nn.Flatten(), "fc": nn.Linear(8, 2)})
    >>> groups = optim.parameter_groups(net, 0.01, {"features.*": 0.1})
    >>> optimizer = optim.Adam(groups)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.001, 0.01]
    """
    if not isinstance(multipliers, Mapping) or not all(isinstance(pattern, str) for pattern in multipliers):
        raise TypeError(f"multipliers must be a mapping from patterns to numbers, got {shown(multipliers)}")
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {shown(model)}")
    lr = real(lr, "lr", 0)
    multipliers = {pattern: real(value, f"multipliers[{pattern!r}]", 0) for pattern, value in multipliers.items()}
    found: dict[str, list[Parameter]] = {pattern: [] for pattern in multipliers}
    rest: list[Parameter] = []
    seen: set[Parameter] = set()
    for name, parameter in model.named_parameters():
        if parameter not in seen:
            first = next((pattern for pattern in multipliers if fnmatchcase(name, pattern)), None)
            (rest if first is None else found[first]).append(parameter)
            seen.add(parameter)
    if idle := [pattern for pattern, parameters in found.items() if not parameters]:
        raise ValueError(f"multipliers must have patterns that are the first to fit a parameter's name, got {idle}")
    groups = [{"params": found[pattern], "lr": lr * multiplier} for pattern, multiplier in multipliers.items()]
    return groups + ([{"params": rest, "lr": lr}] if rest else [])

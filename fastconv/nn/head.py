"""A trained network for other classes."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastconv.nn.container import Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.module import Module
from fastconv.sizes import integer

_Model = TypeVar("_Model", bound=Module)


def replace_head(model: _Model, classes: int, *, rng: np.random.Generator | None = None) -> _Model:
    """Put a new last layer into a network, for another number of classes; returns the network.

    Parameters
    ----------
    model : Module
        A `Sequential` whose last layer with parameters, in it or in the containers at its end, is a `Linear` or a 1x1
        `Conv2d` without groups; changed in place.
    classes : int
        Outputs of the new layer, which has a bias if the old one had, its dtype and its device.
    rng : numpy.random.Generator, optional
        Draws the first values; the one of `manual_seed` if not given.

    Raises
    ------
    TypeError
        If there is no such layer.

    Examples
    --------
    >>> from fastconv import nn
    >>> net = replace_head(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 5)
    >>> net[1].weight.value.shape
    (5, 64)
    """
    classes = integer(classes, "classes", least=1)
    container, index = _head(model)
    old: Any = container[index]
    own: Any = {"bias": old.bias is not None, "rng": rng, "dtype": str(old.weight.value.dtype)}
    inputs = old.weight.value.shape[1]
    linear = type(old) is Linear
    new = Linear(inputs, classes, **own) if linear else Conv2d(inputs, classes, 1, *old.options[:3], **own)
    container[index] = new.to(old.weight.device).train(old.training)
    return model


def _head(model: Module) -> tuple[Sequential, int]:
    """The container that holds the last layer with parameters, and where."""
    if type(model) is Sequential:
        for index in reversed(range(len(model))):
            module = model[index]
            if type(module) is Sequential and any(True for _ in module.parameters()):
                return _head(module)
            if type(module) is Linear or _is_pointwise(module):
                return model, index
            if any(True for _ in module.parameters()):
                break
    raise TypeError("model must be a Sequential whose last layer with parameters is a Linear or a 1x1 Conv2d")


def _is_pointwise(module: Module) -> bool:
    return type(module) is Conv2d and module.weight.value.shape[2:] == (1, 1) and module.options[3] == 1

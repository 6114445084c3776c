"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np

from fastconv.nn.backend import backend
from fastconv.nn.fusion import stages
from fastconv.nn.module import Module
from fastconv.sizes import shown


class _Container(Module):
    """Modules in a fixed order, numbered from 0, or with the names of a dict, by which they are attributes too."""

    _modules: Mapping[str, Module] = MappingProxyType({})

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            self._hold(dict(modules[0]))
        else:
            self._hold({str(n): module for n, module in enumerate(modules)})

    def _hold(self, modules: dict[str, Any]) -> None:
        """Take over the modules, after checking them and their names."""
        for name, module in modules.items():
            if not isinstance(module, Module):
                raise TypeError(f"modules must be fastconv.nn modules, got {shown(module)}")
            if not isinstance(name, str) or "." in name or hasattr(type(self), name):
                own = f"the names of {type(self).__name__}'s own attributes"
                raise ValueError(f"modules must have names that are strings without a dot and not {own}, got {name!r}")
        before, self._modules = self._modules, modules
        keys = [key for key, _ in self.named_state()]
        if len(set(keys)) < len(keys):
            self._modules = before
            twice = next(key for n, key in enumerate(keys) if key in keys[:n])
            raise ValueError(f"modules named '' must not share names with their neighbours, got {twice!r} twice")

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules and their names."""
        yield from self._modules.items()

    def _holder(self, name: str) -> _Container | None:
        """The container that has a module of this name: this one, or one that is named "" in it."""
        joined = self._modules.get("")
        return self if name in self._modules else joined._holder(name) if isinstance(joined, _Container) else None

    def __getattr__(self, name: str) -> Any:
        holder = self._holder(name)
        if holder is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}, nor a module of that name")
        return holder._modules[name]

    def __setattr__(self, name: str, value: Any) -> None:
        holder = self._holder(name)
        if holder is not None:
            holder._hold({**holder._modules, name: value})
        elif isinstance(value, Module):
            raise AttributeError(f"{type(self).__name__} has no module {name!r} to replace; none can be added")
        else:
            super().__setattr__(name, value)

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice a container of the same kind that shares its modules and has their names."""
        found = list(self._modules.items())[index]
        return type(self)(dict(found)) if isinstance(index, slice) else found[1]

    def __setitem__(self, index: int, module: Module) -> None:
        """Replace a module."""
        self._hold({**self._modules, list(self._modules)[index]: module})

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())


class Sequential(_Container):
    """Modules one after the other; none at all is the identity.

    A convolution computes a ReLU (or ReLU6, or LeakyReLU(0.01)) that follows it in the same pass. Where nothing is
    recorded, as in eval mode, it also takes over batch normalisation before and pooling after that; parameters and
    state stay those of the single modules. In training, `backward` goes through modules in eval mode too.

    Parameters
    ----------
    *modules : Module, or one dict of str to Module
        Numbers are their names if there are no others. A name is an attribute, too: ``net.fc = Linear(512, 10)``
        replaces the module of that name, as ``net[-1] = ...`` does. What is below a module named "" goes by its own
        names, as if it were directly below this container.

    Raises
    ------
    TypeError
        If a module is none.
    ValueError
        If a name has a dot or belongs to an attribute that all containers have, or the modules named "" and their
        neighbours have parameters of the same name.

    Examples
    --------
    >>> from fastconv import nn
    >>> net = nn.Sequential({"conv1": nn.Conv2d(3, 4, 3), "relu": nn.ReLU()})
    >>> list(net.state_dict()), net.conv1 is net[0]
    (['conv1.weight', 'conv1.bias'], True)
    """

    _stages: tuple[Callable[[Any], Any], ...] = ()

    def _hold(self, modules: dict[str, Any]) -> None:
        super()._hold(modules)
        self._stages = tuple(stages(modules.values()))

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The last module's output."""
        with self.recorded():
            for stage in self._stages:
                x = stage(x)
        return x

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`, from the last module to the lowest that anybody needs a gradient of."""
        grad: Any = grad_output
        modules = list(self)
        lowest = 0 if input_grad else next((n for n, m in enumerate(modules) if m.trainable), len(modules))
        for n in reversed(range(lowest, len(modules))):
            grad = modules[n].backward(grad, input_grad=input_grad or n > lowest)
        self.release()
        return grad if input_grad else None


class Residual(_Container):
    """The sum of what its branches make of the same input; an empty `Sequential` is the identity.

    Parameters
    ----------
    *branches : Module, or one dict of str to Module
        As the modules of `Sequential`.

    Raises
    ------
    TypeError, ValueError
        As `Sequential`, or if there is no branch.
    """

    def __init__(self, *branches: Module | Mapping[str, Module]) -> None:
        super().__init__(*branches)
        if not len(self):
            raise ValueError("branches must be given, at least one")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The sum of the branches' outputs, which have the same shape."""
        with self.recorded():
            return reduce(_add, [branch.forward(x) for branch in self])

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`: the sum of the branches' input gradients."""
        needed = [branch for branch in self if input_grad or branch.trainable]
        grads: list[Any] = [branch.backward(grad_output, input_grad=input_grad) for branch in needed]
        self.release()
        return reduce(_add, grads) if input_grad else None


def _add(a: Any, b: Any) -> Any:
    return backend(a).add(a, b)

"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np

from fastconv.nn.backend import backend
from fastconv.nn.fusion import stages
from fastconv.nn.module import Module


class _Container(Module):
    """Modules in a fixed order, numbered from 0."""

    def __init__(self, *modules: Module) -> None:
        for module in modules:
            if not isinstance(module, Module):
                raise TypeError(f"modules must be fastconv.nn modules, got {module!r}")
        self._members = modules

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules and their numbers."""
        yield from ((str(n), module) for n, module in enumerate(self._members))

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice a container of the same kind that shares its modules."""
        found = self._members[index]
        return type(self)(*found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._members)


class Sequential(_Container):
    """Modules one after the other; none at all is the identity.

    A convolution computes a ReLU (or LeakyReLU(0.01)) that follows it in the same pass. Where nothing is recorded,
    as in eval mode, it also takes over batch normalisation before and pooling after that; parameters and state
    stay those of the single modules. In training, `backward` goes through modules in eval mode too.
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(*modules)
        self._stages = stages(modules)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The last module's output."""
        with self.recorded():
            for stage in self._stages:
                x = stage(x)
        return x

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`, from the last module to the lowest that anybody needs a gradient of."""
        grad: Any = grad_output
        lowest = 0 if input_grad else next((n for n, m in enumerate(self._members) if m.trainable), len(self._members))
        for n in reversed(range(lowest, len(self._members))):
            grad = self._members[n].backward(grad, input_grad=input_grad or n > lowest)
        self.release()
        return grad if input_grad else None


class Residual(_Container):
    """The sum of what its branches make of the same input; an empty `Sequential` is the identity."""

    def __init__(self, *branches: Module) -> None:
        super().__init__(*branches)
        if not branches:
            raise ValueError("branches must be given, at least one")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The sum of the branches' outputs, which have the same shape."""
        with self.recorded():
            return reduce(_add, [branch.forward(x) for branch in self._members])

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`: the sum of the branches' input gradients."""
        needed = [branch for branch in self._members if input_grad or branch.trainable]
        grads: list[Any] = [branch.backward(grad_output, input_grad=input_grad) for branch in needed]
        self.release()
        return reduce(_add, grads) if input_grad else None


def _add(a: Any, b: Any) -> Any:
    return backend(a).add(a, b)

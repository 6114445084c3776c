"""When a training step takes how much memory: a walk through the network, forward and back, from shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastconv.nn.activation import LeakyReLU, ReLU, ReLU6
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.memory import Array, network_dtype, result_and_kept
from fastconv.nn.module import Module, Parameter

Workspace = Callable[["Visit", tuple[str, ...]], int]


@dataclass
class Visit:
    """A module in the forward pass.

    Attributes
    ----------
    name : str
        Its place in the network, as in the names of its parameters; "" for the network itself.
    module : Module
    x, output : Array
        Shapes; `memory` tells arrays apart.
    kept : list of Array
        What a layer keeps for backward.
    children : list of Visit
        Those of a container.
    first_kept_bytes : int
        Of what it keeps, what no layer before it does.
    """

    name: str
    module: Module
    x: Array
    output: Array
    kept: list[Array] = field(default_factory=list)
    children: list[Visit] = field(default_factory=list)
    first_kept_bytes: int = 0

    def layers(self) -> list[Visit]:
        """The layers, without containers, in the order of the forward pass."""
        return [layer for child in self.children for layer in child.layers()] if self.children else [self]

    @property
    def parameters(self) -> list[Parameter]:
        """A layer's own."""
        return [value for value in vars(self.module).values() if isinstance(value, Parameter)]


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a training step, besides parameters and the optimizer's state.

    Attributes
    ----------
    kept : int
        What layers keep for backward, the network's input apart.
    gradients : int
        Of parameters.
    passing : int
        Outputs and gradients of activations that are only passed on.
    workspace : int
        Scratch memory of the kernel that runs.
    """

    kept: int = 0
    gradients: int = 0
    passing: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept + self.gradients + self.passing + self.workspace


class Step:
    """A training step, with the loss's gradient given and none needed of the input.

    Parameters
    ----------
    network : Module
        As in `activation_bytes`, which raises the same errors.
    input_shape : tuple of int
        With the batch axis.
    dtype : numpy dtype
        Of parameters and activations.
    workspace : callable
        ``workspace(layer, directions)`` is the most scratch memory in bytes that a layer takes, for passes of its own
        among "forward", "backward_input" and "backward_weight".

    Attributes
    ----------
    root : Visit
    moments : list of Moment
        In the order of a step, the first before it begins; as many for any batch.
    """

    def __init__(self, network: Module, input_shape: tuple[int, ...], dtype: np.dtype, workspace: Workspace) -> None:
        self._itemsize, self._workspace = dtype.itemsize, workspace
        self._kept: Counter[object] = Counter()  # how many layers keep an array
        self._sizes: dict[object, int] = {}
        self._gradients, self._reached = 0, set[int]()
        self._seen: set[Parameter] = set()
        self.moments = [Moment()]
        x = Array(tuple(input_shape), dtype.itemsize)
        self._input = x.memory
        self.root = self._forward(network, x, False, "", 0)
        self._backward(self.root, 0, self._trainable_before())

    @classmethod
    def of_shapes(cls, network: Module, input_shape: tuple[int, ...]) -> Step:
        """A walk for the sake of the shapes: workspaces are not looked up."""
        return cls(network, input_shape, network_dtype(network), lambda layer, directions: 0)

    @property
    def peak(self) -> Moment:
        """When most memory is taken."""
        return max(self.moments, key=lambda moment: moment.total)

    def _record(self, passing: int, workspace: int = 0) -> None:
        kept = sum(self._sizes[memory] for memory, layers in self._kept.items() if layers and memory != self._input)
        self.moments.append(Moment(kept, self._gradients, passing, workspace))

    def _passing(self, *arrays: Array) -> int:
        """Bytes of arrays that nobody keeps."""
        alone = {a.memory: a.nbytes for a in arrays if not self._kept[a.memory] and a.memory != self._input}
        return sum(alone.values())

    def _forward(self, module: Module, x: Array, inside: bool, name: str, held: int, fused: bool = False) -> Visit:
        recording = module.training or inside
        if type(module) is Sequential:
            return self._chain(module, x, recording, name, held)
        if type(module) is Residual:
            return self._branches(module, x, recording, name, held)
        output, *kept = result_and_kept(module, x)
        visit = Visit(name, module, x, output, kept if recording else [])
        for array in visit.kept:
            visit.first_kept_bytes += 0 if array.memory in self._sizes else array.nbytes
            self._sizes[array.memory] = array.nbytes
            self._kept[array.memory] += 1
        given = 0 if fused else self._passing(x)
        self._record(held + given + self._passing(output), self._workspace(visit, ("forward",)))
        return visit

    def _chain(self, module: Sequential, x: Array, recording: bool, name: str, held: int) -> Visit:
        whole = Visit(name, module, x, x)
        before: type = Sequential
        for number, child in module.named_children():
            # A ReLU right after a convolution is computed with it.
            fused = before is Conv2d and type(child) in (ReLU, ReLU6, LeakyReLU)
            visit = self._forward(child, whole.output, recording, _joined(name, number), held, fused)
            whole.children.append(visit)
            whole.output, before = visit.output, type(child)
        return whole

    def _branches(self, module: Residual, x: Array, recording: bool, name: str, held: int) -> Visit:
        whole = Visit(name, module, x, x)
        for number, child in module.named_children():
            visit = self._forward(child, x, recording, _joined(name, number), held + self._passing(x))
            whole.children.append(visit)
            held += self._passing(visit.output) if visit.output.memory != x.memory else 0
        whole.output = Array(whole.children[0].output.shape, self._itemsize)
        self._record(held + whole.output.nbytes)
        return whole

    def _trainable_before(self) -> dict[int, bool]:
        """For each layer, whether one before it has parameters that are not frozen."""
        found, reached = {}, False
        for layer in self.root.layers():
            found[id(layer)] = reached
            reached = reached or layer.module.trainable
        return found

    def _backward(self, visit: Visit, held: int, before: dict[int, bool], given: bool = False) -> None:
        """Run a module back; `held` are bytes of gradients that its containers hold, that of its output if `given`."""
        if type(visit.module) is Residual:
            held += 0 if given else visit.output.nbytes
            for child in visit.children:
                self._backward(child, held, before, given=True)
                held += visit.x.nbytes if child.children or child.kept else 0
        elif visit.children:
            for child in reversed(visit.children):
                self._backward(child, held, before, given and child is visit.children[-1])
        elif before.get(id(visit), False) or visit.module.trainable:
            self._back_through(visit, held, before[id(visit)], given)

    def _back_through(self, visit: Visit, held: int, to_input: bool, given: bool) -> None:
        fresh = {p for p in visit.parameters if p.requires_grad} - self._seen
        self._seen |= fresh
        self._gradients += self._itemsize * sum(p.value.size for p in fresh)
        pair = 0 if given else visit.output.nbytes
        if to_input and visit.output.memory is not visit.x.memory:
            pair += visit.x.nbytes
        wanted = {"backward_weight": bool(visit.kept), "backward_input": to_input}
        self._record(held + pair, self._workspace(visit, tuple(name for name, want in wanted.items() if want)))
        for array in visit.kept:
            self._kept[array.memory] -= 1


def _joined(name: str, child: str) -> str:
    return ".".join(part for part in (name, child) if part)

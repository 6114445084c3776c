"""What a network costs, layer by layer: sizes, parameters, operations, memory, and what each layer sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv import algorithms
from fastconv.arrays import as_dtype
from fastconv.dispatch import choose
from fastconv.free_memory import free_bytes
from fastconv.nn.conv import Conv2d, ConvTranspose2d
from fastconv.nn.linear import Linear
from fastconv.nn.local import LocallyConnected2d
from fastconv.nn.memory import check_network, fitting, network_dtype
from fastconv.nn.module import Module
from fastconv.nn.peak import Step, Visit
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from fastconv.nn.receptive import ReceptiveField, fields
from fastconv.problem import ConvProblem
from fastconv.sizes import as_size, integer, shown

# Arrays of the size of the parameters that an optimizer keeps.
OPTIMIZERS = {"sgd": 0, "sgd_momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2}

# Batches from whose memory that of others is reckoned: their kernels are those of large ones.
_PROBES = (32, 64)
_MOST_IMAGES = 1 << 20  # in a batch: tables of kernels grow with it

# Headings of a table of layers, and the side of their cells.
COLUMNS = {
    "layer": "left", "kind": "left", "output": "left", "parameters": "right", "MFLOPs": "right", "kept, MiB": "right",
    "sees": "right", "jump": "right", "offset": "right",
}  # fmt: skip


@dataclass(frozen=True)
class LayerSummary:
    """One layer.

    Attributes
    ----------
    name, kind : str
        Its place in the network, as in the names of its parameters, and its class.
    out_shape : tuple of int
        Of a whole batch.
    parameters, trainable : int
        How many numbers, and those of them that are not frozen.
    flops : int
        Multiplications and additions of a forward pass of the batch, 2 for each weight at each place; those of
        activations and batch normalisation are not counted, as is customary.
    kept_bytes : int
        What it keeps for backward, and no layer before it does.
    receptive_field : ReceptiveField
        What each of its neurons sees of the image.
    """

    name: str
    kind: str
    out_shape: tuple[int, ...]
    parameters: int
    trainable: int
    flops: int
    kept_bytes: int
    receptive_field: ReceptiveField


@dataclass(frozen=True)
class Summary:
    """A network's layers and totals, in bytes; printing it gives a readable account.

    Attributes
    ----------
    layers : list of LayerSummary
    batch : int
    parameters, trainable, flops : int
        Sums over the layers; parameters that layers share count once.
    training : dict of str to int
        Parts of a training step's memory when it takes most: "parameters", the state of the "optimizer", "gradients" of
        parameters, "kept activations", "passing activations" and their gradients, "workspace" and "input".
    inference : dict of str to int
        Parts of a forward pass's in eval mode: "parameters", "packed weights", "passing activations", "workspace"
        and "input".
    free_bytes : int or None
        Of the memory where the network is, if the system says.
    largest_batch : int or None
        The most images that a training step fits for, into the free memory and what the network takes now.
    """

    layers: list[LayerSummary]
    batch: int
    parameters: int
    trainable: int
    flops: int
    training: dict[str, int]
    inference: dict[str, int]
    free_bytes: int | None
    largest_batch: int | None

    @property
    def training_bytes(self) -> int:
        """All of `training`."""
        return sum(self.training.values())

    @property
    def inference_bytes(self) -> int:
        """All of `inference`."""
        return sum(self.inference.values())

    def __str__(self) -> str:
        rows = [tuple(COLUMNS), *(cells(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(n) if side == "left" else cell.rjust(n)
                for cell, n, side in zip(row, widths, COLUMNS.values(), strict=True)
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in [*lines, "", *self.totals()])

    def totals(self) -> list[str]:
        """The sums, a line each."""
        free = "" if self.free_bytes is None else f" of {_mib(self.free_bytes)} MiB free"
        lines = [
            f"parameters  {self.parameters:,}, {self.trainable:,} of them trainable",
            f"operations  {self.flops / 1e9:.3f} GFLOPs for a batch of {self.batch}",
            f"inference   {_mib(self.inference_bytes)} MiB: {_parts(self.inference)}",
            f"training    {_mib(self.training_bytes)} MiB{free}: {_parts(self.training)}",
        ]
        return lines + (
            [] if self.largest_batch is None else [f"fits        a batch of {self.largest_batch:,} in training"]
        )

    def as_dict(self) -> dict[str, Any]:
        """The same facts as plain values, for JSON."""
        return asdict(self) | {"training_bytes": self.training_bytes, "inference_bytes": self.inference_bytes}


def summary(
    model: Module, input_shape: tuple[int, ...], batch: int = 1, optimizer: str | None = "adam", dtype: Any = None
) -> Summary:
    """Account for a network, from shapes alone: nothing is computed.

    Parameters
    ----------
    model : Module
        Made of the layers and containers of `fastconv.nn`.
    input_shape : tuple of int
        Of one image, (C, H, W), or of whatever the network takes, without the batch axis.
    batch : int, default 1
    optimizer : {"sgd", "sgd_momentum", "adagrad", "rmsprop", "adam"} or None, default "adam"
        Whose state is counted.
    dtype : {"float32", "float64"}, optional
        As if the network had this one.

    Returns
    -------
    Summary

    Raises
    ------
    TypeError
        If the network has a layer of another kind.
    ValueError
        If the shapes do not fit, or an argument is out of range.

    Examples
    --------
    >>> net = fastconv.nn.Sequential(fastconv.nn.Conv2d(3, 8, 3), fastconv.nn.ReLU())
    >>> found = fastconv.summary(net, (3, 32, 32))
    >>> found.parameters, found.layers[0].out_shape
    (224, (1, 8, 30, 30))
    """
    batch = integer(batch, "batch", least=1, most=_MOST_IMAGES)
    if optimizer is not None and not (isinstance(optimizer, str) and optimizer in OPTIMIZERS):
        raise ValueError(f"optimizer must be None or one of {', '.join(OPTIMIZERS)}, got {shown(optimizer)}")
    check_network(model, "model")
    shape = as_size(input_shape, "input_shape", None)
    account = _Account(model, shape, optimizer, network_dtype(model) if dtype is None else as_dtype(dtype))
    with fitting("input_shape", shape):
        step = account.step(batch)
    seen = fields(step.root)
    layers = [_layer(layer, seen[id(layer)]) for layer in step.root.layers()]
    parameters = list(model.parameters())
    training, device = account.training(step), parameters[0].device if parameters else "cpu"
    free = free_bytes(device)
    return Summary(
        layers, batch, _count(parameters), _count(p for p in parameters if p.requires_grad),
        sum(layer.flops for layer in layers), training, account.inference(step), free,
        None if free is None else account.largest_batch(free),
    )  # fmt: skip


def cells(layer: LayerSummary) -> tuple[str, ...]:
    """A row under `COLUMNS`."""
    shape = "x".join(map(str, layer.out_shape))
    numbers = (f"{layer.parameters:,}", f"{layer.flops / 1e6:,.1f}", _mib(layer.kept_bytes))
    field = layer.receptive_field
    return (layer.name, layer.kind, shape, *numbers, _both(field.size), _both(field.jump), _both(field.offset))


def _both(values: tuple[float, float]) -> str:
    """Of height and width; once if they are the same."""
    return "x".join(f"{value:g}" for value in dict.fromkeys(values))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {_mib(size)}" for name, size in sizes.items() if size)


class _Account:
    """Memory of a network for any batch."""

    def __init__(self, model: Module, image: tuple[int, ...], optimizer: str | None, dtype: np.dtype) -> None:
        self.model, self.image, self.dtype = model, image, dtype
        self.state = 0 if optimizer is None else OPTIMIZERS[optimizer]
        self.parameters = dtype.itemsize * _count(model.parameters())
        self.trainable = dtype.itemsize * _count(p for p in model.parameters() if p.requires_grad)

    def step(self, batch: int) -> Step:
        """A training step; a network in eval mode is taken as if it trained."""
        with _training(self.model):
            return Step(self.model, (batch, *self.image), self.dtype, self._workspace)

    def training(self, step: Step) -> dict[str, int]:
        """Bytes of the parts of a training step when it takes most."""
        peak = step.peak
        return {
            "parameters": self.parameters, "optimizer": self.state * self.trainable, "gradients": peak.gradients,
            "kept activations": peak.kept, "passing activations": peak.passing, "workspace": peak.workspace,
            "input": step.root.x.nbytes,
        }  # fmt: skip

    def inference(self, step: Step) -> dict[str, int]:
        """Bytes of the parts of a forward pass in eval mode."""
        layers = step.root.layers()
        pairs = [layer.x.nbytes + layer.output.nbytes for layer in layers[1:]]
        packed = sum(_count(layer.parameters) for layer in layers if type(layer.module) is Conv2d)
        return {
            "parameters": self.parameters, "packed weights": self.dtype.itemsize * packed,
            "passing activations": max([*pairs, layers[0].output.nbytes]),
            "workspace": max(self._workspace(layer, ("forward",)) for layer in layers), "input": step.root.x.nbytes,
        }  # fmt: skip

    def largest_batch(self, free: int) -> int:
        """The most images for which a training step fits into free memory and that of the parameters.

        Each moment of a step grows evenly with the images, and any of them may be the fullest.
        """
        few, many = (self.step(n) for n in _PROBES)
        room = free - self.state * self.trainable
        pairs = zip(few.moments, many.moments, strict=True)
        return max(0, min(_fitting(room, a.total + few.root.x.nbytes, b.total + many.root.x.nbytes) for a, b in pairs))

    def _workspace(self, layer: Visit, directions: tuple[str, ...]) -> int:
        """The most scratch memory that a kernel of a layer takes."""
        return max((_scratch(problem) for problem in _problems(layer, str(self.dtype), directions)), default=0)


def _fitting(room: int, few: int, many: int) -> int:
    """How many images take at most `room` bytes, from the bytes that two batches take."""
    each = max(1, (many - few) // (_PROBES[1] - _PROBES[0]))
    return _PROBES[0] + (room - few) // each


@contextmanager
def _training(model: Module) -> Iterator[None]:
    """Within a ``with`` block, a network in eval mode is in training mode."""
    modules = [] if model.training else list(model.modules())
    before = [module.training for module in modules]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.training = flag


def _problems(layer: Visit, dtype: str, directions: tuple[str, ...]) -> list[ConvProblem]:
    """The convolutions of a layer's passes, on channels-last arrays."""
    if type(layer.module) not in (Conv2d, Linear):
        return []
    module: Any = layer.module
    x, weight, options = layer.x.shape, module.weight.value.shape, (1, 0, 1, 1)
    if type(module) is Conv2d:
        options = module.options
    else:  # a batch is an image of 1 x N pixels
        x, weight = (1, x[1], 1, x[0]), (*weight, 1, 1)
    stride, padding, dilation, groups = options
    forward = ConvProblem.create(
        x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=dtype, raw=True,
        memory_format="channels_last", device=module.weight.device,
    )  # fmt: skip
    return [forward if name == "forward" else forward.without_epilogue(name) for name in directions]


@lru_cache(maxsize=1024)
def _scratch(problem: ConvProblem) -> int:
    chosen = choose(problem)
    return algorithms.workspace_bytes(problem, chosen.candidate, chosen.threads)


def _count(parameters: Any) -> int:
    return sum(parameter.value.size for parameter in parameters)


def _layer(layer: Visit, field: ReceptiveField) -> LayerSummary:
    own = layer.parameters
    trainable = _count(p for p in own if p.requires_grad)
    return LayerSummary(
        layer.name, type(layer.module).__name__, layer.output.shape, _count(own), trainable,
        _FLOPS.get(type(layer.module), lambda layer: 0)(layer), layer.first_kept_bytes, field,
    )  # fmt: skip


def _of_weights(layer: Visit) -> int:
    """Each output takes a multiplication and an addition for each weight of its filter."""
    weight = layer.parameters[0].value
    return 2 * math.prod(layer.output.shape) * math.prod(weight.shape[1:])


def _of_transposed(layer: Visit) -> int:
    """Each element of the input meets each weight of its channel."""
    return 2 * math.prod(layer.x.shape) * math.prod(layer.parameters[0].value.shape[1:])


def _of_local(layer: Visit) -> int:
    """Weights (K, C, R, S, Ho, Wo) are as many as the multiplications of an image."""
    return 2 * layer.output.shape[0] * layer.parameters[0].value.size


def _of_window(layer: Visit) -> int:
    module: Any = layer.module
    return math.prod(layer.output.shape) * math.prod(module.window.kernel_size)


def _of_parts(layer: Visit) -> int:
    """Part i of n of H pixels is from floor(i * H / n) to ceil((i + 1) * H / n): parts may share pixels."""
    axes = zip(layer.x.shape[2:], layer.output.shape[2:], strict=True)
    seen = (sum(-(-(i + 1) * size // n) - i * size // n for i in range(n)) for size, n in axes)
    return math.prod(layer.x.shape[:2]) * math.prod(seen)


_FLOPS: dict[type, Callable[[Visit], int]] = {
    Conv2d: _of_weights, Linear: _of_weights, ConvTranspose2d: _of_transposed, LocallyConnected2d: _of_local,
    MaxPool2d: _of_window, AvgPool2d: _of_window, LPPool2d: _of_window, AdaptiveAvgPool2d: _of_parts,
}  # fmt: skip

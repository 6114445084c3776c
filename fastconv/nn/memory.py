"""How much memory a training step takes, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastconv.functional.transposed import transposed_size
from fastconv.local_problem import LocalProblem
from fastconv.nn.activation import Dropout, LeakyReLU, ReLU, ReLU6, Softmax
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d, Convolution, ConvTranspose2d
from fastconv.nn.linear import Linear
from fastconv.nn.local import LocallyConnected2d
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from fastconv.nn.shape import Flatten
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.sizes import as_size, axis, pair, shown

_INDEX_BYTES = 8  # of max pooling, int64
_STATISTICS_BYTES = 8  # of batch normalisation, float64


def activation_bytes(network: Module, input_shape: tuple[int, ...]) -> int:
    """Predict the memory that one training step needs besides parameters and the optimizer's state.

    It is the sum of what the layers keep from `forward` for `backward` (an array that two layers keep is
    counted once, and the input, if the first layer keeps it, is counted too), the gradients of all parameters
    that are not frozen, and the largest pair of gradients that ``backward(..., input_grad=False)`` has at a
    time: that of a layer's output and that of its input, which are one array if the layer only passes it on.
    While the layers of a `Residual` run, the gradients of its output and of the branches that are done exist
    besides.

    Not all of that exists at the same moment, and temporary arrays and the workspaces of kernels are not in it.

    Parameters
    ----------
    network : Module
        Made of the layers and containers of `fastconv.nn`. What does not record (see `Module.recording`) keeps
        nothing. Its dtype is that of its first parameter, float32 if there is none.
    input_shape : tuple of int
        Such as (N, C, H, W). Arrays are taken to be contiguous, so that `Flatten` copies nothing.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    TypeError
        If the network has a layer of another kind.
    ValueError
        If `input_shape` does not fit.

    Examples
    --------
    >>> layer = Linear(3, 5)  # keeps 2*3 numbers, has gradients of 5*3 and 5, and that of its output, 2*5
    >>> activation_bytes(layer, (2, 3))
    144
    """
    check_network(network, "network")
    shape, dtype, step = as_size(input_shape, "input_shape", None), network_dtype(network), _Step()
    with fitting("input_shape", shape):
        _, gradients = step.through(network, Array(shape, dtype.itemsize), inside=False)
    parameters = sum(p.value.nbytes for p in network.parameters() if p.requires_grad)
    return sum(step.kept.values()) + parameters + gradients


@dataclass(frozen=True)
class Array:
    """A shape; `memory` stands for where the elements would be."""

    shape: tuple[int, ...]
    itemsize: int
    memory: object = field(default_factory=object)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def like(self, shape: tuple[int, ...]) -> Array:
        """Another array of the same dtype."""
        return Array(shape, self.itemsize)


class _Step:
    """A walk through a network: the bytes kept so far, and whether backward comes to the layer that is next."""

    def __init__(self) -> None:
        self.kept: dict[object, int] = {}
        self.reached = False

    def through(self, module: Module, x: Array, inside: bool) -> tuple[Array, int]:
        """The module's output, and the most bytes of gradients of activations while its backward runs.

        `inside` says whether a container around the module records.
        """
        recording = module.training or inside
        if type(module) is Sequential:
            most = 0
            for child in module:
                x, gradients = self.through(child, x, recording)
                most = max(most, gradients)
            return x, most
        if type(module) is Residual:
            branches = [self.through(branch, x, recording) for branch in module]
            output = x.like(branches[0][0].shape)
            return output, output.nbytes + max(held + n * x.nbytes for n, (_, held) in enumerate(branches))
        output, *kept = result_and_kept(module, x)
        if recording:
            self.kept |= {array.memory: array.nbytes for array in kept}
        of_input = x.nbytes if self.reached and output.memory is not x.memory else 0
        self.reached = self.reached or module.trainable
        return output, of_input + output.nbytes if self.reached else 0


def result_and_kept(layer: Module, x: Array) -> tuple[Array, ...]:
    """The output of a layer, and then what it keeps for backward if it records."""
    if type(layer) not in _LAYERS:
        raise TypeError(f"network must be made of fastconv.nn's own layers, got a {type(layer).__name__}")
    return _LAYERS[type(layer)](layer, x)


def check_network(network: Any, name: str) -> None:
    """Raise TypeError, which calls it `name`, unless `network` is a module."""
    if not isinstance(network, Module):
        raise TypeError(f"{name} must be a fastconv.nn.Module, got {shown(network)}")


@contextmanager
def fitting(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Within a ``with`` block, a layer that refuses what reaches it is a fault of the argument `name`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} does not fit, with shape {shape}: {error}") from None


def network_dtype(network: Module) -> np.dtype:
    """The dtype of a network's first parameter, float32 if there is none."""
    return next((p.value.dtype for p in network.parameters()), np.dtype(np.float32))


# Rules, as `result_and_kept`.


def _with_weights(layer: Convolution, x: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The output of a layer that needs its input for the gradient of its weights only."""
    return x.like(shape), *([x] if layer.weight.requires_grad else [])


def _conv(layer: Conv2d, x: Array) -> tuple[Array, ...]:
    stride, padding, dilation, groups = layer.options
    shape = layer.weight.value.shape
    problem = ConvProblem.create(x.shape, shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _with_weights(layer, x, problem.out_shape)


def _conv_transpose(layer: ConvTranspose2d, x: Array) -> tuple[Array, ...]:
    shape = layer.weight.value.shape
    _check(layer, x, 4, shape[0])
    stride, padding, dilation, groups = layer.options
    strides, dilations = pair(stride, "stride", least=1), pair(dilation, "dilation", least=1)
    size = transposed_size(x.shape, shape, strides, padding, layer.output_padding, dilations)
    return _with_weights(layer, x, (x.shape[0], shape[1] * groups, *size))


def _local(layer: LocallyConnected2d, x: Array) -> tuple[Array, ...]:
    stride, padding, dilation = layer.options
    problem = LocalProblem.create(x.shape, layer.weight.value.shape, stride=stride, padding=padding, dilation=dilation)
    return _with_weights(layer, x, problem.out_shape)


def _linear(layer: Linear, x: Array) -> tuple[Array, ...]:
    _check(layer, x, 2, layer.in_features)
    return _with_weights(layer, x, (x.shape[0], layer.out_features))


def _batch_norm(layer: BatchNorm2d, x: Array) -> tuple[Array, ...]:
    _check(layer, x, 4, layer.num_features)
    mean, deviation = (Array((layer.num_features,), _STATISTICS_BYTES) for _ in range(2))
    constant = layer.running_mean is not None and not layer.training
    needs_x = not constant or (layer.weight is not None and layer.weight.requires_grad)
    return x.like(x.shape), *([x] if needs_x else []), mean, deviation


def _pool(layer: MaxPool2d | AvgPool2d | LPPool2d, x: Array) -> tuple[Array, ...]:
    _check(layer, x, 4)
    batch, channels, height, width = x.shape
    output = x.like(PoolProblem(batch, channels, (height, width), layer.window).out_shape)
    kept = {MaxPool2d: [Array(output.shape, _INDEX_BYTES)], AvgPool2d: [], LPPool2d: [x, output]}
    return output, *kept[type(layer)]


def _adaptive_pool(layer: AdaptiveAvgPool2d, x: Array) -> tuple[Array, ...]:
    _check(layer, x, 4)
    return (x.like((*x.shape[:2], *layer.size_for(x.shape))),)


def _flatten(layer: Flatten, x: Array) -> tuple[Array, ...]:
    axes = len(x.shape)
    first, last = axis(layer.start_dim, "start_dim", axes), axis(layer.end_dim, "end_dim", axes)
    return (replace(x, shape=(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])),)


def _from_output(layer: Module, x: Array) -> tuple[Array, ...]:
    output = x.like(x.shape)
    return output, output


def _leaky_relu(layer: LeakyReLU, x: Array) -> tuple[Array, ...]:
    output = x.like(x.shape)
    return output, output if layer.negative_slope >= 0 else x


def _dropout(layer: Dropout, x: Array) -> tuple[Array, ...]:
    return (x.like(x.shape) if layer.training else x,)


def _check(layer: Module, x: Array, axes: int, features: int | None = None) -> None:
    """Raise ValueError unless `x` has so many axes, and features in the second one."""
    if len(x.shape) != axes or features not in (None, x.shape[1]):
        wanted = f"{axes} axes" if features is None else f"{axes} axes and {features} features in the second"
        raise ValueError(f"input_shape must give every {type(layer).__name__} {wanted}, got {x.shape} for one")


_LAYERS: dict[type, Callable[[Any, Array], tuple[Array, ...]]] = {
    AdaptiveAvgPool2d: _adaptive_pool, AvgPool2d: _pool, BatchNorm2d: _batch_norm, Conv2d: _conv,
    ConvTranspose2d: _conv_transpose, Dropout: _dropout, Flatten: _flatten, LPPool2d: _pool, LeakyReLU: _leaky_relu,
    Linear: _linear, LocallyConnected2d: _local, MaxPool2d: _pool, ReLU: _from_output, ReLU6: _from_output,
    Softmax: _from_output,
}  # fmt: skip

"""What the neurons of a layer see of the image: the arithmetic of receptive fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d, ConvTranspose2d
from fastconv.nn.local import LocallyConnected2d
from fastconv.nn.memory import check_network, fitting
from fastconv.nn.module import Module
from fastconv.nn.peak import Step, Visit
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from fastconv.nn.shape import Flatten
from fastconv.sizes import as_size, padding_pairs, pair

# Kernel size, stride, padding before the first pixel and dilation along one axis.
_Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Axis:
    """Along one axis: pixels that a neuron sees, the distance of neighbours' fields, and the centre of the first."""

    size: float = 1
    jump: float = 1
    offset: float = 0

    def through(self, window: _Window) -> Axis:
        """After a layer with such a window."""
        kernel, stride, padding, dilation = window
        reach = (kernel - 1) * dilation
        return Axis(self.size + reach * self.jump, self.jump * stride, self.offset + (reach / 2 - padding) * self.jump)

    def through_transposed(self, window: _Window) -> Axis:
        """After a transposed layer. With a stride above 1 some outputs see more than others: the most counts."""
        kernel, stride, padding, dilation = window
        reach, jump = (kernel - 1) * dilation, self.jump / stride
        most = math.ceil((reach + 1) / math.lcm(stride, dilation))
        pixels = (most - 1) * math.lcm(stride, dilation) // stride
        return Axis(self.size + pixels * self.jump, jump, self.offset + (padding - reach / 2) * jump)

    def joined(self, other: Axis) -> Axis:
        """What two neurons see together whose values are added."""
        if self.jump != other.jump:
            raise ValueError(f"the branches of a Residual must have the same stride, got {self.jump} and {other.jump}")
        first, last = self._ends
        other_first, other_last = other._ends
        first, last = min(first, other_first), max(last, other_last)
        return Axis(int(last - first) + 1, self.jump, (first + last) / 2)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.offset - (self.size - 1) / 2, self.offset + (self.size - 1) / 2


@dataclass(frozen=True)
class ReceptiveField:
    """What a neuron sees, in pixels of the image, as (height, width).

    Neuron (i, j) sees the pixels of a rectangle of `size` around ``offset + (i, j) * jump``, where (0, 0) is the
    centre of the first pixel. Fields of neurons near the border go beyond the image, into the padding.

    Attributes
    ----------
    size : tuple of float
        Such as (7, 7) after three 3x3 convolutions.
    jump : tuple of float
        Distance of neighbours' fields: the product of all strides.
    offset : tuple of float
        Centre of the first neuron's field.
    """

    size: tuple[float, float] = (1, 1)
    jump: tuple[float, float] = (1, 1)
    offset: tuple[float, float] = (0, 0)

    @classmethod
    def of(cls, axes: list[Axis]) -> ReceptiveField:
        """From both axes."""
        (height, width) = axes
        return cls((height.size, width.size), (height.jump, width.jump), (height.offset, width.offset))

    @property
    def axes(self) -> list[Axis]:
        """Both."""
        return [Axis(*values) for values in zip(self.size, self.jump, self.offset, strict=True)]


def receptive_field(model: Module, input_shape: tuple[int, ...]) -> ReceptiveField:
    """What the last layer's neurons see.

    A layer with a kernel of k pixels, stride s, padding p and dilation d makes (size, jump, offset) =
    (r, j, o) into (r + (k - 1) d j, j s, o + ((k - 1) d / 2 - p) j): Araujo, Norris and Sim, "Computing Receptive
    Fields of Convolutional Neural Networks", Distill 2019. A layer after `Flatten` sees what the whole map before it
    sees. Of a transposed convolution's outputs, the one that sees most counts.

    Parameters
    ----------
    model : Module
        Made of the layers and containers of `fastconv.nn`.
    input_shape : tuple of int
        Of one image, (C, H, W).

    Returns
    -------
    ReceptiveField

    Raises
    ------
    TypeError
        If the network has a layer of another kind.
    ValueError
        If the shapes do not fit, or branches that are added have different strides.

    Examples
    --------
    >>> from fastconv import nn
    >>> three = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    >>> receptive_field(three, (1, 32, 32)).size
    (7, 7)
    """
    check_network(model, "model")
    shape = as_size(input_shape, "input_shape", None)
    with fitting("input_shape", shape):
        root = Step.of_shapes(model, (1, *shape)).root
    return fields(root)[id(root)]


def fields(root: Visit) -> dict[int, ReceptiveField]:
    """What each module of a walk through a network sees, by the `id` of its visit."""
    found: dict[int, ReceptiveField] = {}
    _walk(root, ReceptiveField(), found)
    return found


def _walk(visit: Visit, field: ReceptiveField, found: dict[int, ReceptiveField]) -> ReceptiveField:
    if type(visit.module) is Residual:
        branches = [_walk(child, field, found).axes for child in visit.children]
        field = ReceptiveField.of([_joined(axis) for axis in zip(*branches, strict=True)])
    elif type(visit.module) is Sequential:
        for child in visit.children:
            field = _walk(child, field, found)
    else:
        field = _after(visit, field)
    found[id(visit)] = field
    return field


def _joined(axes: tuple[Axis, ...]) -> Axis:
    whole = axes[0]
    for axis in axes[1:]:
        whole = whole.joined(axis)
    return whole


def _after(visit: Visit, field: ReceptiveField) -> ReceptiveField:
    windows = _WINDOWS.get(type(visit.module))
    if windows is None:
        return field
    step = Axis.through_transposed if type(visit.module) is ConvTranspose2d else Axis.through
    return ReceptiveField.of([step(a, w) for a, w in zip(field.axes, windows(visit), strict=True)])


def _of_conv(visit: Visit) -> list[_Window]:
    module: Any = visit.module
    stride, padding, dilation = module.options[:3]
    return _windows(module.weight.value.shape[2:4], stride, padding, dilation)


def _of_pool(visit: Visit) -> list[_Window]:
    module: Any = visit.module
    w = module.window
    return _windows(w.kernel_size, w.stride, w.padding, w.dilation)


def _windows(kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[_Window]:
    sizes, steps, dilations = (
        pair(value, name, least=1)
        for value, name in ((kernel, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
    )
    starts = [before for before, _ in padding_pairs(padding, sizes, steps, dilations)]
    return list(zip(sizes, steps, starts, dilations, strict=True))


def _of_adaptive(visit: Visit) -> list[_Window]:
    """Of the widest part, as if all were like it."""
    sizes, parts = visit.x.shape[2:], visit.output.shape[2:]
    return [(math.ceil(size / n), max(1, size // n), 0, 1) for size, n in zip(sizes, parts, strict=True)]


def _of_flatten(visit: Visit) -> list[_Window]:
    height, width = visit.x.shape[2:] if len(visit.x.shape) == 4 else (1, 1)
    return [(height, 1, 0, 1), (width, 1, 0, 1)]


_WINDOWS: dict[type, Callable[[Visit], list[_Window]]] = {
    Conv2d: _of_conv, ConvTranspose2d: _of_conv, LocallyConnected2d: _of_conv, MaxPool2d: _of_pool,
    AvgPool2d: _of_pool, LPPool2d: _of_pool, AdaptiveAvgPool2d: _of_adaptive, Flatten: _of_flatten,
}  # fmt: skip

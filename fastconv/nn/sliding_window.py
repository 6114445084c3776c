"""Classifiers that slide over larger images: fully connected layers as convolutions, and maps of scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.nn.backend import as_floats, backend, device_of, moved
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.memory import check_network, fitting
from fastconv.nn.module import Module
from fastconv.nn.peak import Step, Visit
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d
from fastconv.nn.receptive import receptive_field
from fastconv.nn.shape import Flatten
from fastconv.sizes import as_size, flag, integer


def to_fully_convolutional(model: Module, input_shape: tuple[int, int, int]) -> Module:
    """A copy of a classifier that takes images of any size from `input_shape` on, and gives a map of scores.

    The first `Linear` layer after a map becomes a convolution with a kernel of the map's size, those after it 1x1
    convolutions, and `AdaptiveAvgPool2d` the average of windows of the size that it has for `input_shape`. On an image
    of `input_shape` the numbers are the same; on a larger one they are those of windows of that size, moved by the
    product of all strides: Sermanet et al. 2013, "OverFeat" (arXiv 1312.6229), and Long, Shelhamer and Darrell 2014
    (arXiv 1411.4038). Where a layer pads, a window that is computed alone has zeros around it, the same window within
    an image has its neighbours: the scores of such networks differ a little, and the last windows may reach past the
    image, by less than the product of all strides.

    Parameters
    ----------
    model : Module
        Made of the layers and containers of `fastconv.nn`.
    input_shape : (int, int, int)
        Of the images that the classifier is made for, (C, H, W).

    Returns
    -------
    Module
        For images (N, C, H', W'), with scores (N, classes, Ho, Wo); (Ho, Wo) is (1, 1) for `input_shape`. Its
        parameters have the names of the model's; those of former `Linear` layers have two axes more.

    Raises
    ------
    TypeError
        If the model has a layer of another kind.
    ValueError
        If the shapes do not fit, or an `AdaptiveAvgPool2d` averages parts that share pixels.

    Examples
    --------
    >>> from fastconv import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    >>> whole = to_fully_convolutional(net, (1, 8, 8))
    >>> whole(np.zeros((1, 1, 12, 16), np.float32)).shape
    (1, 10, 3, 5)
    """
    check_network(model, "model")
    shape = as_size(input_shape, "input_shape", (3,))
    with fitting("input_shape", shape):
        root = Step.of_shapes(model, (1, *shape)).root
    return _converted(root, [(1, 1)]).train(model.training)


def _converted(visit: Visit, kernel: list[tuple[int, int]]) -> Module:
    """The module's counterpart; `kernel` holds the size of the map that the next `Linear` layer sees whole."""
    if type(visit.module) is Sequential:
        return Sequential(_named(visit, [_converted(child, kernel) for child in visit.children]))
    if type(visit.module) is Residual:
        return Residual(_named(visit, [_converted(child, list(kernel)) for child in visit.children]))
    rule = _RULES.get(type(visit.module))
    return copy.deepcopy(visit.module) if rule is None else rule(visit, kernel)


def _named(visit: Visit, modules: list[Module]) -> dict[str, Module]:
    return dict(zip((name for name, _ in visit.module.named_children()), modules, strict=True))


def _flatten(visit: Visit, kernel: list[tuple[int, int]]) -> Module:
    if len(visit.x.shape) == 4:
        if len(visit.output.shape) != 2:
            raise ValueError(f"Flatten must make rows of a map, got {visit.output.shape} of {visit.x.shape}")
        kernel[0] = (visit.x.shape[2], visit.x.shape[3])
    return Sequential()


def _linear(visit: Visit, kernel: list[tuple[int, int]]) -> Module:
    layer: Any = visit.module
    outputs, features = layer.weight.value.shape
    height, width = kernel[0]
    kernel[0] = (1, 1)
    # One channel and pixel: its own weights would be drawn and dropped.
    conv = Conv2d(1, 1, 1, bias=layer.bias is not None, dtype=str(layer.weight.value.dtype))
    conv.weight = layer.weight.reshaped((outputs, features // (height * width), height, width))
    conv.bias = copy.deepcopy(layer.bias)
    return conv


def _adaptive_average(visit: Visit, kernel: list[tuple[int, int]]) -> Module:
    sizes, parts = visit.x.shape[2:], visit.output.shape[2:]
    if any(size % n for size, n in zip(sizes, parts, strict=True)):
        raise ValueError(f"AdaptiveAvgPool2d must average parts that share no pixels, got {parts} of {sizes}")
    window = (sizes[0] // parts[0], sizes[1] // parts[1])
    # A single part is one position of a window, which can move by a pixel.
    stride = tuple(1 if n == 1 else size for n, size in zip(parts, window, strict=True))
    return Sequential() if window == (1, 1) else AvgPool2d(window, stride)


_RULES: dict[type, Callable[[Visit, list[tuple[int, int]]], Module]] = {
    Flatten: _flatten, Linear: _linear, AdaptiveAvgPool2d: _adaptive_average,
}  # fmt: skip


def dense_scores(model: Module, image: Any, average: bool = True, shifts: int = 1) -> Any:
    """Scores of all windows of larger images, or their average.

    Parameters
    ----------
    model : Module
        Fully convolutional, such as `to_fully_convolutional` makes; it runs as it is, so put it into eval mode.
    image : array (N, C, H, W) or (C, H, W)
        float32 or float64, at least as large as the model is made for.
    average : bool, default True
        Whether to average over the windows.
    shifts : int, default 1
        How many positions to take for each step of the network, along both axes. With 2, the network runs 4 times, on
        the image and on the image moved by half its stride, such as 16 pixels, and the maps are joined to one of twice
        the resolution ("shift and stitch" of Long et al., arXiv 1411.4038, section 3.2).

    Returns
    -------
    array
        (N, classes) if `average`, else (N, classes, Ho, Wo): the score at (i, j) is that of the window that starts
        ``stride / shifts * (i, j)`` pixels from the first. Without N for one image. Several maps from a GPU are joined
        on the CPU, and the result is an array of Numba's.

    Raises
    ------
    ValueError
        If the model does not make maps, the image is too small, or `shifts` does not divide the network's stride.
    """
    check_network(model, "model")
    images = as_floats(image, "image", (3, 4))
    batch = images.reshape((1, *images.shape)) if images.ndim == 3 else images
    shifts = integer(shifts, "shifts", least=1)
    steps = _steps(model, tuple(batch.shape), shifts)
    maps = {(i, j): _map(model, batch, (i * steps[0], j * steps[1])) for i in range(shifts) for j in range(shifts)}
    scores = maps[0, 0] if shifts == 1 else _stitched(maps, shifts)
    if flag(average, "average"):
        scores = backend(scores).reshape(AdaptiveAvgPool2d(1).eval()(scores), tuple(scores.shape[:2]))
    return scores[0] if images.ndim == 3 else scores


def _steps(model: Module, shape: tuple[int, ...], shifts: int) -> tuple[int, int]:
    """Pixels from one shift to the next along both axes."""
    if len(_output_shape(model, shape)) != 4:
        raise ValueError("model must give a map of scores: convert it by to_fully_convolutional")
    height, width = receptive_field(model, shape[1:]).jump
    if height % shifts or width % shifts:
        raise ValueError(f"shifts must divide the network's stride {(height, width)}, got {shifts}")
    return int(height) // shifts, int(width) // shifts


def _output_shape(model: Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    with fitting("image", shape):
        return Step.of_shapes(model, shape).root.output.shape


def _map(model: Module, images: Any, shift: tuple[int, int]) -> Any:
    """Scores of the images without their first rows and columns, None where no window is left."""
    if shift == (0, 0):
        return model(images)
    moved_by = images[:, :, shift[0] :, shift[1] :]
    try:
        _output_shape(model, tuple(moved_by.shape))
    except ValueError:
        return None
    return model(moved_by)


def _stitched(maps: dict[tuple[int, int], Any], shifts: int) -> Any:
    """One map of all, each at its shift; it ends where the first of them has no score. Joined on the CPU."""
    on_host: dict[tuple[int, int], Any] = {
        at: None if found is None else moved(found, "cpu") for at, found in maps.items()
    }
    first = on_host[0, 0]
    height = min(_end(on_host[i, 0], i, 2, shifts) for i in range(shifts))
    width = min(_end(on_host[0, j], j, 3, shifts) for j in range(shifts))
    whole = np.empty((*first.shape[:2], height, width), first.dtype)
    for (i, j), found in on_host.items():
        part = whole[:, :, i::shifts, j::shifts]
        if part.size:
            part[...] = found[:, :, : part.shape[2], : part.shape[3]]
    return moved(whole, device_of(maps[0, 0]))


def _end(found: Any, shift: int, axis: int, shifts: int) -> int:
    """The first position of the whole map, along an axis, that a map with this shift lacks."""
    return shift + shifts * (0 if found is None else found.shape[axis])

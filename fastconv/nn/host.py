"""What layers, losses and optimizers compute with arrays of NumPy's; `fastconv.nn.gpu` has the same for a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats, empty, memory_format, plain
from fastconv.cpu.adaptive import adaptive_average, adaptive_average_backward
from fastconv.cpu.channels import channel_moments, channel_products, channel_sums
from fastconv.cpu.channels import normalize as scale_and_shift
from fastconv.cpu.channels import normalize_backward as scale_both
from fastconv.cpu.elementwise import (
    add,
    channels_last,
    check_alike,
    dropout,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu6,
    relu6_backward,
    relu_backward,
)
from fastconv.cpu.updates import update
from fastconv.functional.conv import conv2d
from fastconv.grad import conv2d_bias, conv2d_input, conv2d_weight

__all__ = [
    "adaptive_average", "adaptive_average_backward", "add", "as_floats", "channels_last", "check_alike", "dropout",
    "leaky_relu", "leaky_relu_backward", "memory_format", "relu", "relu6", "relu6_backward", "relu_backward", "update",
]  # fmt: skip


def new(shape: tuple[int, ...], like: np.ndarray, format: Any = None) -> np.ndarray:
    """An uninitialised array of the dtype of `like`; images may have a memory format."""
    return np.empty(shape, like.dtype) if format is None else empty(shape, like.dtype, format)


def full_like(x: np.ndarray, value: float) -> np.ndarray:
    """A contiguous array filled with a number."""
    return np.full_like(x, value)


def reshape(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Another shape, in the order of the axes; a view if it can be."""
    return x.reshape(shape)


def in_format(x: np.ndarray, format: Any) -> np.ndarray:
    """A copy of an image in a memory format."""
    result = empty(x.shape, x.dtype, format)
    result[...] = x
    return result


def softmax(x: np.ndarray, dim: int) -> np.ndarray:
    """exp(x) / sum of exp(x) along an axis."""
    powers = np.empty_like(x)  # first, for it may be that there is no room
    if not x.size:
        return powers
    np.exp(np.subtract(x, x.max(axis=dim, keepdims=True), out=powers), out=powers)
    powers /= powers.sum(axis=dim, keepdims=True)
    return powers


def softmax_backward(output: np.ndarray, grad_output: np.ndarray, dim: int) -> np.ndarray:
    """Gradient of the input of `softmax`."""
    return output * (grad_output - (grad_output * output).sum(axis=dim, keepdims=True))


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x @ weight.T + bias for at least one row."""
    return _as_rows(conv2d(_as_image(x), weight[:, :, None, None], bias))


def linear_input(weight: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of the input of `linear`."""
    rows, features = len(grad_output), weight.shape[1]
    return _as_rows(conv2d_input((1, features, 1, rows), weight[:, :, None, None], _as_image(grad_output)))


def linear_weight(x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of the weights of `linear`."""
    shape = (grad_output.shape[1], x.shape[1])
    return conv2d_weight(_as_image(x), (*shape, 1, 1), _as_image(grad_output)).reshape(shape)


def linear_bias(grad_output: np.ndarray) -> np.ndarray:
    """Gradient of the bias of `linear`."""
    return conv2d_bias(_as_image(grad_output))


def batch_sum(x: np.ndarray) -> np.ndarray:
    """Sum along the first axis, in float64."""
    return x.sum(axis=0, dtype=np.float64).astype(x.dtype)


def _as_image(rows: np.ndarray) -> np.ndarray:
    """(N, C) as (1, C, 1, N)."""
    return rows.T[None, :, None, :]


def _as_rows(image: np.ndarray) -> np.ndarray:
    """(1, C, 1, N) as (N, C)."""
    return image[0, :, 0, :].T


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) variance of each channel, in float64."""
    return channel_moments(x)


def constants(mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running averages as `normalize` takes them."""
    return mean.astype(np.float64), var.astype(np.float64)


def move_running(running_mean: Any, running_var: Any, mean: Any, var: Any, share: float, pixels: int) -> None:
    """Move running averages, in place, towards the statistics of a batch of so many pixels."""
    for running, new in ((running_mean, mean), (running_var, var * pixels / (pixels - 1))):
        running[...] = ((1 - share) * running + share * new).astype(running.dtype)


def normalize(
    x: np.ndarray, mean: np.ndarray | None, var: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None,
    eps: float,
) -> np.ndarray:  # fmt: skip
    """``(x - mean) / sqrt(var + eps) * weight + bias`` for each channel; a mean or bias of None is 0."""
    center, shift = (np.zeros_like(var) if vector is None else vector for vector in (mean, bias))
    return scale_and_shift(x, center, _wide(weight, var) / np.sqrt(var + eps), shift)


def norm_sums(
    x: np.ndarray | None, grad_output: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """Gradients of weight (None without an `x`) and bias of `normalize`, in float64 with an `x`."""
    if x is None:
        return None, channel_sums(grad_output)
    total, product = channel_products(x, grad_output, mean)
    return product / np.sqrt(var + eps), total


def norm_input(
    x: np.ndarray, grad_output: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray | None,
    grad_weight: np.ndarray, grad_bias: np.ndarray, eps: float,
) -> np.ndarray:  # fmt: skip
    """Gradient of the input of `normalize`, mean and variance being those of the batch, from `norm_sums`."""
    deviation, pixels = np.sqrt(var + eps), x.size // x.shape[1]
    scale = _wide(weight, var) / deviation
    along, shift = -scale * grad_weight / (deviation * pixels), -scale * grad_bias / pixels
    return scale_both(x, grad_output, mean, along, scale, shift)


def cast(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`x` in the dtype of `like`."""
    return x.astype(like.dtype)


def fold(
    weight: np.ndarray, bias: np.ndarray | None, mean: np.ndarray, var: np.ndarray, scale: np.ndarray | None,
    shift: np.ndarray | None, eps: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights and bias of a convolution that does a normalisation with constant statistics too."""
    mean, var = constants(mean, var)
    factor = _wide(scale, var) / np.sqrt(var + eps)
    offset = ((0 if bias is None else bias) - mean) * factor + (0 if shift is None else shift)
    return (weight * factor[:, None, None, None]).astype(weight.dtype), offset.astype(weight.dtype)


def _wide(weight: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """The weight in float64, 1 if there is none."""
    return np.ones_like(like) if weight is None else weight.astype(np.float64)


def squared_error(output: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(output - target)**2 of each element, and its gradient with respect to `output`."""
    difference = output - target
    return difference**2, 2 * difference


def as_classes(target: Any) -> np.ndarray:
    """Integers, as an array."""
    classes = plain(target, "target")
    if classes.dtype.kind not in "iu":
        raise TypeError(f"target must hold integers, the classes, got {classes.dtype}")
    return classes


def cross_entropy(output: np.ndarray, classes: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """-log softmax(output)[class] of each row, and its gradient with respect to `output`."""
    if classes.size and not 0 <= classes.min() <= classes.max() < output.shape[1]:
        raise ValueError(f"target must be in [0, {output.shape[1]}), got {classes.min()} to {classes.max()}")
    rows = np.arange(len(classes))
    shifted = np.empty_like(output)  # first, for it may be that there is no room
    with np.errstate(over="ignore", invalid="ignore"):  # -inf, whose exp is 0, and NaN, as in torch
        np.subtract(output, output.max(axis=1, keepdims=True), out=shifted)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    logs = shifted - np.log(sums)
    losses = (smoothing - 1) * logs[rows, classes]
    if smoothing:  # 0 * inf would be NaN
        losses -= smoothing * logs.mean(axis=1)
    gradient = powers / sums - output.dtype.type(smoothing / output.shape[1])
    gradient[rows, classes] -= 1 - smoothing
    return losses, gradient


def total(x: np.ndarray) -> float:
    """Sum of all elements, in float64."""
    return float(x.sum(dtype=np.float64))


def divided(x: np.ndarray, divisor: float) -> np.ndarray:
    """x / divisor."""
    return x / divisor


def assign(target: np.ndarray, source: np.ndarray) -> None:
    """Copy into an array of the same shape."""
    target[...] = source

"""Gradients of a locally-connected convolution. That of the bias is ``grad_output.sum(0)``."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats, as_image, check_out, memory_format, on_gpu, target
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.local_problem import LocalProblem
from fastconv.problem import MemoryFormat
from fastconv.sizes import as_size

_calls = CallCache()
_NAMES = {"backward_input": ("input_size", "weight"), "backward_weight": ("input", "weight_size")}


def locally_connected2d_input(
    input_size: tuple[int, ...], weight: np.ndarray, grad_output: np.ndarray, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, *, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.locally_connected2d` with respect to its input.

    Parameters
    ----------
    input_size : (N, C, H, W) or (C, H, W)
        Shape of the input, and of the result.
    weight : array (K, C, R, S, Ho, Wo)
    grad_output : array (N, K, Ho, Wo) or (K, Ho, Wo)
        Same dtype as `weight`, any strides.
    stride, padding, dilation
        As the convolution had them.
    algorithm : str, optional
        A registered algorithm; the best if not given.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array of shape `input_size`
        In the memory format of `grad_output`.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or dtypes differ.
    ValueError
        Names the argument that does not fit, its value and what would do.
    """
    if on_gpu(grad_output):
        from fastconv.functional.gpu import local as gpu

        size, options = as_size(input_size, "input_size", (3, 4)), (stride, padding, dilation)
        return gpu.locally_connected2d_input(size, weight, grad_output, options, algorithm, out)
    grad, batched = as_image(grad_output, "grad_output")
    weight = as_floats(weight, "weight", (6,))
    if weight.dtype != grad.dtype:
        raise TypeError(f"weight must have the dtype of grad_output, {grad.dtype}, got {weight.dtype}")
    size = as_size(input_size, "input_size", (3 + batched,))
    shape, format = size if batched else (1, *size), memory_format(grad)
    options = (stride, padding, dilation)
    kernel = _kernel("backward_input", shape, weight.shape, grad, format, options, algorithm)
    result, answer = target(out, shape, batched, grad.dtype, format, grad, weight)
    kernel.run(grad, weight, result)
    return answer


def locally_connected2d_weight(
    input: np.ndarray, weight_size: tuple[int, ...], grad_output: np.ndarray, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, *, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.locally_connected2d` with respect to its weights.

    Parameters
    ----------
    input : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides.
    weight_size : (K, C, R, S, Ho, Wo)
        Shape of the weights, and of the result.
    grad_output : array (N, K, Ho, Wo) or (K, Ho, Wo)
        Same dtype as `input`, any strides.
    stride, padding, dilation, algorithm, out
        As in `locally_connected2d_input`.

    Returns
    -------
    array (K, C, R, S, Ho, Wo)
        Contiguous.

    Raises
    ------
    TypeError, ValueError
        As `locally_connected2d_input`.
    """
    size, options = as_size(weight_size, "weight_size", (6,)), (stride, padding, dilation)
    if on_gpu(input):
        from fastconv.functional.gpu import local as gpu

        return gpu.locally_connected2d_weight(input, size, grad_output, options, algorithm, out)
    image, batched = as_image(input, "input")
    grad, grad_batched = as_image(grad_output, "grad_output")
    if grad.dtype != image.dtype:
        raise TypeError(f"grad_output must have the dtype of input, {image.dtype}, got {grad.dtype}")
    if batched != grad_batched:
        raise ValueError(f"grad_output must have as many axes as input, got {grad.shape} for {image.shape}")
    kernel = _kernel("backward_weight", image.shape, size, grad, memory_format(image), options, algorithm)
    if out is None:
        out = result = np.empty(size, image.dtype)
    else:
        result = check_out(out, size, image.dtype, image, grad)
    kernel.run(image, grad, result)
    return out


def _kernel(
    direction: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], grad: np.ndarray, format: MemoryFormat,
    options: tuple, algorithm: str | None,
) -> Any:  # fmt: skip
    key = (direction, shape, weight_shape, grad.shape, grad.dtype.char, format, *options, algorithm)
    try:
        return _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        stride, padding, dilation = options
        problem: Any = LocalProblem.create(
            shape, weight_shape, stride=stride, padding=padding, dilation=dilation, dtype=str(grad.dtype),
            memory_format=format, direction=direction, names=_NAMES[direction],
        )  # fmt: skip
        if grad.shape != problem.out_shape:
            raise ValueError(
                f"grad_output must have shape {problem.out_shape} for an input of shape {shape}, got {grad.shape}"
            ) from None
        kernel = kernel_for(problem, algorithm)[0]
        _calls.remember(key, kernel)
        return kernel

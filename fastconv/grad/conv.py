"""Gradients of a convolution; those of input and weights have the names of torch.nn.grad."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats, as_image, check_out, memory_format, on_gpu
from fastconv.cpu.channels import channel_sums
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.functional.transposed import gradient_problem, input_gradient
from fastconv.sizes import as_size

_calls = CallCache()


def conv2d_input(
    input_size: tuple[int, ...], weight: np.ndarray, grad_output: np.ndarray, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.conv2d` with respect to its input.

    Parameters
    ----------
    input_size : (N, C, H, W) or (C, H, W)
        Shape of the input, and of the result.
    weight : array (K, C/groups, R, S)
    grad_output : array (N, K, Ho, Wo) or (K, Ho, Wo)
        Same dtype as `weight`, any strides.
    stride, padding, dilation, groups
        As the convolution had them.
    algorithm : str, optional
        A registered algorithm; the tuned or predicted best if not given.
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

    Notes
    -----
    Where a weight is not finite, it depends on the algorithm whether its products with pixels beyond the border
    are NaN or left out.
    """
    size = as_size(input_size, "input_size", (3, 4))
    grad_output = grad_output if on_gpu(grad_output) else as_floats(grad_output, "grad_output", (3, 4))
    if not on_gpu(grad_output) and len(size) != grad_output.ndim:
        raise ValueError(f"input_size must have as many axes as grad_output, got {size}")
    return input_gradient(size, weight, grad_output, (stride, padding, dilation, groups), None, algorithm, out)


def conv2d_weight(
    input: np.ndarray, weight_size: tuple[int, ...], grad_output: np.ndarray, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.conv2d` with respect to its weights.

    Parameters
    ----------
    input : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides.
    weight_size : (K, C/groups, R, S)
        Shape of the weights, and of the result.
    grad_output : array (N, K, Ho, Wo) or (K, Ho, Wo)
        Same dtype as `input`, any strides.
    stride, padding, dilation, groups, algorithm, out
        As in `conv2d_input`.

    Returns
    -------
    array (K, C/groups, R, S)
        Contiguous. The sum over images and pixels is cut by the problem and the machine's caches, never by the
        number of threads: the same algorithm with the same parameters gives the same bits whatever the threads.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_input`.

    Notes
    -----
    Where the gradient of the output is not finite, it depends on the algorithm whether its products with the
    padding are NaN or left out.
    """
    shape, options = as_size(weight_size, "weight_size", (4,)), (stride, padding, dilation, groups)
    if on_gpu(input):
        from fastconv.functional.gpu import conv as gpu

        return gpu.conv2d_weight(input, shape, grad_output, options, algorithm, out)
    image, _ = as_image(input, "input")
    gradient, _ = as_image(grad_output, "grad_output")
    if gradient.dtype != image.dtype:
        raise TypeError(f"grad_output must have the dtype of input, {image.dtype}, got {gradient.dtype}")
    if np.ndim(input) != np.ndim(grad_output):
        raise ValueError(f"grad_output must have as many axes as input, got {gradient.shape} for {image.shape}")
    key = (image.shape, image.strides, image.dtype.char, shape, gradient.shape, gradient.strides, *options, algorithm)
    try:
        kernel = _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        named = ("grad_output", "input of shape")
        problem = gradient_problem(
            "backward_weight", image.shape, shape, gradient, options, named,
            format=memory_format(image), names=("input", "weight_size"),
        )  # fmt: skip
        kernel = kernel_for(problem, algorithm)[0]
        _calls.remember(key, kernel)
    if out is None:
        out = result = np.empty(shape, image.dtype)
    else:
        result = check_out(out, shape, image.dtype, image, gradient)
    kernel.run(image, gradient, result)
    return out


def conv2d_bias(grad_output: np.ndarray) -> np.ndarray:
    """Gradient of `fastconv.conv2d` with respect to its bias: the sum over images and pixels.

    That of `fastconv.conv_transpose2d` is the same.

    Parameters
    ----------
    grad_output : array (N, K, Ho, Wo) or (K, Ho, Wo)
        float32 or float64, any strides.

    Returns
    -------
    array (K,)
        Of the dtype of `grad_output`; summed in float64, in an order that does not depend on the number of threads.

    Raises
    ------
    TypeError
        If `grad_output` is not float32 or float64.
    ValueError
        If it has another number of axes, or an empty axis other than N.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_bias(np.ones((2, 3, 4, 5)))
    array([40., 40., 40.])
    """
    if on_gpu(grad_output):
        from fastconv.functional.gpu import conv as gpu

        return gpu.conv2d_bias(grad_output)
    return channel_sums(as_image(grad_output, "grad_output")[0])

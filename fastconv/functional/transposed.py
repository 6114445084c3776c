"""Transposed convolution, which is the gradient of a convolution's input as a layer of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats, as_image, empty, memory_format, on_gpu, target
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.precision import precision_of
from fastconv.problem import ConvProblem, positive
from fastconv.sizes import Pair, padding_pairs, pair

_calls = CallCache()


def conv_transpose2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, algorithm: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """2-D transposed convolution: the gradient of `conv2d` with respect to its input, as an operator.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides. The memory format is read from the strides.
    weight : array (C, K/groups, R, S)
        Same dtype as `x`.
    bias : array (K,), optional
    stride : int or (int, int), default 1
    padding : int, (int, int) or ((top, bottom), (left, right)), default 0
        Of the convolution whose gradient this is: so much is cut off the result.
    output_padding : int or (int, int), default 0
        Added to the size of the result at the bottom and at the right; less than the stride or the dilation.
    groups : int, default 1
        Must divide C and K.
    dilation : int or (int, int), default 1
    algorithm : str, optional
        A registered algorithm; the tuned or predicted best if not given.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array (N, K, Ho, Wo) or (K, Ho, Wo)
        In the memory format of `x`; Ho = (H - 1)*S - (top + bottom) + D*(R - 1) + output_padding + 1.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or dtypes differ.
    ValueError
        Names the argument that does not fit, its value and what would do.
    """
    if on_gpu(x):
        from fastconv.functional.gpu import conv as gpu

        return gpu.conv_transpose2d(
            x, weight, bias, (stride, padding, dilation, groups), output_padding, algorithm, out
        )
    image, batched = as_image(x, "x")
    weight = as_floats(weight, "weight", (4,))
    if 0 in weight.shape:
        raise ValueError(f"weight must not have an empty axis, got shape {weight.shape}")
    strides, dilations = pair(stride, "stride", least=1), pair(dilation, "dilation", least=1)
    size = transposed_size(image.shape, weight.shape, strides, padding, output_padding, dilations)
    extra = pair(output_padding, "output_padding", least=0)
    image = extended(image, extra[0] // strides[0], extra[1] // strides[1])
    groups = positive(groups, "groups")
    if image.shape[1] % groups:
        raise ValueError(f"groups must divide the channels of x ({image.shape[1]}), got {groups}")
    in_size = (image.shape[0], weight.shape[1] * groups, *size)
    options = (stride, padding, dilation, groups)
    named = ("x", "the result")
    x = image if batched else image[0]
    return input_gradient(in_size if batched else in_size[1:], weight, x, options, bias, algorithm, out, named)


def extended(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Zeros below and to the right, for outputs that the convolution has but that no gradient comes from."""
    if not rows and not columns:
        return x
    n, c, h, w = x.shape
    larger = empty((n, c, h + rows, w + columns), x.dtype, memory_format(x))
    larger[...] = 0
    larger[:, :, :h, :w] = x
    return larger


def transposed_size(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Pair, padding: Any, output_padding: Any,
    dilation: Pair,
) -> Pair:  # fmt: skip
    """Height and width of the result of `conv_transpose2d`; shapes with 4 axes, strides and dilations as pairs.

    Raises
    ------
    ValueError
        If `output_padding` is too large, or so much padding is cut off that nothing is left.
    """
    extra = pair(output_padding, "output_padding", least=0)
    if isinstance(padding, str):
        raise ValueError(f"padding must be ints for a transposed convolution, got {padding!r}")
    pads = padding_pairs(padding, (weight_shape[2], weight_shape[3]), stride, dilation)
    sizes = []
    for i, name in enumerate(("height", "width")):
        if extra[i] >= max(stride[i], dilation[i]):
            raise ValueError(f"output_padding must be less than the stride or the dilation, got {output_padding!r}")
        span = dilation[i] * (weight_shape[2 + i] - 1) + 1
        sizes.append((x_shape[2 + i] - 1) * stride[i] - sum(pads[i]) + span + extra[i])
        if sizes[i] < 1:
            raise ValueError(f"padding {padding!r} leaves nothing of the result's {name}; use less")
        if sizes[i] >= 1 << 63:
            raise ValueError(f"stride, dilation and the weight's kernel make the result's {name} {sizes[i]}: too much")
    return sizes[0], sizes[1]


def input_gradient(
    in_shape: tuple[int, ...], weight: np.ndarray, grad_output: np.ndarray, options: tuple, bias: np.ndarray | None,
    algorithm: str | None, out: np.ndarray | None, named: tuple[str, str] = ("grad_output", "input_size"),
) -> np.ndarray:  # fmt: skip
    """What the gradient of the input and the transposed convolution share.

    `in_shape` is that of the result, `options` are (stride, padding, dilation, groups), and `named` is what
    error messages call `grad_output` and `in_shape`.
    """
    if on_gpu(grad_output):
        from fastconv.functional.gpu import conv as gpu

        return gpu.conv2d_input(in_shape, weight, grad_output, options, bias, algorithm, out, named)
    image, batched = as_image(grad_output, named[0])
    weight = as_floats(weight, "weight", (4,))
    if weight.dtype != image.dtype:
        raise TypeError(f"weight must have the dtype of {named[0]}, {image.dtype}, got {weight.dtype}")
    shape = in_shape if batched else (1, *in_shape)
    if bias is not None:
        bias = as_floats(bias, "bias", (1,))
        if bias.dtype != image.dtype or bias.shape != (shape[1],):
            raise ValueError(f"bias must be {image.dtype} of shape ({shape[1]},), got {bias.dtype} {bias.shape}")
    key = (shape, weight.shape, image.shape, image.strides, image.dtype.char, *options, bias is None, algorithm)
    try:
        kernel, format = _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        problem = gradient_problem("backward_input", shape, weight.shape, image, options, named, bias is not None)
        kernel, format = kernel_for(problem, algorithm)[0], problem.memory_format
        _calls.remember(key, (kernel, format))
    inputs = (image, weight) if bias is None else (image, weight, bias)
    result, answer = target(out, shape, batched, image.dtype, format, *inputs)
    kernel.convolve(image, weight, bias, result)
    return answer


def gradient_problem(
    direction: str, in_shape: tuple[int, ...], weight_shape: tuple[int, ...], grad_output: Any, options: tuple,
    named: tuple[str, str], bias: bool = False, format: Any = None, device: str = "cpu",
    names: tuple[str, str] | None = None,
) -> ConvProblem:  # fmt: skip
    """The problem of a gradient, checked against the shape of `grad_output`.

    Messages call the gradient and the input as `named` says, and input and weights as `names` does, if given.

    Raises
    ------
    ValueError
        If the sizes do not belong together.
    """
    stride, padding, dilation, groups = options
    problem = ConvProblem.create(
        in_shape, weight_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
        dtype=str(grad_output.dtype), memory_format=format or memory_format(grad_output), direction=direction,
        names=names or (named[1], "weight"),
        device=device, precision=precision_of(str(grad_output.dtype)) if device == "cuda" else "ieee",
    )  # fmt: skip
    if problem.out_shape != grad_output.shape:
        raise ValueError(
            f"{named[0]} must have shape {problem.out_shape} for {named[1]} {tuple(in_shape)} and weight "
            f"{tuple(weight_shape)}, got {grad_output.shape}"
        )
    return problem

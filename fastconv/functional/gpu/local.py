"""Locally-connected convolution and its gradients for arrays on a GPU; `options` are (stride, padding, dilation)."""

from __future__ import annotations

from typing import Any

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, as_device_array, row_major
from fastconv.functional.calls import CallCache
from fastconv.functional.gpu.arrays import FLOATS, as_image, check_fit, format_of, prepared, target
from fastconv.local_problem import LocalProblem

_calls = CallCache()


def locally_connected2d(x: Any, weight: Any, bias: Any, options: tuple, algorithm: str | None, out: Any) -> Any:
    """`fastconv.locally_connected2d`."""
    image, missing = as_image(x, "x", FLOATS)
    w = as_device_array(weight, "weight", (6,))
    b = None if bias is None else as_device_array(bias, "bias", (3,))
    check_fit(image, "x", weight=w, bias=b)

    def describe() -> LocalProblem:
        return _problem("forward", image.shape, w.shape, image, options, b is not None)

    key = ("forward", image.shape, image.strides, image.dtype, w.shape, b is None, *options)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    shape = problem.out_shape
    if b is not None and b.shape != shape[1:]:
        raise ValueError(f"bias must have shape {shape[1:]}, one for each element of a result, got {b.shape}")
    result = target(out, shape, dense_strides(shape, problem.memory_format), missing, x, (image, w, b))
    kernel.run(image, w, b, result.array)
    return result.finished()


def locally_connected2d_input(
    input_size: tuple[int, ...], weight: Any, grad_output: Any, options: tuple, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.locally_connected2d_input`."""
    grad, missing = as_image(grad_output, "grad_output", FLOATS)
    w = as_device_array(weight, "weight", (6,))
    check_fit(grad, "grad_output", weight=w)
    if len(input_size) + len(missing) != 4:
        raise ValueError(f"input_size must have as many axes as grad_output, got {input_size}")
    shape = (1,) * len(missing) + input_size

    def describe() -> LocalProblem:
        return _gradient_problem("backward_input", shape, w.shape, grad, grad, options)

    key = ("input", shape, w.shape, grad.shape, grad.strides, grad.dtype, *options)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    result = target(out, shape, dense_strides(shape, problem.memory_format), missing, grad_output, (grad, w))
    kernel.run(grad, w, result.array)
    return result.finished()


def locally_connected2d_weight(
    input: Any, weight_shape: tuple[int, ...], grad_output: Any, options: tuple, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.locally_connected2d_weight`."""
    image, missing = as_image(input, "input", FLOATS)
    grad, grad_missing = as_image(grad_output, "grad_output", FLOATS)
    check_fit(image, "input", grad_output=grad)
    if missing != grad_missing:
        raise ValueError(f"grad_output must have as many axes as input, got {grad.shape} for {image.shape}")

    def describe() -> LocalProblem:
        return _gradient_problem("backward_weight", image.shape, weight_shape, grad, image, options)

    key = ("weight", image.shape, image.strides, image.dtype, weight_shape, grad.shape, *options)
    kernel, _ = prepared(_calls, key, describe, algorithm)
    result = target(out, weight_shape, row_major(weight_shape), (), input, (image, grad))
    kernel.run(image, grad, result.array)
    return result.finished()


def _problem(
    direction: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], image: DeviceArray, options: tuple,
    bias: bool = False,
) -> LocalProblem:  # fmt: skip
    """With the dtype and the memory format of an image."""
    stride, padding, dilation = options
    return LocalProblem.create(
        shape, weight_shape, stride=stride, padding=padding, dilation=dilation, dtype=image.dtype, bias=bias,
        memory_format=format_of(image), direction=direction, device="cuda",
    )  # fmt: skip


def _gradient_problem(
    direction: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], grad: DeviceArray, image: DeviceArray,
    options: tuple,
) -> LocalProblem:  # fmt: skip
    """The same, checked against the shape of the output's gradient."""
    problem = _problem(direction, shape, weight_shape, image, options)
    if grad.shape != problem.out_shape:
        raise ValueError(
            f"grad_output must have shape {problem.out_shape} for an input of shape {shape}, got {grad.shape}"
        )
    return problem

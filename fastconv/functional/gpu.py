"""Convolution and its gradients for arrays on a GPU: what `fastconv.conv2d` and `fastconv.grad` do with them.

Images are not copied, results are made by the library of the input, and kernels are started on the stream that this
library works on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv.arrays import overlaps_itself
from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of, memory_format
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.functional.transposed import gradient_problem, transposed_size
from fastconv.problem import ConvProblem
from fastconv.sizes import pair

_calls = CallCache()


def conv2d(x: Any, weight: Any, bias: Any, options: tuple, algorithm: str | None, out: Any) -> Any:
    """`fastconv.conv2d`; `options` are (stride, padding, dilation, groups, activation, pool)."""
    given, w, b = _image(x, "x"), as_device_array(weight, "weight", (4,)), _bias(bias)
    image = _batched(given)
    _fit(image, "x", weight=w, bias=b)

    def describe() -> ConvProblem:
        stride, padding, dilation, groups, activation, pool = options
        problem = ConvProblem.create(
            image.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=image.dtype,
            memory_format=_format(image), bias=b is not None, activation=activation, pool=pool, raw=True,
            device="cuda",
        )  # fmt: skip
        _check_bias(b, problem.out_channels)
        return problem

    key = ("forward", image.shape, image.strides, image.dtype, w.shape, b and b.shape, *options)
    kernel, problem = _prepared(key, describe, algorithm)
    target, answer = _target(out, problem.out_shape, problem, given, x, (image, w, b))
    kernel.convolve(image, w, b, target)
    return answer


def conv2d_input(
    in_shape: tuple[int, ...], weight: Any, grad_output: Any, options: tuple, bias: Any, algorithm: str | None,
    out: Any, named: tuple[str, str],
) -> Any:  # fmt: skip
    """`fastconv.functional.transposed.input_gradient`."""
    given, w, b = _image(grad_output, named[0]), as_device_array(weight, "weight", (4,)), _bias(bias)
    grad = _batched(given)
    _fit(grad, named[0], weight=w, bias=b)
    shape = tuple(in_shape) if grad is given else (1, *in_shape)

    def describe() -> ConvProblem:
        problem = gradient_problem(
            "backward_input", shape, w.shape, grad, options, named, b is not None, _format(grad), "cuda"
        )
        _check_bias(b, problem.in_channels)
        return problem

    key = ("input", shape, w.shape, grad.shape, grad.strides, grad.dtype, b and b.shape, *options)
    kernel, problem = _prepared(key, describe, algorithm)
    target, answer = _target(out, problem.in_shape, problem, given, grad_output, (grad, w, b))
    kernel.convolve(grad, w, b, target)
    return answer


def conv_transpose2d(
    x: Any, weight: Any, bias: Any, options: tuple, output_padding: Any, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.conv_transpose2d`; `options` are (stride, padding, dilation, groups)."""
    image, w = _image(x, "x"), as_device_array(weight, "weight", (4,))
    strides, dilations = pair(options[0], "stride", least=1), pair(options[2], "dilation", least=1)
    shape = image.shape if len(image.shape) == 4 else (1, *image.shape)
    size = transposed_size(shape, w.shape, strides, options[1], output_padding, dilations)
    if not isinstance(options[3], int) or options[3] < 1:
        raise ValueError(f"groups must be a positive int, got {options[3]!r}")
    extra = pair(output_padding, "output_padding", least=0)
    if extra[0] >= strides[0] or extra[1] >= strides[1]:
        raise ValueError(f"output_padding must be less than the stride on a GPU, got {output_padding!r}")
    result = (w.shape[1] * options[3], *size)
    in_shape = (shape[0], *result) if len(image.shape) == 4 else result
    return conv2d_input(in_shape, weight, x, options, bias, algorithm, out, ("x", "the result"))


def conv2d_weight(
    input: Any, weight_shape: tuple[int, ...], grad_output: Any, options: tuple, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.conv2d_weight`."""
    image, grad = _image(input, "input"), _image(grad_output, "grad_output")
    if len(image.shape) != len(grad.shape):
        raise ValueError(f"grad_output must have as many axes as input, got {grad.shape} for {image.shape}")
    image, grad = _batched(image), _batched(grad)
    _fit(image, "input", grad_output=grad)

    def describe() -> ConvProblem:
        named = ("grad_output", "input of shape")
        return gradient_problem(
            "backward_weight", image.shape, weight_shape, grad, options, named, format=_format(image), device="cuda"
        )

    key = ("weight", image.shape, image.strides, image.dtype, weight_shape, grad.shape, grad.strides, *options)
    kernel, problem = _prepared(key, describe, algorithm)
    weights = replace(problem, memory_format="contiguous")
    target, answer = _target(out, problem.weight_shape, weights, None, input, (image, grad))
    kernel.run(image, grad, target)
    return answer


def _prepared(key: tuple, describe: Callable[[], ConvProblem], algorithm: str | None) -> tuple[Any, ConvProblem]:
    """The kernel and the problem of a call by what decides them; `describe` makes a problem seen for the first time."""
    try:
        return _calls[*key, algorithm]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        problem = describe()
        found = kernel_for(problem, algorithm)[0], problem
        _calls.remember((*key, algorithm), found)
        return found


def _format(image: DeviceArray) -> Any:
    return memory_format(image.shape, image.strides)


def _image(x: Any, name: str) -> DeviceArray:
    array = as_device_array(x, name, (3, 4))
    if 0 in array.shape[-3:]:
        raise ValueError(f"{name} must not have an empty axis other than N, got shape {array.shape}")
    return array


def _batched(image: DeviceArray) -> DeviceArray:
    """As (N, C, H, W)."""
    if len(image.shape) == 4:
        return image
    return replace(image, shape=(1, *image.shape), strides=(image.reach, *image.strides))


def _bias(bias: Any) -> DeviceArray | None:
    if bias is None:
        return None
    found = as_device_array(bias, "bias", (1,))
    if found.strides != (1,) and found.size > 1:
        raise ValueError("bias must be contiguous on a GPU")
    return found


def _check_bias(bias: DeviceArray | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {bias.shape}")


def _fit(image: DeviceArray, name: str, **others: DeviceArray | None) -> None:
    """Raise unless the others have the dtype of an image, and are on its GPU and its stream."""
    for other, array in others.items():
        if array is None:
            continue
        if array.dtype != image.dtype:
            raise TypeError(f"{other} must have the dtype of {name}, {image.dtype}, got {array.dtype}")
        if (array.device, array.stream) != (image.device, image.stream):
            raise ValueError(
                f"{other} must be on the GPU and the stream of {name}, {image.device} and {image.stream}, got "
                f"{array.device} and {array.stream}"
            )


def _target(
    out: Any, shape: tuple[int, ...], problem: ConvProblem, given: DeviceArray | None, like: Any, inputs: tuple
) -> tuple[DeviceArray, Any]:
    """Where a kernel writes, an array of `shape`, and what the caller gets: without N if `given` has none."""
    batched = given is None or len(given.shape) == 4
    if out is None:
        library = library_of(like)
        assert library is not None
        result = library.empty(shape, problem.dtype, problem.memory_format, like)
        return as_device_array(result, "out"), result if batched else result[0]
    array = as_device_array(out, "out")
    if array.shape != (shape if batched else shape[1:]):
        raise ValueError(f"out must have shape {shape if batched else shape[1:]}, got {array.shape}")
    _fit(inputs[0], "the input", out=array)
    if overlaps_itself(array.shape, array.strides, 1):
        raise ValueError(f"out has elements that share memory, with strides {array.strides} for shape {array.shape}")
    itemsize = problem.itemsize
    for x in (x for x in inputs if x is not None):
        apart = array.pointer + itemsize * array.reach <= x.pointer or x.pointer + itemsize * x.reach <= array.pointer
        if not apart:
            raise ValueError("out must not overlap x or another input; give a separate array")
    return array if batched else _batched(array), out

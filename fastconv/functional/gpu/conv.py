"""Convolution and its gradients for arrays on a GPU."""

from __future__ import annotations

from typing import Any

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, as_device_array
from fastconv.cuda.norm import channel_sums
from fastconv.cuda.replay import Recording, Replays
from fastconv.dispatch import on_forget
from fastconv.functional.calls import CallCache
from fastconv.functional.gpu.arrays import FLOATS, as_image, check_fit, format_of, new, prepared, target, with_axes
from fastconv.functional.transposed import gradient_problem, transposed_size
from fastconv.precision import precision_of
from fastconv.problem import ConvProblem, positive
from fastconv.sizes import pair

_calls, _replays = CallCache(), Replays()
on_forget(_replays.clear)


def conv2d(x: Any, weight: Any, bias: Any, options: tuple, algorithm: str | None, out: Any) -> Any:
    """`fastconv.conv2d`; `options` are (stride, padding, dilation, groups, activation, pool)."""
    done = _replays.again((x, weight, bias, out), (options, algorithm))
    if done is not None:
        return done
    image, missing = as_image(x, "x")
    w = as_device_array(weight, "weight", (4,))
    return _convolve(image, missing, w, (x, weight, bias, out), options, algorithm)


def conv1d(x: Any, weight: Any, bias: Any, options: tuple, algorithm: str | None, out: Any) -> Any:
    """`fastconv.conv1d`, of images one pixel high; `options` as in `conv2d`."""
    done = _replays.again((x, weight, bias, out), (options, algorithm))
    if done is not None:
        return done
    signal, w = as_device_array(x, "x", (2, 3)), as_device_array(weight, "weight", (3,))
    if 0 in signal.shape[-2:]:
        raise ValueError(f"x must not have an empty axis other than N, got shape {signal.shape}")
    missing = (0, 2) if len(signal.shape) == 2 else (2,)
    image, w = with_axes(signal, missing), with_axes(w, (2,))
    return _convolve(image, missing, w, (x, weight, bias, out), options, algorithm)


def _convolve(
    image: DeviceArray, missing: tuple[int, ...], w: DeviceArray, arrays: tuple, options: tuple, algorithm: str | None
) -> Any:  # fmt: skip
    """Convolve with the weights `w`; `arrays` are x, weight, bias and out as the caller gave them."""
    x, _, bias, out = arrays
    b = as_bias(bias)
    check_fit(image, "x", weight=w, bias=b)

    def describe() -> ConvProblem:
        stride, padding, dilation, groups, activation, pool = options
        problem = ConvProblem.create(
            image.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=image.dtype,
            memory_format=format_of(image), bias=b is not None, activation=activation, pool=pool, raw=True,
            device="cuda", precision=precision_of(image.dtype),
        )  # fmt: skip
        check_bias(b, problem.out_channels)
        return problem

    key = ("forward", image.shape, image.strides, image.dtype, w.shape, b and b.shape, *options)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    strides = dense_strides(problem.out_shape, problem.memory_format)
    recording = Recording(x, image, w, b)
    result = target(out, problem.out_shape, strides, missing, recording, (image, w, b))
    kernel.convolve(*recording.inputs(), result.array)
    _replays.remember(arrays, (options, algorithm), recording.replay(result.answer, result.array))
    return result.finished()


def conv2d_input(
    in_shape: tuple[int, ...], weight: Any, grad_output: Any, options: tuple, bias: Any, algorithm: str | None,
    out: Any, named: tuple[str, str],
) -> Any:  # fmt: skip
    """`fastconv.functional.transposed.input_gradient`."""
    grad, missing = as_image(grad_output, named[0])
    w, b = as_device_array(weight, "weight", (4,)), as_bias(bias)
    check_fit(grad, named[0], weight=w, bias=b)
    if len(in_shape) + len(missing) != 4:
        raise ValueError(f"{named[1]} must have as many axes as {named[0]}, got {in_shape}")
    shape = (1, *in_shape) if missing else tuple(in_shape)

    def describe() -> ConvProblem:
        problem = gradient_problem(
            "backward_input", shape, w.shape, grad, options, named, b is not None, format_of(grad), "cuda"
        )
        check_bias(b, problem.in_channels)
        return problem

    key = ("input", shape, w.shape, grad.shape, grad.strides, grad.dtype, b and b.shape, *options)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    strides = dense_strides(problem.in_shape, problem.memory_format)
    result = target(out, problem.in_shape, strides, missing, grad_output, (grad, w, b))
    kernel.convolve(grad, w, b, result.array)
    return result.finished()


def conv_transpose2d(
    x: Any, weight: Any, bias: Any, options: tuple, output_padding: Any, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.conv_transpose2d`; `options` are (stride, padding, dilation, groups)."""
    image, missing = as_image(x, "x")
    w, groups = as_device_array(weight, "weight", (4,)), positive(options[3], "groups")
    strides, dilations = pair(options[0], "stride", least=1), pair(options[2], "dilation", least=1)
    size = transposed_size(image.shape, w.shape, strides, options[1], output_padding, dilations)
    extra = pair(output_padding, "output_padding", least=0)
    if extra[0] >= strides[0] or extra[1] >= strides[1]:
        raise ValueError(f"output_padding must be less than the stride on a GPU, got {output_padding!r}")
    result = (w.shape[1] * groups, *size)
    in_shape = result if missing else (image.shape[0], *result)
    return conv2d_input(in_shape, weight, x, options, bias, algorithm, out, ("x", "the result"))


def conv2d_weight(
    input: Any, weight_shape: tuple[int, ...], grad_output: Any, options: tuple, algorithm: str | None, out: Any
) -> Any:
    """`fastconv.grad.conv2d_weight`."""
    (image, missing), (grad, grad_missing) = as_image(input, "input"), as_image(grad_output, "grad_output")
    if missing != grad_missing:
        raise ValueError(f"grad_output must have as many axes as input, got {grad.shape} for {image.shape}")
    check_fit(image, "input", grad_output=grad)

    def describe() -> ConvProblem:
        named = ("grad_output", "input of shape")
        return gradient_problem(
            "backward_weight", image.shape, weight_shape, grad, options, named, format=format_of(image), device="cuda"
        )

    key = ("weight", image.shape, image.strides, image.dtype, weight_shape, grad.shape, grad.strides, *options)
    kernel, problem = prepared(_calls, key, describe, algorithm)
    shape = problem.weight_shape
    result = target(out, shape, dense_strides(shape, "contiguous"), (), input, (image, grad))
    kernel.run(image, grad, result.array)
    return result.finished()


def conv2d_bias(grad_output: Any) -> Any:
    """`fastconv.grad.conv2d_bias`."""
    grad, _ = as_image(grad_output, "grad_output", FLOATS)
    result = new((grad.shape[1],), (1,), (), grad.dtype, grad_output)
    channel_sums(grad, result.array)
    return result.finished()


def as_bias(bias: Any) -> DeviceArray | None:
    """A bias, which kernels read without strides, or None."""
    if bias is None:
        return None
    found = as_device_array(bias, "bias", (1,))
    if found.strides != (1,) and found.size > 1:
        raise ValueError("bias must be contiguous on a GPU")
    return found


def check_bias(bias: DeviceArray | None, channels: int) -> None:
    """Raise ValueError unless a bias has an element for each channel of the result."""
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {bias.shape}")

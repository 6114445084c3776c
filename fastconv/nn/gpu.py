"""What layers, losses and optimizers compute with arrays on a GPU; the functions of `fastconv.nn.host`.

Results are made by the library of the first array, and come from its stream. Nothing waits for the GPU but `from_host`,
`to_host` and `total`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.arrays import dense_strides
from fastconv.cuda import adaptive, norm, updates
from fastconv.cuda import elementwise as kernels
from fastconv.cuda import softmax as softmaxes
from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of, row_major
from fastconv.cuda.arrays import memory_format as format_of
from fastconv.cuda.toolkit import cuda, require
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.problem import ConvProblem, MemoryFormat

_FLOATS, _INTEGERS = ("float32", "float64"), ("int64", "int32")
_RANDOM_BITS = 53

_calls = CallCache()


def as_floats(x: Any, name: str, ndim: tuple[int, ...] | None = None) -> Any:
    """`x`, if it has float32 or float64 elements and one of the given ranks (any if None); errors as on the CPU."""
    _described(x, name, ndim)
    return x


def check_alike(first: Any, second: Any, name: str) -> None:
    """Raise TypeError or ValueError unless `second`, called `name`, has the first's dtype and shape."""
    wanted, got = _described(first), _described(second, name)
    if got.dtype != wanted.dtype:
        raise TypeError(f"{name} must have dtype {wanted.dtype}, got {got.dtype}")
    if got.shape != wanted.shape:
        raise ValueError(f"{name} must have shape {wanted.shape}, got {got.shape}")


def _described(x: Any, name: str = "x", ndim: tuple[int, ...] | None = None) -> DeviceArray:
    return as_device_array(x, name, ndim, _FLOATS)


def from_host(x: np.ndarray) -> Any:
    """A contiguous copy of an array of NumPy's, as one of Numba's."""
    require()
    return cuda.to_device(np.array(x, order="C"))


def to_host(x: Any) -> np.ndarray:
    """A copy on the CPU, when the GPU is done with what it was told before."""
    if hasattr(x, "copy_to_host"):
        return x.copy_to_host()
    return cuda.as_cuda_array(x).copy_to_host() if hasattr(x, "__cuda_array_interface__") else np.array(x)


def _empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> tuple[Any, DeviceArray]:
    """A new array of the library of `like`, and where it lies."""
    library = library_of(like)
    assert library is not None
    array = library.new(shape, strides, dtype, like)
    return array, library.describe(array)


def _written(array: Any) -> Any:
    """What the caller gets of a new array, after the kernel that writes it was started."""
    library = library_of(array)
    assert library is not None
    return library.written(array)


def _strides(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Those of an array that fills its memory, an image with neighbouring channels if `last`."""
    return dense_strides(shape, "channels_last") if last else row_major(shape)


def _dense(x: DeviceArray, last: bool) -> DeviceArray:
    """`x` as an array that fills its memory in this order; copied only if it lies otherwise."""
    strides = _strides(x.shape, last)
    if all(size == 1 or step == wanted for size, step, wanted in zip(x.shape, x.strides, strides, strict=True)):
        return x
    _, result = _empty(x.shape, strides, x.dtype, x.owner)
    kernels.copy(x, result)
    return result


def new(shape: tuple[int, ...], like: Any, format: MemoryFormat | None = None) -> Any:
    """An uninitialised array of the dtype and the library of `like`; images may have a memory format."""
    return _empty(shape, _strides(shape, format == "channels_last"), _described(like).dtype, like)[0]


def full_like(x: Any, value: float) -> Any:
    """A contiguous array filled with a number."""
    array = _described(x)
    result, out = _empty(array.shape, row_major(array.shape), array.dtype, x)
    kernels.apply(kernels.FILL, None, None, out, constant=value)
    return _written(result)


def memory_format(x: Any) -> MemoryFormat:
    """The format of an image."""
    array = _described(x)
    return format_of(array.shape, array.strides)


def channels_last(x: Any) -> bool:
    """Whether `x` is an image with the channels as nearest neighbours."""
    return len(x.shape) == 4 and memory_format(x) == "channels_last"


def reshape(x: Any, shape: tuple[int, ...]) -> Any:
    """Another shape, in the order of the axes; a view of a contiguous array."""
    array = _described(x)
    if array.strides == row_major(array.shape):
        return x.reshape(shape)
    result, out = _empty(shape, row_major(shape), array.dtype, x)
    kernels.copy(array, replace(out, shape=array.shape, strides=row_major(array.shape)))
    return _written(result)


def in_format(x: Any, format: MemoryFormat) -> Any:
    """A copy of an image in a memory format."""
    array = _described(x)
    result, out = _empty(array.shape, dense_strides(array.shape, format), array.dtype, x)
    kernels.copy(array, out)
    return _written(result)


def _apply(
    op: int, first: Any, second: Any = None, name: str = "grad_output", last: Any = None, **constants: Any
) -> Any:
    """Run an elementwise operation; the result has the memory format of the first array."""
    if second is not None:
        check_alike(first, second, name)
    a, last = _described(first), channels_last(first) if last is None else last
    b = None if second is None else _dense(_described(second, name), last)
    result, out = _empty(a.shape, _strides(a.shape, last), a.dtype, first)
    kernels.apply(op, _dense(a, last), b, out, **constants)
    return _written(result)


def relu(x: Any) -> Any:
    """max(x, 0); NaN stays NaN."""
    return _apply(kernels.RELU, x)


def relu_backward(output: Any, grad_output: Any) -> Any:
    """Gradient of `relu`'s input from its output."""
    return _apply(kernels.RELU_BACKWARD, output, grad_output)


def relu6(x: Any) -> Any:
    """min(max(x, 0), 6); NaN stays NaN."""
    return _apply(kernels.RELU6, x, constant=6.0)


def relu6_backward(output: Any, grad_output: Any) -> Any:
    """Gradient of `relu6`'s input from its output."""
    return _apply(kernels.RELU6_BACKWARD, output, grad_output, constant=6.0)


def leaky_relu(x: Any, slope: float) -> Any:
    """x where it is positive, else slope * x."""
    return _apply(kernels.LEAKY_RELU, x, constant=slope)


def leaky_relu_backward(x: Any, grad_output: Any, slope: float) -> Any:
    """Gradient of `leaky_relu`'s input."""
    return _apply(kernels.LEAKY_RELU_BACKWARD, x, grad_output, constant=slope)


def adaptive_average(x: Any, size: tuple[int, int]) -> Any:
    """Averages (N, C, *size) of the windows of `fastconv.cpu.adaptive`, in the memory format of the image."""
    return _adaptive(x, size, memory_format(x), backward=False)


def adaptive_average_backward(grad_output: Any, size: tuple[int, int], format: MemoryFormat) -> Any:
    """Gradient (N, C, *size) of the input of `adaptive_average`, in a memory format."""
    return _adaptive(grad_output, size, format, backward=True)


def _adaptive(x: Any, size: tuple[int, int], format: MemoryFormat, backward: bool) -> Any:
    image = _described(x)
    shape = (*image.shape[:2], *size)
    result, out = _empty(shape, dense_strides(shape, format), image.dtype, x)
    adaptive.sums(image, out, backward)
    return _written(result)


def dropout(x: Any, p: float, seed: int, last: bool) -> Any:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p); the same elements as on the CPU."""
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return _apply(kernels.DROPOUT, x, last=last, constant=scale, seed=seed, threshold=round(p * 2**_RANDOM_BITS))


def add(a: Any, b: Any) -> Any:
    """a + b."""
    return _apply(kernels.ADD, a, b, "b")


def divided(x: Any, divisor: float) -> Any:
    """x / divisor."""
    return _apply(kernels.DIVIDE, x, constant=divisor)


def softmax(x: Any, dim: int) -> Any:
    """exp(x) / sum of exp(x) along an axis; contiguous."""
    array = _described(x)
    result, out = _empty(array.shape, row_major(array.shape), array.dtype, x)
    softmaxes.softmax(_dense(array, last=False), out, dim % len(array.shape))
    return _written(result)


def softmax_backward(output: Any, grad_output: Any, dim: int) -> Any:
    """Gradient of the input of `softmax`."""
    check_alike(output, grad_output, "grad_output")
    array, grad = _described(output), _described(grad_output)
    result, out = _empty(array.shape, row_major(array.shape), array.dtype, output)
    softmaxes.softmax_backward(_dense(array, last=False), _dense(grad, last=False), out, dim % len(array.shape))
    return _written(result)


def squared_error(output: Any, target: Any) -> tuple[Any, Any]:
    """(output - target)**2 of each element, and its gradient with respect to `output`; contiguous."""
    a, b = (_dense(_described(x), last=False) for x in (output, target))
    (losses, out), (gradient, grad) = (_empty(a.shape, row_major(a.shape), a.dtype, output) for _ in range(2))
    kernels.squared_error(a, b, out, grad)
    return _written(losses), _written(gradient)


def as_classes(target: Any) -> Any:
    """`target`, if it holds int64 or int32 numbers."""
    as_device_array(target, "target", (1,), _INTEGERS)
    return target


def cross_entropy(output: Any, classes: Any, smoothing: float) -> tuple[Any, Any]:
    """-log softmax(output)[class] of each row, and its gradient; NaN for a class that there is not."""
    scores = _dense(_described(output), last=False)
    losses, out = _empty(scores.shape[:1], (1,), scores.dtype, output)
    gradient, grad = _empty(scores.shape, row_major(scores.shape), scores.dtype, output)
    softmaxes.cross_entropy(scores, as_device_array(classes, "target", (1,), _INTEGERS), out, grad, smoothing)
    return _written(losses), _written(gradient)


def total(x: Any) -> float:
    """Sum of all elements, in float64; waits for it."""
    array = _described(x)
    flat = replace(_dense(array, last=False), shape=(1, 1, 1, array.size), strides=(array.size, array.size, 1, 1))
    result, out = _empty((1,), (1,), "float64", x)
    norm.channel_sums(flat, out)
    return float(to_host(_written(result))[0])


def batch_sum(x: Any) -> Any:
    """Sum along the first axis, in float64."""
    array = _dense(_described(x), last=False)
    shape, rest = array.shape[1:], math.prod(array.shape[1:])
    result, out = _empty(shape, row_major(shape), array.dtype, x)
    flat = replace(array, shape=(array.shape[0], rest, 1, 1), strides=(rest, 1, 1, 1))
    norm.channel_sums(flat, replace(out, shape=(rest,), strides=(1,)))
    return _written(result)


def _channel_sums(image: DeviceArray, like: Any) -> Any:
    result, out = _empty(image.shape[1:2], (1,), image.dtype, like)
    norm.channel_sums(image, out)
    return _written(result)


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """x @ weight.T + bias for at least one row."""
    rows, filters = _described(x), _described(weight, "weight")
    result, out = _empty((rows.shape[0], filters.shape[0]), (filters.shape[0], 1), rows.dtype, x)
    kernel = _linear_kernel("forward", rows, filters.shape, bias is not None)
    shift = None if bias is None else _described(bias, "bias")
    kernel.convolve(_as_image(rows), _as_filters(filters), shift, _as_image(out))
    return _written(result)


def linear_input(weight: Any, grad_output: Any) -> Any:
    """Gradient of the input of `linear`."""
    grad, filters = _described(grad_output, "grad_output"), _described(weight, "weight")
    result, out = _empty((grad.shape[0], filters.shape[1]), (filters.shape[1], 1), grad.dtype, grad_output)
    kernel = _linear_kernel("backward_input", out, filters.shape, False)
    kernel.convolve(_as_image(grad), _as_filters(filters), None, _as_image(out))
    return _written(result)


def linear_weight(x: Any, grad_output: Any) -> Any:
    """Gradient of the weights of `linear`."""
    rows, grad = _described(x), _described(grad_output, "grad_output")
    shape = (grad.shape[1], rows.shape[1])
    result, out = _empty(shape, row_major(shape), rows.dtype, x)
    _linear_kernel("backward_weight", rows, shape, False).run(_as_image(rows), _as_image(grad), _as_filters(out))
    return _written(result)


def linear_bias(grad_output: Any) -> Any:
    """Gradient of the bias of `linear`."""
    return _channel_sums(_as_image(_described(grad_output, "grad_output")), grad_output)


def _linear_kernel(direction: Any, rows: DeviceArray, weight_shape: tuple[int, ...], bias: bool) -> Any:
    """The kernel of a 1x1 convolution, or a gradient, whose input is `rows` as one image."""
    key = (direction, rows.shape, rows.dtype, weight_shape, bias)
    try:
        return _calls[key]
    except KeyError:
        problem = ConvProblem.create(
            _as_image(rows).shape, (*weight_shape, 1, 1), dtype=rows.dtype, memory_format="channels_last", bias=bias,
            direction=direction, raw=direction == "forward", device="cuda",
        )  # fmt: skip
        kernel = kernel_for(problem, None)[0]
        _calls.remember(key, kernel)
        return kernel


def _as_image(rows: DeviceArray) -> DeviceArray:
    """(N, C) as (1, C, 1, N): the features of a row are the channels of a pixel."""
    (count, features), (step, next_feature) = rows.shape, rows.strides
    reach = max(1, rows.reach)
    return replace(rows, shape=(1, features, 1, count), strides=(reach, next_feature, reach, step))


def _as_filters(weight: DeviceArray) -> DeviceArray:
    """(K, C) as (K, C, 1, 1)."""
    return replace(weight, shape=(*weight.shape, 1, 1), strides=(*weight.strides, 1, 1))


def moments(x: Any) -> tuple[Any, Any]:
    """Mean and (biased) variance of each channel, in float64."""
    image = _described(x)
    (mean, first), (var, second) = (_empty(image.shape[1:2], (1,), "float64", x) for _ in range(2))
    norm.statistics(image, first, second)
    return _written(mean), _written(var)


def constants(mean: Any, var: Any) -> tuple[Any, Any]:
    """Running averages as `normalize` takes them."""
    return mean, var


def move_running(running_mean: Any, running_var: Any, mean: Any, var: Any, share: float, pixels: int) -> None:
    """Move running averages, in place, towards the statistics of a batch of so many pixels."""
    running = _described(running_mean), _described(running_var)
    norm.update_running(*running, _described(mean), _described(var), share, pixels)


def normalize(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` for each channel; a mean or bias of None is 0."""
    image = _described(x)
    result, out = _empty(image.shape, _strides(image.shape, channels_last(x)), image.dtype, x)
    norm.normalize(image, _maybe(mean), _described(var), _maybe(weight), _maybe(bias), out, eps)
    return _written(result)


def norm_sums(x: Any, grad_output: Any, mean: Any, var: Any, eps: float) -> tuple[Any, Any]:
    """Gradients of weight (None without an `x`) and bias of `normalize`, in float64 with an `x`."""
    grad = _described(grad_output)
    if x is None:
        return None, _channel_sums(grad, grad_output)
    (along, first), (total, second) = (_empty(grad.shape[1:2], (1,), "float64", x) for _ in range(2))
    norm.parameter_gradients(_described(x), grad, _described(mean), _described(var), first, second, eps)
    return _written(along), _written(total)


def norm_input(
    x: Any, grad_output: Any, mean: Any, var: Any, weight: Any, grad_weight: Any, grad_bias: Any, eps: float
) -> Any:
    """Gradient of the input of `normalize`, mean and variance being those of the batch, from `norm_sums`."""
    image = _described(x)
    result, out = _empty(image.shape, _strides(image.shape, channels_last(x)), image.dtype, x)
    vectors = _described(mean), _described(var), _maybe(weight), _described(grad_weight), _described(grad_bias)
    norm.input_gradient(image, _described(grad_output), *vectors, out, eps)
    return _written(result)


def cast(x: Any, like: Any) -> Any:
    """`x` in the dtype of `like`."""
    array, dtype = _described(x), _described(like).dtype
    if array.dtype == dtype:
        return x
    result, out = _empty(array.shape, row_major(array.shape), dtype, x)
    kernels.copy(array, out)
    return _written(result)


def fold(weight: Any, bias: Any, mean: Any, var: Any, scale: Any, shift: Any, eps: float) -> tuple[Any, Any]:
    """Weights and bias of a convolution that does a normalisation with constant statistics too."""
    filters = _described(weight)
    folded, out = _empty(filters.shape, row_major(filters.shape), filters.dtype, weight)
    offset, out_bias = _empty(filters.shape[:1], (1,), filters.dtype, weight)
    vectors = (_maybe(bias), _described(mean), _described(var), _maybe(scale), _maybe(shift))
    norm.fold(filters, *vectors, out, out_bias, eps)
    return _written(folded), _written(offset)


def _maybe(x: Any) -> DeviceArray | None:
    return None if x is None else _described(x)


def update(rule: int, value: Any, grad: Any, *state: Any, **constants: float) -> None:
    """`fastconv.cpu.updates.update`."""
    gradient = _dense(_described(grad, "grad"), last=False)
    updates.update(rule, _described(value), gradient, *map(_maybe, state), **constants)


def assign(target: Any, source: Any) -> None:
    """Copy into an array of the same shape."""
    kernels.copy(_described(source), _described(target))

"""Gradients of pooling with respect to its input.

Those of global pooling are these with the whole plane as the window: `avg_pool2d` with
``kernel_size=input_size[-2:]``, and `max_pool2d` with the indices of
``fastconv.max_pool2d(x, x.shape[-2:], return_indices=True)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import allocator, as_floats, as_image, memory_format, on_gpu, plain, target
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.pooling import Pool
from fastconv.problem import MemoryFormat, PoolProblem
from fastconv.sizes import as_size

_calls = CallCache()


def max_pool2d(
    grad_output: np.ndarray, indices: np.ndarray, input_size: tuple[int, ...], kernel_size: Any = None,
    stride: Any = None, padding: Any = 0, dilation: Any = 1, *, ceil_mode: bool = False, algorithm: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.max_pool2d`: each element of `grad_output` added to the pixel that was the maximum.

    Parameters
    ----------
    grad_output : array (N, C, Ho, Wo) or (C, Ho, Wo)
        float32 or float64, any strides.
    indices : int64 array of the shape of `grad_output`
        From ``fastconv.max_pool2d(..., return_indices=True)``: ``h*W + w`` of each maximum. What is outside of the
        plane, as the -1 of a window without a pixel, gets no gradient.
    input_size : (N, C, H, W) or (C, H, W)
        Shape of the input, and of the result.
    kernel_size, stride, padding, dilation, ceil_mode : optional
        As the pooling had them. The indices say it all, but with them the gradient of channels-last arrays is
        faster, and that of arrays on a GPU much faster: without, every pixel looks at all indices of its plane.
    algorithm : str, optional
        A registered algorithm; the best if not given.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array of shape `input_size`
        `out`, or a new array in the memory format of `grad_output`.

    Raises
    ------
    TypeError
        If `grad_output`, `indices` or `out` has another dtype.
    ValueError
        Names the argument that does not fit, its value and what would do.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]]])
    >>> values, indices = fastconv.max_pool2d(x, 2, 1, return_indices=True)
    >>> fastconv.grad.max_pool2d(np.ones_like(values), indices, x.shape)
    array([[[0., 1., 0.],
            [0., 0., 1.]]])
    """
    if kernel_size is None and (stride, padding, dilation, ceil_mode) != (None, 0, 1, False):
        raise ValueError("kernel_size must be given with stride, padding, dilation or ceil_mode")
    window = None if kernel_size is None else ("max", kernel_size, stride, padding, dilation, ceil_mode)
    if on_gpu(grad_output):
        from fastconv.functional.gpu.pool import max_pool2d_input

        return max_pool2d_input(grad_output, indices, _size(input_size), window, algorithm, out)
    grad_output = as_floats(grad_output, "grad_output", (3, 4))
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64:
        raise TypeError(f"indices must be an int64 array, got {getattr(indices, 'dtype', type(indices))}")
    _check_shape(indices, "indices", grad_output.shape, "grad_output")
    return _gradient(grad_output, input_size, window, (plain(indices, "indices"),), algorithm, out)


def avg_pool2d(
    grad_output: np.ndarray, input_size: tuple[int, ...], kernel_size: Any, stride: Any = None, padding: Any = 0, *,
    ceil_mode: bool = False, count_include_pad: bool = True, algorithm: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.avg_pool2d`: each element of `grad_output` shared out over its window.

    Parameters
    ----------
    grad_output, input_size, algorithm, out
        As in `max_pool2d`.
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As the pooling had them.

    Returns
    -------
    array of shape `input_size`
        `out`, or a new array in the memory format of `grad_output`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.grad.avg_pool2d(np.array([[[4.0, 8.0]]]), (1, 2, 4), 2)
    array([[[1., 1., 2., 2.],
            [1., 1., 2., 2.]]])
    """
    window = ("avg", kernel_size, stride, padding, 1, ceil_mode, count_include_pad)
    if on_gpu(grad_output):
        from fastconv.functional.gpu.pool import avg_pool2d_input

        return avg_pool2d_input(grad_output, _size(input_size), window, algorithm, out)
    return _gradient(grad_output, input_size, window, (), algorithm, out)


def lp_pool2d(
    grad_output: np.ndarray, input: np.ndarray, output: np.ndarray, norm_type: float, kernel_size: Any,
    stride: Any = None, *, ceil_mode: bool = False, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `fastconv.lp_pool2d`: ``x**(p-1)`` times the sum of ``grad * y**(1-p)`` over the windows.

    As in torch, a window whose norm is 0 passes nothing on, and one that `ceil_mode` lets reach over the edge is
    scaled up.

    Parameters
    ----------
    grad_output : array (N, C, Ho, Wo) or (C, Ho, Wo)
        float32 or float64, any strides.
    input : array (N, C, H, W) or (C, H, W)
        The x of the pooling, of the same dtype.
    output : array of the shape of `grad_output`
        Its y, of the same dtype.
    norm_type, kernel_size, stride, ceil_mode
        As the pooling had them.
    algorithm, out
        As in `max_pool2d`.

    Returns
    -------
    array of the shape of `input`
        `out`, or a new array in the memory format of `grad_output`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.
    """
    window = ("lp", kernel_size, stride, 0, 1, ceil_mode, True, norm_type)
    if on_gpu(grad_output):
        from fastconv.functional.gpu.pool import lp_pool2d_input

        return lp_pool2d_input(grad_output, input, output, window, algorithm, out)
    as_image(input, "input")
    y, x = as_floats(output, "output", (3, 4)), as_floats(input, "input", (3, 4))
    grad_output = as_floats(grad_output, "grad_output", (3, 4))
    dtype = grad_output.dtype
    for array, name in ((y, "output"), (x, "input")):
        if array.dtype != dtype:
            raise TypeError(f"{name} must have the dtype of grad_output, {dtype}, got {array.dtype}")
    _check_shape(y, "output", grad_output.shape, "grad_output")
    if x.ndim != y.ndim:
        raise ValueError(f"input must have as many axes as grad_output, got {x.shape}")
    return _gradient(grad_output, x.shape, window, (y, x), algorithm, out)


def _check_shape(array: np.ndarray, name: str, shape: tuple[int, ...], other: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape of {other}, {shape}, got {array.shape}")


def _gradient(
    grad_output: Any, input_size: Any, window: tuple | None, saved: tuple[np.ndarray, ...], algorithm: str | None,
    out: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    grad, batched = as_image(grad_output, "grad_output")
    format = None
    if out is not None:
        shape = _image_shape(input_size, batched)
        result, answer = target(out, shape, batched, grad.dtype, memory_format(grad), grad, *saved)
        format = memory_format(result)
    key = (grad.shape, grad.strides, grad.dtype.char, batched, input_size, format, window, algorithm)
    try:
        kernel, new = _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        kernel, new = _prepare(
            grad, _image_shape(input_size, batched), format or memory_format(grad), window, algorithm
        )
        _calls.remember(key, (kernel, new))
    if out is None:
        result = new()
        answer = result if batched else result[0]
    kernel.run(grad, result, *(saved if batched else [array[None] for array in saved]))
    return answer


def _size(input_size: Any) -> tuple[int, ...]:
    return as_size(input_size, "input_size", (3, 4))


def _image_shape(input_size: Any, batched: bool) -> tuple[int, ...]:
    size = as_size(input_size, "input_size", (3 + batched,))
    return size if batched else (1, *size)


def _prepare(
    grad: np.ndarray, shape: tuple[int, ...], format: MemoryFormat, window: tuple | None, algorithm: str | None
) -> tuple:
    if 0 in shape[1:]:
        raise ValueError(f"input_size must not have an empty axis other than N, got {shape}")
    batch, channels, height, width = shape
    pool = _some_window(shape, grad.shape) if window is None else Pool(*window)
    dtype = str(grad.dtype)
    problem = PoolProblem(batch, channels, (height, width), pool, dtype, format, direction="backward_input")
    if grad.shape != problem.out_shape:
        raise ValueError(f"grad_output must have shape {problem.out_shape} for input_size {shape}, got {grad.shape}")
    return kernel_for(problem, algorithm)[0], allocator(problem.in_shape, grad.dtype, format)


def _some_window(shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Pool:
    """A maximum with such an output size: where its windows lie, the indices say.

    The stride is 1, so that the windows are wide where there are fewer of them than pixels: nobody looks for an
    index in all of such a window.
    """
    sizes = list(zip(shape[2:], out_shape[2:], strict=True))
    if any(windows > pixels + 1 for pixels, windows in sizes):
        raise ValueError(f"grad_output has more windows than input_size {shape} can have: {out_shape}")
    padding = [int(windows >= pixels) for pixels, windows in sizes]
    kernel = [n + 2 * p - windows + 1 for (n, windows), p in zip(sizes, padding, strict=True)]
    return Pool("max", kernel, 1, padding)

"""Locally-connected convolution as a function call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats, as_image, memory_format, on_gpu, target
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.local_problem import LocalProblem

_calls = CallCache()


def locally_connected2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, *, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """2-D convolution whose weights are not shared: every pixel of the result has its own.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides. The memory format is read from the strides.
    weight : array (K, C, R, S, Ho, Wo)
        Same dtype as `x`. Contiguous ones are read where they lie, others are copied.
    bias : array (K, Ho, Wo), optional
    stride, padding, dilation
        As in `fastconv.conv2d`.
    algorithm : str, optional
        A registered algorithm; the best if not given.
    out : array, optional
        Where to write the result.

    Returns
    -------
    array (N, K, Ho, Wo) or (K, Ho, Wo)
        In the memory format of `x`: ``bias[k, i, j]`` plus the sum over c, r, s of ``weight[k, c, r, s, i, j]`` times
        the pixel that `fastconv.conv2d` would multiply by ``weight[k, c, r, s]``.

    Notes
    -----
    Where a weight is not finite, it depends on the algorithm whether its product with the padding is NaN or
    left out.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or dtypes differ.
    ValueError
        Names the argument that does not fit, its value and what would do.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, weight = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 5, 5, 8, 8), np.float32)
    >>> fastconv.locally_connected2d(x, weight, padding=2).shape
    (1, 4, 8, 8)
    """
    if on_gpu(x):
        from fastconv.functional.gpu import local as gpu

        return gpu.locally_connected2d(x, weight, bias, (stride, padding, dilation), algorithm, out)
    image, batched = as_image(x, "x")
    weight = as_floats(weight, "weight", (6,))
    arrays = [image, weight]
    if bias is not None:
        bias = as_floats(bias, "bias", (3,))
        arrays.append(bias)
    for array, name in zip(arrays[1:], ("weight", "bias"), strict=False):
        if array.dtype != image.dtype:
            raise TypeError(f"{name} must have the dtype of x, {image.dtype}, got {array.dtype}")
    options = (stride, padding, dilation)
    key = (image.shape, image.strides, image.dtype.char, weight.shape, *options, bias is None, algorithm)
    try:
        kernel, shape, format = _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        format = memory_format(image)
        problem: Any = LocalProblem.create(
            image.shape, weight.shape, stride=stride, padding=padding, dilation=dilation, dtype=str(image.dtype),
            memory_format=format, bias=bias is not None,
        )  # fmt: skip
        kernel, shape = kernel_for(problem, algorithm)[0], problem.out_shape
        _calls.remember(key, (kernel, shape, format))
    if bias is not None and bias.shape != shape[1:]:
        raise ValueError(f"bias must have shape {shape[1:]}, one for each element of a result, got {bias.shape}")
    result, answer = target(out, shape, batched, image.dtype, format, *arrays)
    kernel.run(image, weight, bias, result)
    return answer

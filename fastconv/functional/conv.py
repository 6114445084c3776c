"""Convolution as a function call."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.arrays import allocator, as_floats, as_image, check_out, memory_format, on_gpu, plain
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.plan import check_bias
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem

_calls = CallCache()


def conv2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, activation: str | None = None, pool: Pool | None = None,
    algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """2-D convolution (cross-correlation) with optional bias, activation and pooling in one pass.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides. The memory format is read from the strides.
    weight : array (K, C/groups, R, S)
        Same dtype as `x`.
    bias : array (K,), optional
    stride : int or (int, int), default 1
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid", default 0
        Zeros around the image. "same" keeps the size, needs stride 1, and puts the odd pixel at the end.
    dilation : int or (int, int), default 1
    groups : int, default 1
        Must divide C and K.
    activation : {None, "relu", "relu6", "leaky_relu"}
        Applied after the bias; the leaky slope is 0.01.
    pool : Pool, optional
        Applied after the activation, such as ``fastconv.Pool("max", 2)``. The unpooled map is never written by the
        algorithm "tiled", or on a GPU by those whose names end in "_pool"; "two_pass" keeps it in the CPU's cache.
    algorithm : str, optional
        A registered algorithm; the tuned or predicted best if not given.
    out : array, optional
        Where to write the result.

    Notes
    -----
    NaN and infinities in `x` spread as in torch. Where a *weight* is not finite, it depends on the
    algorithm whether its products with the padding are NaN or left out.

    Returns
    -------
    array (N, K, Ho, Wo) or (K, Ho, Wo)
        In the memory format of `x`; Ho = floor((H + 2P - D(R-1) - 1)/S + 1).

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or dtypes differ.
    ValueError
        Names the argument that does not fit, its value and what would do.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 3, 32, 32), np.float32), np.ones((8, 3, 5, 5), np.float32)
    >>> fastconv.conv2d(x, w, padding=2).shape
    (1, 8, 32, 32)
    """
    if type(x) is not np.ndarray and on_gpu(x):
        return _gpu().conv2d(x, weight, bias, (stride, padding, dilation, groups, activation, pool), algorithm, out)
    try:
        call = _calls[
            type(x), x.shape, x.strides, x.dtype, weight.shape, weight.dtype, None if bias is None else bias.shape,
            stride, padding, dilation, groups, activation, pool, algorithm,
        ]  # fmt: skip
        # Arrays like these passed every check before; alignment, other types and the bias's dtype are not in the key.
        known = x.flags.aligned and weight.flags.aligned and type(weight) is np.ndarray
        known = known and (
            bias is None or (bias.dtype is weight.dtype and bias.flags.aligned and type(bias) is np.ndarray)
        )
    except (KeyError, TypeError, AttributeError):  # a first call, a list among the arguments, not an array
        known = False
    if not known:
        options = (stride, padding, dilation, groups, activation, pool)
        call, x, weight, bias = _first_call(x, weight, bias, options, algorithm)
    if out is None and call.batched:  # no call of a function more than needed: tiny problems feel it
        result = call.new()
        call.run(x, call.pack(weight, bias), result)
        return result
    return call(x, weight, bias, out)


def conv1d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, padding: Any = 0,
    dilation: int = 1, groups: int = 1, *, activation: str | None = None, algorithm: str | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """1-D convolution: `conv2d` of images one pixel high, nothing copied.

    Parameters
    ----------
    x : array (N, C, W) or (C, W)
    weight : array (K, C/groups, S)
    bias : array (K,), optional
    stride, dilation : int or (int,), default 1
    padding : int, (int,), (left, right), "same" or "valid", default 0
    groups, activation, algorithm, out
        As in `conv2d`.

    Returns
    -------
    array (N, K, Wo) or (K, Wo)

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.
    """
    stride, dilation = _one(stride), _one(dilation)
    if not isinstance(padding, str):
        padding = _one(padding)
        padding = ((0, 0), tuple(padding) if isinstance(padding, (tuple, list)) else (padding, padding))
    if on_gpu(x):
        options = ((1, stride), padding, (1, dilation), groups, activation, None)
        return _gpu().conv1d(x, weight, bias, options, algorithm, out)
    signal = as_floats(x, "x", (2, 3))
    weight = as_floats(weight, "weight", (3,))
    if out is not None:
        check_rank(out, signal.ndim)
    result = conv2d(
        signal[..., None, :], weight[:, :, None, :], bias, (1, stride), padding, (1, dilation), groups,
        activation=activation, algorithm=algorithm, out=None if out is None else plain(out, "out")[..., None, :],
    )  # fmt: skip
    return result[..., 0, :] if out is None else out


@cache
def _gpu() -> Any:
    """The same functions for arrays on a GPU, imported with Numba's CUDA target when they are first needed."""
    from fastconv.functional.gpu import conv

    return conv


def _one(value: Any) -> Any:
    """The element of a tuple of one, as torch takes them; anything else as it is."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


def check_rank(out: Any, ndim: int) -> None:
    """Raise ValueError unless `out` is an array with `ndim` axes."""
    if getattr(out, "ndim", None) != ndim:
        raise ValueError(f"out must be an array with {ndim} axes, got {getattr(out, 'shape', type(out))}")


class _Call:
    """A call with everything decided but the numbers: arrays that it gets are known to fit."""

    __slots__ = ("batched", "dtype", "kernel", "new", "pack", "run", "shape")

    def __init__(self, kernel: Any, problem: ConvProblem, image: np.ndarray, batched: bool) -> None:
        self.kernel, self.batched = kernel, batched
        self.shape, self.dtype = problem.out_shape, np.dtype(problem.dtype)
        self.new = allocator(self.shape, self.dtype, problem.memory_format)
        self.pack, self.run = kernel.pack, kernel.bound(image, self.new())

    def __call__(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: Any) -> np.ndarray:
        image = x if self.batched else x[None]
        if out is None:
            result = self.new()
            self.run(image, self.pack(weight, bias), result)
            return result if self.batched else result[0]
        inputs = (x, weight) if bias is None else (x, weight, bias)
        result = check_out(out, self.shape if self.batched else self.shape[1:], self.dtype, *inputs)
        self.kernel.convolve(image, weight, bias, result if self.batched else result[None])
        return out


def _first_call(x: Any, weight: Any, bias: Any, options: tuple, algorithm: Any) -> tuple[_Call, Any, Any, Any]:
    """Check the arguments of `conv2d`, and remember what was decided for others like them; with them as arrays."""
    x, weight = as_floats(x, "x", (3, 4)), as_floats(weight, "weight", (4,))
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}, got {weight.dtype}")
    bias = check_bias(bias, weight)
    weights = (weight.shape, weight.dtype, None if bias is None else bias.shape)
    key = (type(x), x.shape, x.strides, x.dtype, *weights, *options, algorithm)
    try:
        call = _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        call = _prepare(x, weight, bias, options, algorithm)
        _calls.remember(key, call)
    return call, x, weight, bias


def _prepare(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, options: tuple, algorithm: Any) -> _Call:
    image, batched = as_image(x, "x")
    stride, padding, dilation, groups, activation, pool = options
    problem = ConvProblem.create(
        image.shape, weight.shape, stride=stride, padding=padding, dilation=dilation, groups=groups,
        dtype=str(image.dtype), memory_format=memory_format(image), bias=bias is not None, activation=activation,
        pool=pool, raw=True,
    )  # fmt: skip
    return _Call(kernel_for(problem, algorithm)[0], problem, image, batched)

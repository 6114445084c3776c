"""Pooling as function calls, with torch's names, argument order and semantics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import allocator, as_image, empty, memory_format, on_gpu, target
from fastconv.dispatch import kernel_for
from fastconv.functional.calls import CallCache
from fastconv.pooling import Pool
from fastconv.problem import MemoryFormat, PoolProblem
from fastconv.sizes import Pair, flag

_calls = CallCache()


def max_pool2d(
    x: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *,
    ceil_mode: bool = False, return_indices: bool = False, algorithm: str | None = None,
    out: np.ndarray | None = None,
) -> Any:  # fmt: skip
    """Maximum of each window; NaN if the window has one. Padding counts as -inf.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides. The memory format is read from the strides.
    kernel_size : int or (int, int)
        Window height and width, in pixels.
    stride : int or (int, int), optional
        Step of the window; the kernel size if not given.
    padding : int or (int, int), default 0
        On both sides, at most half the (dilated) kernel.
    dilation : int or (int, int), default 1
        Distance of neighbouring taps.
    ceil_mode : bool, default False
        Round the output size up; a last window that would start in the trailing padding is dropped.
    return_indices : bool, default False
        Also return where each maximum was found.
    algorithm : str, optional
        A registered algorithm; the tuned or predicted best if not given.
    out : array, optional
        Where to write the maxima.

    Returns
    -------
    values : array (N, C, Ho, Wo) or (C, Ho, Wo)
        In the memory format of `x`; Ho = floor((H + 2P - D(F-1) - 1)/S + 1).
    indices : int64 array of the same shape, if asked for
        ``h*W + w`` in the plane of `x`: the first of equal maxima, the last NaN; -1 for a window
        (possible with dilation) that has no pixel.

    Raises
    ------
    TypeError
        If `x` or `out` has another dtype.
    ValueError
        Names the argument that does not fit, its value and what would do.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool2d(np.arange(16.0).reshape(1, 4, 4), 2)
    array([[[ 5.,  7.],
            [13., 15.]]])
    """
    window = ("max", kernel_size, stride, padding, dilation, ceil_mode)
    return _pool(x, window, flag(return_indices, "return_indices"), algorithm, out)


def avg_pool2d(
    x: np.ndarray, kernel_size: Any, stride: Any = None, padding: Any = 0, *, ceil_mode: bool = False,
    count_include_pad: bool = True, algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Average of each window.

    Parameters
    ----------
    x, kernel_size, stride, padding, ceil_mode, algorithm, out
        As in `max_pool2d`; padding counts as 0.
    count_include_pad : bool, default True
        Whether padded elements count in the divisor. What a window of `ceil_mode` has beyond the
        padding never counts.

    Returns
    -------
    array (N, C, Ho, Wo) or (C, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.
    """
    window = ("avg", kernel_size, stride, padding, 1, ceil_mode, count_include_pad)
    return _pool(x, window, False, algorithm, out)


def lp_pool2d(
    x: np.ndarray, norm_type: float, kernel_size: Any, stride: Any = None, *, ceil_mode: bool = False,
    algorithm: str | None = None, out: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Lp norm of each window: ``(sum of x**p) ** (1/p)``.

    As in torch, powers are of `x` and not of its magnitude, so that an odd p can give NaN, and a window
    that `ceil_mode` lets reach over the edge is scaled up to the area of a whole one.

    Parameters
    ----------
    norm_type : float
        The p, positive and finite. Powers that overflow in the dtype are infinite, as in torch.
    x, kernel_size, stride, ceil_mode, algorithm, out
        As in `max_pool2d`.

    Returns
    -------
    array (N, C, Ho, Wo) or (C, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.
    """
    window = ("lp", kernel_size, stride, 0, 1, ceil_mode, True, norm_type)
    return _pool(x, window, False, algorithm, out)


def global_avg_pool2d(x: np.ndarray, *, algorithm: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Average of each map: (N, C, H, W) to (N, C, 1, 1), or (C, H, W) to (C, 1, 1). Errors as `max_pool2d`."""
    return _pool(x, ("avg", _plane(x)), False, algorithm, out)


def global_max_pool2d(x: np.ndarray, *, algorithm: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Maximum of each map: (N, C, H, W) to (N, C, 1, 1), or (C, H, W) to (C, 1, 1). Errors as `max_pool2d`."""
    return _pool(x, ("max", _plane(x)), False, algorithm, out)


def _plane(x: Any) -> Pair:
    """Height and width of the maps."""
    known = on_gpu(x) or (isinstance(x, np.ndarray) and x.ndim > 2)
    height, width = (x if known else as_image(x, "x")[0]).shape[-2:]
    return height, width


def _pool(x: Any, window: tuple, return_indices: bool, algorithm: str | None, out: np.ndarray | None) -> Any:
    try:
        call = _calls[type(x), x.shape, x.strides, x.dtype, window, return_indices, algorithm]
        known = x.flags.aligned and x.ndim == 4
    except (KeyError, TypeError, AttributeError):  # a first call, a list among the arguments, not an array
        known = False
    if known and out is None and not return_indices:  # arrays like this one passed every check before
        result = call.new()
        call.run(x, result)
        return result
    if not known and on_gpu(x):
        from fastconv.functional.gpu.pool import pool

        return pool(x, window, return_indices, algorithm, out)
    image, batched = as_image(x, "x")
    if not known:
        call = _known_or_prepared(image, window, return_indices, algorithm)
    result, values = target(out, call.shape, batched, image.dtype, call.format, image)
    if not return_indices:
        call.kernel.run(image, result)
        return values
    indices = _run_with_indices(call.kernel, image, result, call.format)
    return values, indices if batched else indices[0]


def _known_or_prepared(image: np.ndarray, window: tuple, return_indices: bool, algorithm: str | None) -> _Call:
    """What was prepared for such an image, which may come with its axis N or without."""
    key = (type(image), image.shape, image.strides, image.dtype, window, return_indices, algorithm)
    try:
        return _calls[key]
    except (KeyError, TypeError):  # TypeError: a list among the arguments
        call = _prepare(image, Pool(*window), return_indices, algorithm)
        _calls.remember(key, call)
        return call


def _run_with_indices(kernel: Any, image: np.ndarray, result: np.ndarray, format: MemoryFormat) -> np.ndarray:
    indices = empty(result.shape, np.int64, format)
    values = result
    if [8 * s for s in result.strides] != [result.itemsize * s for s in indices.strides]:
        values = empty(result.shape, result.dtype, format)  # kernels want the same layout for both
    kernel.run(image, values, indices)
    if values is not result:
        np.copyto(result, values)
    return indices


class _Call(NamedTuple):
    """What is known of a call: its kernel, the result's shape and format, what makes one and fills it."""

    kernel: Any
    shape: tuple[int, ...]
    format: MemoryFormat
    new: Callable[[], np.ndarray]
    run: Callable[[np.ndarray, np.ndarray], None]


def _prepare(image: np.ndarray, pool: Pool, return_indices: bool, algorithm: str | None) -> _Call:
    format = memory_format(image)
    batch, channels, *size = image.shape
    problem = PoolProblem(batch, channels, (size[0], size[1]), pool, str(image.dtype), format, return_indices)
    _ = problem.out_size  # raises where the window does not fit
    kernel, _ = kernel_for(problem, algorithm)
    new = allocator(problem.out_shape, image.dtype, format)
    run = kernel.run if return_indices else kernel.bound(image, new())
    return _Call(kernel, problem.out_shape, format, new, run)

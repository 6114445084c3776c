"""im2col and col2im: torch.nn.functional.unfold and fold."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numba
import numpy as np

from fastconv.arrays import as_floats, as_image, check_room
from fastconv.cpu.columns import ColumnsProblem, Fold, Unfold
from fastconv.sizes import Pair, conv_output_size, pair

Window: TypeAlias = tuple[Pair, Pair, Pair, Pair]  # kernel size, stride, padding, dilation


def im2col(x: np.ndarray, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> np.ndarray:
    """The windows of an image as the columns of a matrix; torch.nn.functional.unfold.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
        float32 or float64, any strides.
    kernel_size : int or (int, int)
        Window height R and width S, in pixels.
    dilation, padding, stride : int or (int, int)
        As in a convolution; padding is zeros on both sides.

    Returns
    -------
    array (N, C*R*S, L) or (C*R*S, L)
        A new contiguous array. L = Ho*Wo windows in row-major order; a column is (C, R, S) in row-major order,
        so that ``weight.reshape(K, -1) @ im2col(x, ...)`` is the convolution.

    Raises
    ------
    TypeError
        If `x` is not float32 or float64.
    ValueError
        Names the argument that does not fit, its value and what would do.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.im2col(np.zeros((3, 227, 227), np.float32), 11, stride=4).shape
    (363, 3025)
    """
    image, batched = as_image(x, "x")
    batch, channels, *size = image.shape
    window = _window(kernel_size, dilation, padding, stride)
    kernel = _kernel(
        Unfold, batch, channels, (size[0], size[1]), window, str(image.dtype), numba.config.NUMBA_NUM_THREADS
    )
    _, _, taps, length = kernel.problem.columns_shape
    out = np.empty((batch, channels, taps, length), image.dtype)
    kernel.run(image, out)
    matrix = out.reshape(batch, channels * taps, length)
    return matrix if batched else matrix[0]


def col2im(
    columns: np.ndarray, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> np.ndarray:
    """Add columns up to the image that they are windows of; torch.nn.functional.fold, the adjoint of `im2col`.

    Parameters
    ----------
    columns : array (N, C*R*S, L) or (C*R*S, L)
        float32 or float64, any strides.
    output_size : int or (int, int)
        Height and width of the image.
    kernel_size, dilation, padding, stride
        As in `im2col`.

    Returns
    -------
    array (N, C, H, W) or (C, H, W)
        A new contiguous array. A pixel is the sum of its values in all windows that cover it, 0 if none does.

    Raises
    ------
    TypeError
        If `columns` is not float32 or float64.
    ValueError
        Names the argument that does not fit, its value and what would do.
    """
    matrix = as_floats(columns, "columns", (2, 3))
    batched = matrix.ndim == 3
    matrix = matrix if batched else matrix[None]
    size = pair(output_size, "output_size", least=1)
    window = _window(kernel_size, dilation, padding, stride)
    taps = window[0][0] * window[0][1]
    batch, rows, length = matrix.shape
    if rows == 0 or rows % taps:
        raise ValueError(
            f"columns must have C * {taps} rows for kernel_size {window[0]}, got {rows} in shape {np.shape(columns)}"
        )
    kernel = _kernel(Fold, batch, rows // taps, size, window, str(matrix.dtype), numba.config.NUMBA_NUM_THREADS)
    high, wide = kernel.problem.windows
    if length != high * wide:
        raise ValueError(
            f"columns must have {high} * {wide} = {high * wide} columns for output_size {size}, got {length} "
            f"in shape {np.shape(columns)}; check kernel_size, dilation, padding and stride"
        )
    out = np.empty(kernel.problem.image_shape, matrix.dtype)
    kernel.run(matrix.reshape(kernel.problem.columns_shape), out)
    return out if batched else out[0]


def _window(kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Window:
    return (
        pair(kernel_size, "kernel_size", least=1), pair(stride, "stride", least=1),
        pair(padding, "padding", least=0), pair(dilation, "dilation", least=1),
    )  # fmt: skip


@lru_cache(maxsize=512)
def _kernel(kind: Any, batch: int, channels: int, size: Pair, window: Window, dtype: str, threads: int) -> Any:
    high, wide = (conv_output_size(n, f, p, s, d) for n, f, s, p, d in zip(size, *window, strict=True))
    columns = (batch, channels, math.prod(window[0]), high * wide)
    for shape in (columns, (batch, channels, *size)):
        check_room(math.prod(shape) * np.dtype(dtype).itemsize, shape)
    problem = ColumnsProblem(batch, channels, size, (high, wide), *window, dtype)
    # Below this a parallel region costs more than it saves.
    small = math.prod(problem.columns_shape) < 1 << 14
    return kind(problem, 1 if small else threads)

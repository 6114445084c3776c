"""Adaptive average pooling: windows that cut an axis into so many parts, of about the same size.

Window i of n over H pixels is from floor(i * H / n) to ceil((i + 1) * H / n), so neighbours may share a pixel, and
there may be more windows than pixels. Seen from a pixel it is the same: pixel h is in the windows from
floor(h * n / H) to ceil((h + 1) * n / H). So one kernel adds up for the forward pass and for the gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.arrays import empty, memory_format
from fastconv.cpu.elementwise import in_memory_order
from fastconv.cpu.kernel import fields
from fastconv.cpu.launch import run_jobs
from fastconv.cpu.memory import get, ints, put
from fastconv.jit import record_kernel, source_stamp
from fastconv.problem import MemoryFormat

RECORD = fields(
    "x", "out", "bounds", "scales", "channels", "height", "width", "out_height", "out_width",
    "x_batch", "x_channel", "x_row", "x_column", "out_batch", "out_channel", "out_row", "out_column",
)  # fmt: skip


def adaptive_average(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages (N, C, *size) of the windows of an image (N, C, H, W), in its memory format."""
    out = empty((*x.shape[:2], *size), x.dtype, memory_format(x))  # first, for it may be that there is no room
    shares = [_shares(windows, pixels) for pixels, windows in zip(x.shape[2:], size, strict=True)] if out.size else []
    return _sums(x, out, [np.ones(pixels) for pixels in x.shape[2:]], shares)


def adaptive_average_backward(grad_output: np.ndarray, size: tuple[int, int], format: MemoryFormat) -> np.ndarray:
    """Gradient (N, C, *size) of the input of `adaptive_average`, in a memory format."""
    out = empty((*grad_output.shape[:2], *size), grad_output.dtype, format)
    axes = zip(grad_output.shape[2:], size, strict=True)
    shares = [_shares(windows, pixels) for windows, pixels in axes] if out.size else []
    return _sums(grad_output, out, shares, [np.ones(pixels) for pixels in size])


def _shares(windows: int, pixels: int) -> np.ndarray:
    """What one pixel counts in each window."""
    return 1 / np.diff(_bounds(windows, pixels))[:, 0]


def _bounds(windows: int, pixels: int) -> np.ndarray:
    """First pixel and end of each window along an axis: (windows, 2)."""
    index = np.arange(windows)
    return np.stack([index * pixels // windows, -(-(index + 1) * pixels // windows)], axis=1)


def _sums(x: np.ndarray, out: np.ndarray, before: list[np.ndarray], after: list[np.ndarray]) -> np.ndarray:
    """Sums over windows, of pixels times a factor for their row and one for their column, times those of the window."""
    if not out.size:
        return out
    size = out.shape[2:]
    last = memory_format(x) == "channels_last"
    ordered = in_memory_order(x, last)
    ordered = ordered.transpose(0, 3, 1, 2) if last else ordered
    bounds = np.concatenate([_bounds(windows, pixels) for windows, pixels in zip(size, x.shape[2:], strict=True)])
    scales = np.concatenate([*before, *after])
    addresses = (array.ctypes.data for array in (ordered, out, bounds, scales))
    steps = (stride // x.itemsize for array in (ordered, out) for stride in array.strides)
    record = np.array([(*addresses, *x.shape[1:], *size, *steps)], RECORD)
    run_jobs(_compiled(x.itemsize, source_stamp()), record, len(x) * size[0])
    return out


@cache
def _compiled(ITEM: int, stamp: str) -> Any:
    @record_kernel(RECORD)
    def adaptive(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        n, row = index // g.out_height, index % g.out_height
        bounds = ints(g.bounds, g.out_height + g.out_width, 2)
        of_rows, of_columns = g.scales, g.scales + 8 * g.height
        of_windows = of_columns + 8 * g.width
        for column in range(g.out_width):
            left, right = bounds[g.out_height + column, 0], bounds[g.out_height + column, 1]
            scale = get(of_windows, row, 8) * get(of_windows, g.out_height + column, 8)
            for c in range(g.channels):
                x, total = g.x + ITEM * (n * g.x_batch + c * g.x_channel), 0.0
                for i in range(bounds[row, 0], bounds[row, 1]):
                    part = 0.0
                    for j in range(left, right):
                        part += get(x, i * g.x_row + j * g.x_column, ITEM) * get(of_columns, j, 8)
                    total += part * get(of_rows, i, 8)
                place = n * g.out_batch + c * g.out_channel + row * g.out_row + column * g.out_column
                put(g.out, place, total * scale, ITEM)

    return adaptive

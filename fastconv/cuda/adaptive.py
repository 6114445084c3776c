"""Adaptive average pooling on a GPU, with the windows of `fastconv.cpu.adaptive`: a thread for each element written."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.elements import at, place
from fastconv.cuda.elementwise import THREADS, blocks_for
from fastconv.cuda.geometry import Steps
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, device, float64, int64, numbers, pointer, types


class Sizes(NamedTuple):
    """Channels, heights and widths of what is read and written, and whether neighbours written are channels."""

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    channels_last: int


def sums(x: DeviceArray, out: DeviceArray, backward: bool) -> None:
    """Averages of the windows of `x`, or the gradient of the input of that, where `x` is that of the averages.

    Both arrays are (N, C, H, W) of one dtype, float32 or float64, with the same N and C; sums are in float64.
    """
    _, channels, height, width = x.shape
    sizes = Sizes(channels, height, width, out.shape[2], out.shape[3], int(out.strides[1] == 1))
    values = (out.size, sizes, Steps(*x.strides), Steps(*out.strides))
    Launch(adaptive_kernel(x.dtype, backward), blocks_for(out.size), values)((x, out), x.stream)


@device
def _first(index, size, windows):
    return index * size // windows


@device
def _last(index, size, windows):
    return ((index + 1) * size + windows - 1) // windows


@cache
def adaptive_kernel(dtype: str, backward: bool) -> Kernel:
    """The kernel of `sums`."""
    real = getattr(types, dtype)

    def adaptive(x, out, count, g, x_steps, out_steps):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < count:
            n, c, row, column = place(index, g.channels, g.out_height, g.out_width, g.channels_last)
            top, bottom = _first(row, g.height, g.out_height), _last(row, g.height, g.out_height)
            left, right = _first(column, g.width, g.out_width), _last(column, g.width, g.out_width)
            total, pixels = float64(0), (bottom - top) * (right - left)
            for i in range(top, bottom):
                rows = _last(i, g.out_height, g.height) - _first(i, g.out_height, g.height)
                for j in range(left, right):
                    if backward:
                        pixels = rows * (_last(j, g.out_width, g.width) - _first(j, g.out_width, g.width))
                    total += float64(x[at(x_steps, n, c, i, j)]) / float64(pixels)
            out[at(out_steps, n, c, row, column)] = real(total)
            index += step

    array, steps = pointer(real), numbers(int64, Steps)
    kinds = (array, array, int64, numbers(int64, Sizes), steps, steps)
    return Kernel(adaptive, kinds, (dtype, backward), threads=THREADS)

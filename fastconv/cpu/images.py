"""Batches of images: bytes scaled to floats, and a window of each image, mirrored or not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.launch import run_jobs
from fastconv.cpu.memory import copy, get, ints, put
from fastconv.jit import record_kernel, source_stamp

_ROWS = 16  # of a job
_STEPS = ("batch", "channel", "row", "column")
_RECORD = np.dtype([
    (name, np.int64)
    for name in ("x", "out", "scale", "shift", "places", "channels", "height", "width", "out_height", "out_width",
                 *(f"x_{step}" for step in _STEPS), *(f"out_{step}" for step in _STEPS))
])  # fmt: skip


def normalize(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """Write ``x * scale + shift`` to `out`.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8, or of the dtype of `out`; any strides.
    scale, shift : contiguous arrays (C,)
        Of the dtype of `out`.
    out : array (N, C, H, W)
        float32 or float64, any strides.
    """
    record = _record(x, out)
    record["scale"], record["shift"] = scale.ctypes.data, shift.ctypes.data
    run_jobs(_normalize(x.itemsize, out.itemsize, source_stamp()), record, _jobs(out))


def crop(x: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Write a window of each image to `out`; zeros where it is outside of the image.

    Parameters
    ----------
    x, out : arrays (N, C, H, W)
        float32 or float64, both the same; any strides. The size of `out` is that of the windows.
    places : contiguous int64 array (N, 3)
        First row and column of each window, and whether it is mirrored.
    """
    record = _record(x, out)
    record["places"] = places.ctypes.data
    run_jobs(_crop(out.itemsize, source_stamp()), record, _jobs(out))


def _jobs(out: np.ndarray) -> int:
    return out.shape[0] * -(-out.shape[2] // _ROWS)


def _record(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    record = np.zeros(1, _RECORD)
    record["x"], record["out"] = x.ctypes.data, out.ctypes.data
    record["channels"], record["height"], record["width"] = x.shape[1:]
    record["out_height"], record["out_width"] = out.shape[2:]
    for name, array in (("x", x), ("out", out)):
        for step, stride in zip(_STEPS, array.strides, strict=True):
            record[f"{name}_{step}"] = stride // array.itemsize
    return record


@cache
def _normalize(FROM: int, ITEM: int, stamp: str) -> Any:
    real = np.float32 if ITEM == 4 else np.float64

    @record_kernel(_RECORD)
    def normalize(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        blocks = (g.out_height + _ROWS - 1) // _ROWS
        n, first = index // blocks, index % blocks * _ROWS
        for i in range(first, min(first + _ROWS, g.out_height)):
            source = g.x + FROM * (n * g.x_batch + i * g.x_row)
            target = g.out + ITEM * (n * g.out_batch + i * g.out_row)
            for j in range(g.width):
                for c in range(g.channels):
                    value = real(get(source, j * g.x_column + c * g.x_channel, FROM))
                    value = value * get(g.scale, c, ITEM) + get(g.shift, c, ITEM)
                    put(target, j * g.out_column + c * g.out_channel, value, ITEM)

    return normalize


@cache
def _crop(ITEM: int, stamp: str) -> Any:
    zero = np.float32(0) if ITEM == 4 else np.float64(0)

    @record_kernel(_RECORD)
    def crop(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        blocks = (g.out_height + _ROWS - 1) // _ROWS
        n, first = index // blocks, index % blocks * _ROWS
        place = ints(g.places + 24 * n, 1, 3)
        top, left, mirrored = place[0, 0], place[0, 1], place[0, 2]
        neighbours = g.x_channel == 1 and g.out_channel == 1
        for i in range(first, min(first + _ROWS, g.out_height)):
            row = top + i
            target = g.out + ITEM * (n * g.out_batch + i * g.out_row)
            for j in range(g.out_width):
                column = left + (g.out_width - 1 - j if mirrored else j)
                pixel = target + ITEM * j * g.out_column
                if 0 <= row < g.height and 0 <= column < g.width:
                    source = g.x + ITEM * (n * g.x_batch + row * g.x_row + column * g.x_column)
                    if neighbours:
                        copy(source, 1, pixel, g.channels, ITEM)
                    else:
                        for c in range(g.channels):
                            put(pixel, c * g.out_channel, get(source, c * g.x_channel, ITEM), ITEM)
                else:
                    for c in range(g.channels):
                        put(pixel, c * g.out_channel, zero, ITEM)

    return crop

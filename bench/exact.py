"""Inputs of a problem, made alike in every process, and its result in float64 by plain NumPy."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastconv.arrays import empty
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, PoolProblem, Problem


def inputs(problem: Problem) -> list[np.ndarray]:
    """What a pass reads, made from a seed that comes from the descriptor.

    A pooling has x, its gradient the gradient of the output and x; a convolution x, weight and bias (None
    without one); the gradient of its input the gradient of the output and weight; that of its weights x and
    the gradient of the output.
    """
    rng = np.random.default_rng(zlib.crc32(problem.descriptor.encode()))
    if problem.direction == "backward_weight":
        return [_image(problem, problem.in_shape, rng), _image(problem, problem.out_shape, rng)]
    x = _image(problem, problem.in_shape if problem.direction == "forward" else problem.out_shape, rng)
    if isinstance(problem, PoolProblem):
        return [x] if problem.direction == "forward" else [x, _image(problem, problem.in_shape, rng)]
    weight = rng.standard_normal(problem.weight_shape, dtype=np.float32).astype(problem.dtype, copy=False)
    bias = rng.standard_normal(problem.out_channels, dtype=np.float32).astype(problem.dtype, copy=False)
    return [x, weight, bias if problem.bias else None] if problem.direction == "forward" else [x, weight]


def _image(problem: Problem, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """At a cache line, as libraries allocate what one layer leaves to the next."""
    x = empty(shape, problem.dtype, problem.memory_format)
    x[...] = rng.standard_normal(shape, dtype=np.float32)
    return x


def exact(problem: Problem) -> np.ndarray:
    """The result in float64."""
    arrays = [a.astype(np.float64) if a is not None else None for a in inputs(problem)]
    if isinstance(problem, PoolProblem):
        return _pool(arrays[0], problem.pool) if problem.direction == "forward" else _pool_gradient(problem, *arrays)
    if problem.direction != "forward":
        return _gradient(problem, *arrays)
    return _conv(problem, *arrays)


def _windows(x: np.ndarray, kernel, stride, padding, dilation, fill: float) -> np.ndarray:
    """(N, C, H, W) -> (N, C, oh, ow, r, s), a view of the padded map."""
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=fill)
    spans = [d * (f - 1) + 1 for f, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(padded, spans, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _conv(p: ConvProblem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    windows = _windows(x, p.kernel_size, p.stride, p.padding, p.dilation, 0.0)
    channels, filters = p.in_channels // p.groups, p.out_channels // p.groups
    parts = [
        np.tensordot(
            windows[:, g * channels : (g + 1) * channels],
            weight[g * filters : (g + 1) * filters],
            axes=((1, 4, 5), (1, 2, 3)),
        )
        for g in range(p.groups)
    ]
    out = np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2)
    out = out if bias is None else out + bias[:, None, None]
    out = np.maximum(out, 0) if p.activation == "relu" else out
    return _pool(out, p.pool) if p.pool else out


def _gradient(p: ConvProblem, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gradient of the input from (grad, weight), or of the weights from (x, grad), tap by tap; one group."""
    height, width = (n + sum(pad) for n, pad in zip(p.in_size, p.padding, strict=True))
    of_input = p.direction == "backward_input"
    padded = np.zeros((p.batch, p.in_channels, height, width))
    inside = padded[:, :, p.padding[0][0] :, p.padding[1][0] :][:, :, : p.in_size[0], : p.in_size[1]]
    weight = np.zeros(p.weight_shape)
    if not of_input:
        inside[...] = first
    for r in range(p.kernel_size[0]):
        for s in range(p.kernel_size[1]):
            rows, columns = (
                slice(tap * d, tap * d + step * (n - 1) + 1, step)
                for tap, d, step, n in zip((r, s), p.dilation, p.stride, p.conv_size, strict=True)
            )
            seen = padded[:, :, rows, columns]
            if of_input:
                seen += np.einsum("nkhw,kc->nchw", first, second[:, :, r, s], optimize=True)
            else:
                weight[:, :, r, s] = np.einsum("nkhw,nchw->kc", second, seen, optimize=True)
    return inside if of_input else weight


def _pool(x: np.ndarray, pool: Pool) -> np.ndarray:
    """Maximum, average or norm; the benchmark's windows neither round up nor leave padding uncounted."""
    padding = [(p, p) for p in pool.padding]
    fill = -np.inf if pool.mode == "max" else 0.0
    windows = _windows(x, pool.kernel_size, pool.stride, padding, pool.dilation, fill)
    if pool.mode == "max":
        return windows.max((4, 5))
    if pool.mode == "avg":
        return windows.mean((4, 5))
    return (np.abs(windows) ** pool.norm_type).sum((4, 5)) ** (1 / pool.norm_type)


def _pool_gradient(p: PoolProblem, grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gradient of a maximum, without ties, or of an average, tap by tap."""
    (top, left), maximum = p.pool.padding, p.pool.mode == "max"
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=-np.inf)
    out, found = _pool(x, p.pool), np.zeros_like(padded)
    for r, s in np.ndindex(p.pool.kernel_size):
        rows, columns = (
            slice(tap * d, tap * d + step * (n - 1) + 1, step)
            for tap, d, step, n in zip((r, s), p.pool.dilation, p.pool.stride, p.out_size, strict=True)
        )
        share = padded[:, :, rows, columns] == out if maximum else 1 / math.prod(p.pool.kernel_size)
        found[:, :, rows, columns] += grad * share
    return found[:, :, top : top + p.in_size[0], left : left + p.in_size[1]]

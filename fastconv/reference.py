"""The oracle: convolution and pooling as plain loops with float64 accumulation.

Every other algorithm is tested against this one, so it is written to be read: no blocking, no packing,
no threads. It takes every forward problem and is the last resort for what no other kernel takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.cpu.kernel import Params
from fastconv.cpu.pack import Packed
from fastconv.jit import jit
from fastconv.pooling import Pool
from fastconv.problem import LEAKY_SLOPE, ConvProblem, PoolProblem, Problem

_NS_PER_CALL, _NS_PER_FLOP = 20_000.0, 5.0


def unsupported(problem: Problem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return None


def space(problem: Problem) -> list[Params]:
    """There is nothing to tune."""
    return [{}]


def cost(problem: Problem, params: Params) -> float:
    """Predicted time in nanoseconds."""
    return _NS_PER_CALL + _NS_PER_FLOP * problem.flops


def make(problem: Problem, params: Params, threads: int) -> ReferenceConv | ReferencePool:
    """The kernel of a problem; it runs on one thread whatever `threads` says."""
    return ReferenceConv(problem) if isinstance(problem, ConvProblem) else ReferencePool(problem)


class Reference:
    """What the oracle's kernels share.

    Attributes
    ----------
    layout_copies : str
        See `fastconv.cpu.kernel.Kernel`.
    """

    layout_copies = "all arrays, to contiguous float64"

    def __init__(self, problem: Any) -> None:
        self.problem = problem


class ReferenceConv(Reference):
    """Plain loops with the interface of `fastconv.cpu.kernel.ConvKernel`."""

    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of input, weights and result, and the map before pooling."""
        p = self.problem
        conv_map = p.batch * p.out_channels * math.prod(p.conv_size)
        return 8 * (math.prod(p.in_shape) + math.prod(p.weight_shape) + conv_map + math.prod(p.out_shape))

    def pack(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        """A copy of the weights (K, C/groups, R, S) and the bias (K,), zeros if there is none."""
        p = self.problem
        return weight.copy(), np.zeros(p.out_channels, p.dtype) if bias is None else bias.astype(p.dtype)

    def run(self, x: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        """Compute `out` from `x`; both (N, C, H, W) with the problem's sizes and dtype, and any strides."""
        store(convolve(self.problem, x, *packed), out)

    def convolve(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with weights and bias as they are."""
        self.run(x, self.pack(weight, bias), out)

    def bound(self, x: np.ndarray, out: np.ndarray) -> Callable[[np.ndarray, Packed, np.ndarray], None]:
        """See `fastconv.cpu.kernel.ConvKernel.bound`."""
        return self.run


class ReferencePool(Reference):
    """Plain loops with the interface of `fastconv.cpu.kernel.PoolKernel`."""

    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of input and result, and the indices."""
        return 8 * (math.prod(self.problem.in_shape) + 2 * math.prod(self.problem.out_shape))

    def run(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None = None) -> None:
        """Compute `out` (N, C, H, W), and the int64 `indices` of the same shape if given, from `x`."""
        values, found = pooling(self.problem, x)
        store(values, out)
        if indices is not None:
            indices[...] = found

    def bound(self, x: np.ndarray, out: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
        """See `fastconv.cpu.pool_kernel.PoolKernel.bound`."""
        return self.run


def store(values: np.ndarray, out: np.ndarray) -> None:
    """Round float64 `values` to the dtype of `out`."""
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is inf, as in the other kernels
        out[...] = values


def convolve(problem: ConvProblem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Convolution, bias, activation and pooling as `problem` says, in float64.

    Parameters
    ----------
    problem : ConvProblem
    x : array (N, C, H, W)
        Any real dtype and strides.
    weight : array (K, C/groups, R, S)
    bias : array (K,), optional

    Returns
    -------
    float64 array of shape ``problem.out_shape``
        ``pool(activation(bias[k] + sum over c, r, s of x[n, c, i*stride + r*dilation - padding, ...] *
        weight[k, c, r, s]))``; taps outside the image are left out.
    """
    shape = (problem.batch, problem.out_channels, *problem.conv_size)
    begin = (problem.padding[0][0], problem.padding[1][0])
    start = np.zeros(problem.out_channels) if bias is None else as_float64(bias)
    out = np.empty(shape)
    _convolve(as_float64(x), as_float64(weight), start, problem.stride, begin, problem.dilation, problem.groups, out)
    out = _activate(out, problem.activation)
    return pooling(problem.pool, out)[0] if problem.pool else out


def pooling(problem: PoolProblem | Pool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Pooling with torch's semantics, in float64.

    Parameters
    ----------
    problem : PoolProblem or Pool
    x : array (N, C, H, W)
        Any real dtype and strides.

    Returns
    -------
    values : float64 array (N, C, OH, OW)
        Maximum (a NaN in the window wins); average, in which the part of a window beyond the trailing
        padding never counts, and the padding counts with `count_include_pad`; or Lp norm
        ``(mean(x**p) * kernel height * kernel width) ** (1/p)`` as in torch.nn.functional.lp_pool2d.
    indices : int64 array (N, C, OH, OW), or None unless the mode is "max"
        ``h*W + w`` of each maximum, the first one where several are equal; -1 for a window (possible
        with dilation) that has no pixel.
    """
    pool = problem.pool if isinstance(problem, PoolProblem) else problem
    image = as_float64(x)
    out = np.empty((*image.shape[:2], *pool.output_size(image.shape[2:])))
    if pool.mode == "max":
        indices = np.empty(out.shape, np.int64)
        _max_pool(image, pool.kernel_size, pool.stride, pool.padding, pool.dilation, out, indices)
        return out, indices
    power = pool.norm_type if pool.mode == "lp" else 1.0
    _mean_pool(image, pool.kernel_size, pool.stride, pool.padding, pool.count_include_pad, power, out)
    if pool.mode == "lp":
        with np.errstate(invalid="ignore"):  # a negative sum, possible for odd p, has no real root: NaN
            out = (out * math.prod(pool.kernel_size)) ** (1 / power)
    return out, None


def as_float64(array: np.ndarray) -> np.ndarray:
    """One dtype and one layout, so that each loop nest is compiled once."""
    return np.ascontiguousarray(array, np.float64)


def _activate(y: np.ndarray, name: str | None) -> np.ndarray:
    """The activation; NaN passes through."""
    if name == "relu":
        return np.maximum(y, 0)
    if name == "relu6":
        return np.clip(y, 0, 6)
    if name == "leaky_relu":
        return np.where(y < 0, LEAKY_SLOPE * y, y)
    return y


@jit
def _convolve(x, weight, bias, stride, begin, dilation, groups, out):
    _, _, height, width = x.shape
    filters, channels, kernel_height, kernel_width = weight.shape
    for n in range(out.shape[0]):
        for k in range(filters):
            first = k // (filters // groups) * channels
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    total = bias[k]
                    for c in range(channels):
                        for r in range(kernel_height):
                            for s in range(kernel_width):
                                h = i * stride[0] - begin[0] + r * dilation[0]
                                w = j * stride[1] - begin[1] + s * dilation[1]
                                if 0 <= h < height and 0 <= w < width:
                                    total += x[n, first + c, h, w] * weight[k, c, r, s]
                    out[n, k, i, j] = total


@jit
def _max_pool(x, kernel, stride, padding, dilation, out, indices):
    height, width = x.shape[2:]
    for n in range(out.shape[0]):
        for c in range(out.shape[1]):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    best, where = -np.inf, -1
                    for r in range(kernel[0]):
                        for s in range(kernel[1]):
                            h = i * stride[0] - padding[0] + r * dilation[0]
                            w = j * stride[1] - padding[1] + s * dilation[1]
                            if 0 <= h < height and 0 <= w < width:
                                value = x[n, c, h, w]
                                if where < 0 or value > best or np.isnan(value):
                                    best, where = value, h * width + w
                    out[n, c, i, j] = best
                    indices[n, c, i, j] = where


@jit
def _mean_pool(x, kernel, stride, padding, count_include_pad, power, out):
    height, width = x.shape[2:]
    for n in range(out.shape[0]):
        for c in range(out.shape[1]):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                    bottom = min(top + kernel[0], height + padding[0])
                    right = min(left + kernel[1], width + padding[1])
                    total, pixels = 0.0, 0
                    for h in range(max(top, 0), min(bottom, height)):
                        for w in range(max(left, 0), min(right, width)):
                            total += x[n, c, h, w] ** power
                            pixels += 1
                    out[n, c, i, j] = total / ((bottom - top) * (right - left) if count_include_pad else pixels)

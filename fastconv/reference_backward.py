"""The oracle of the gradients: plain loops with float64 accumulation, as in `fastconv.reference`."""

from __future__ import annotations

import math

import numpy as np

from fastconv.cpu.kernel import Params
from fastconv.jit import jit
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.reference import Reference, as_float64, cost, space, store, unsupported

__all__ = ["conv_input", "conv_weight", "cost", "make", "pool_input", "space", "unsupported"]


def make(problem: ConvProblem | PoolProblem, params: Params, threads: int) -> ReferenceConvGrad | ReferencePoolGrad:
    """The kernel of a problem; it runs on one thread whatever `threads` says."""
    return ReferenceConvGrad(problem) if isinstance(problem, ConvProblem) else ReferencePoolGrad(problem)


class ReferenceConvGrad(Reference):
    """Plain loops for either gradient."""

    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of the arrays."""
        p = self.problem
        return 8 * sum(math.prod(shape) for shape in (p.in_shape, p.weight_shape, p.out_shape))

    def convolve(self, grad_output: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """The gradient of the input, as `fastconv.cpu.kernel.ConvKernel.convolve`."""
        store(conv_input(self.problem, grad_output, weight, bias), out)

    def run(self, x: np.ndarray, grad_output: np.ndarray, out: np.ndarray) -> None:
        """The gradient of the weights, as `fastconv.cpu.kernel.WeightKernel.run`."""
        store(conv_weight(self.problem, x, grad_output), out)


class ReferencePoolGrad(Reference):
    """Plain loops with the interface of `fastconv.cpu.pool_backward.PoolBackward`."""

    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of the arrays, the forward pass's among them."""
        return 16 * (math.prod(self.problem.in_shape) + math.prod(self.problem.out_shape))

    def run(self, grad: np.ndarray, out: np.ndarray, *saved: np.ndarray) -> None:
        """See `fastconv.cpu.pool_backward.PoolBackward.run`."""
        store(pool_input(self.problem, grad, *saved), out)


def conv_input(
    problem: ConvProblem, grad_output: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """Gradient of a convolution's input, in float64.

    Parameters
    ----------
    problem : ConvProblem
        Sizes of the forward convolution.
    grad_output : array (N, K, Ho, Wo)
    weight : array (K, C/groups, R, S)
    bias : array (C,), optional
        Added to each channel of the result (a transposed convolution's bias).

    Returns
    -------
    float64 array (N, C, H, W)
        Every ``grad_output[n, k, i, j] * weight[k, c, r, s]`` added where the forward convolution read the
        pixel that it multiplied by that weight.
    """
    out = np.zeros(problem.in_shape)
    if bias is not None:
        out += as_float64(bias)[:, None, None]
    begin = (problem.padding[0][0], problem.padding[1][0])
    shape = (problem.stride, begin, problem.dilation, problem.groups)
    _conv_input(as_float64(grad_output), as_float64(weight), *shape, out)
    return out


def conv_weight(problem: ConvProblem, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of a convolution's weights, in float64.

    Parameters
    ----------
    problem : ConvProblem
        Sizes of the forward convolution.
    x : array (N, C, H, W)
    grad_output : array (N, K, Ho, Wo)

    Returns
    -------
    float64 array (K, C/groups, R, S)
        Sums over the images and pixels of ``grad_output[n, k, i, j]`` times the pixel that the forward
        convolution multiplied by the weight.
    """
    out = np.zeros(problem.weight_shape)
    begin = (problem.padding[0][0], problem.padding[1][0])
    shape = (problem.stride, begin, problem.dilation, problem.groups)
    _conv_weight(as_float64(x), as_float64(grad_output), *shape, out)
    return out


def pool_input(problem: PoolProblem, grad_output: np.ndarray, *saved: np.ndarray) -> np.ndarray:
    """Gradient of a pooling's input, in float64.

    Parameters
    ----------
    problem : PoolProblem
        Sizes of the forward pooling.
    grad_output : array (N, C, Ho, Wo)
    saved : arrays
        What the forward pass had. For a maximum its indices (N, C, Ho, Wo); for an Lp norm its result
        (N, C, Ho, Wo) and its input (N, C, H, W); for an average nothing.

    Returns
    -------
    float64 array (N, C, H, W)
        Each gradient added to the pixel of its index, to none if that is outside the plane; or divided among the
        pixels of its window; or for ``y = (sum of x**p) ** (1/p)`` times ``x**(p-1) * y**(1-p)``, and nothing
        where y is 0, as in torch.
    """
    pool, out = problem.pool, np.zeros(problem.in_shape)
    grad = as_float64(grad_output)
    if pool.mode == "max":
        _max_input(grad, np.ascontiguousarray(saved[0]), out)
        return out
    if pool.mode == "avg":
        _mean_input(grad, pool.kernel_size, pool.stride, pool.padding, pool.count_include_pad, out)
        return out
    y, x = (as_float64(array) for array in saved)
    with np.errstate(all="ignore"):  # a NaN or an infinity is the result, not a mistake
        grad = np.where(y == 0, 0.0, grad * math.prod(pool.kernel_size) * y ** (1 - pool.norm_type))
        _mean_input(grad, pool.kernel_size, pool.stride, pool.padding, True, out)
        return out * x ** (pool.norm_type - 1)


@jit
def _conv_input(grad_output, weight, stride, begin, dilation, groups, out):
    height, width = out.shape[2:]
    filters, channels, kernel_height, kernel_width = weight.shape
    for n in range(out.shape[0]):
        for k in range(filters):
            first = k // (filters // groups) * channels
            for i in range(grad_output.shape[2]):
                for j in range(grad_output.shape[3]):
                    for c in range(channels):
                        for r in range(kernel_height):
                            for s in range(kernel_width):
                                h = i * stride[0] - begin[0] + r * dilation[0]
                                w = j * stride[1] - begin[1] + s * dilation[1]
                                if 0 <= h < height and 0 <= w < width:
                                    out[n, first + c, h, w] += grad_output[n, k, i, j] * weight[k, c, r, s]


@jit
def _conv_weight(x, grad_output, stride, begin, dilation, groups, out):
    height, width = x.shape[2:]
    filters, channels, kernel_height, kernel_width = out.shape
    for k in range(filters):
        first = k // (filters // groups) * channels
        for c in range(channels):
            for r in range(kernel_height):
                for s in range(kernel_width):
                    total = 0.0
                    for n in range(x.shape[0]):
                        for i in range(grad_output.shape[2]):
                            for j in range(grad_output.shape[3]):
                                h = i * stride[0] - begin[0] + r * dilation[0]
                                w = j * stride[1] - begin[1] + s * dilation[1]
                                if 0 <= h < height and 0 <= w < width:
                                    total += grad_output[n, k, i, j] * x[n, first + c, h, w]
                    out[k, c, r, s] = total


@jit
def _max_input(grad, indices, out):
    height, width = out.shape[2:]
    for n in range(grad.shape[0]):
        for c in range(grad.shape[1]):
            for i in range(grad.shape[2]):
                for j in range(grad.shape[3]):
                    where = indices[n, c, i, j]
                    if 0 <= where < height * width:
                        out[n, c, where // width, where % width] += grad[n, c, i, j]


@jit
def _mean_input(grad, kernel, stride, padding, count_include_pad, out):
    height, width = out.shape[2:]
    for n in range(grad.shape[0]):
        for c in range(grad.shape[1]):
            for i in range(grad.shape[2]):
                for j in range(grad.shape[3]):
                    top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                    bottom = min(top + kernel[0], height + padding[0])
                    right = min(left + kernel[1], width + padding[1])
                    first_row, last_row = max(top, 0), min(bottom, height)
                    first_column, last_column = max(left, 0), min(right, width)
                    counted = (last_row - first_row) * (last_column - first_column)
                    if count_include_pad:
                        counted = (bottom - top) * (right - left)
                    for h in range(first_row, last_row):
                        for w in range(first_column, last_column):
                            out[n, c, h, w] += grad[n, c, i, j] / counted

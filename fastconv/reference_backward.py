"""The oracle of the gradients: plain loops with float64 accumulation, as in `fastconv.reference`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastconv.cpu.kernel import Params
from fastconv.jit import jit
from fastconv.problem import ConvProblem
from fastconv.reference import as_float64, cost, space, store, unsupported

__all__ = ["conv_input", "conv_weight", "cost", "make", "space", "unsupported"]


def make(problem: ConvProblem, params: Params, threads: int) -> ReferenceConvGrad:
    """The kernel of a problem; it runs on one thread whatever `threads` says."""
    return ReferenceConvGrad(problem)


class ReferenceConvGrad:
    """Plain loops with the interface of `fastconv.cpu.kernel.GradKernel`."""

    layout_copies = "all arrays, to contiguous float64"

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.gradient: Callable = {"backward_input": conv_input, "backward_weight": conv_weight}[problem.direction]

    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of the arrays."""
        p = self.problem
        return 8 * sum(math.prod(shape) for shape in (p.in_shape, p.weight_shape, p.out_shape))

    def run(self, first: np.ndarray, second: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None) -> None:
        """See `fastconv.cpu.kernel.GradKernel.run`."""
        store(self.gradient(self.problem, first, second, *(() if bias is None else (bias,))), out)


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

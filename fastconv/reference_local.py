"""The oracle of locally-connected convolution and its gradients, as plain as `fastconv.reference`."""

from __future__ import annotations

import math

import numpy as np

from fastconv.cpu.kernel import Params
from fastconv.jit import jit
from fastconv.local_problem import LocalProblem
from fastconv.reference import Reference, as_float64, cost, space, store, unsupported

__all__ = ["convolve", "cost", "input_gradient", "make", "space", "unsupported", "weight_gradient"]


def make(problem: LocalProblem, params: Params, threads: int) -> ReferenceLocal | ReferenceLocalGrad:
    """The kernel of a problem; it runs on one thread whatever `threads` says."""
    return (ReferenceLocal if problem.direction == "forward" else ReferenceLocalGrad)(problem)


class _Reference(Reference):
    @property
    def workspace_bytes(self) -> int:
        """The float64 copies of the arrays."""
        p = self.problem
        return 8 * sum(math.prod(shape) for shape in (p.in_shape, p.weight_shape, p.out_shape))


class ReferenceLocal(_Reference):
    """Plain loops with the interface of `fastconv.cpu.local.Local`."""

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """Compute `out` (N, K, OH, OW)."""
        store(convolve(self.problem, x, weight, bias), out)


class ReferenceLocalGrad(_Reference):
    """Plain loops with the interface of the kernels in `fastconv.cpu.local_backward`."""

    def run(self, first: np.ndarray, second: np.ndarray, out: np.ndarray) -> None:
        """Compute a gradient: of the input from (grad_output, weight), or of the weights from (x, grad_output)."""
        gradient = input_gradient if self.problem.direction == "backward_input" else weight_gradient
        store(gradient(self.problem, first, second), out)


def convolve(problem: LocalProblem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Locally-connected convolution, in float64.

    Parameters
    ----------
    problem : LocalProblem
    x : array (N, C, H, W)
    weight : array (K, C, R, S, OH, OW)
    bias : array (K, OH, OW), optional

    Returns
    -------
    float64 array (N, K, OH, OW)
        ``bias[k, i, j] + sum over c, r, s of x[n, c, i*stride + r*dilation - padding, ...] *
        weight[k, c, r, s, i, j]``; taps outside the image are left out.
    """
    out = np.zeros(problem.out_shape)
    if bias is not None:
        out += as_float64(bias)
    _convolve(as_float64(x), as_float64(weight), *_steps(problem), out)
    return out


def input_gradient(problem: LocalProblem, grad_output: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gradient of the input in float64: each ``grad_output[n, k, i, j] * weight[k, c, r, s, i, j]`` added to its pixel.

    Parameters
    ----------
    problem : LocalProblem
    grad_output : array (N, K, OH, OW)
    weight : array (K, C, R, S, OH, OW)

    Returns
    -------
    float64 array (N, C, H, W)
    """
    out = np.zeros(problem.in_shape)
    _input_gradient(as_float64(grad_output), as_float64(weight), *_steps(problem), out)
    return out


def weight_gradient(problem: LocalProblem, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Gradient of the weights in float64: sums over the images of ``grad_output[n, k, i, j]`` times the tap's pixel.

    Parameters
    ----------
    problem : LocalProblem
    x : array (N, C, H, W)
    grad_output : array (N, K, OH, OW)

    Returns
    -------
    float64 array (K, C, R, S, OH, OW)
    """
    out = np.zeros(problem.weight_shape)
    _weight_gradient(as_float64(x), as_float64(grad_output), *_steps(problem), out)
    return out


def _steps(problem: LocalProblem) -> tuple:
    conv = problem.conv
    return conv.stride, (conv.padding[0][0], conv.padding[1][0]), conv.dilation


@jit
def _tap(i, j, r, s, stride, begin, dilation, height, width):
    """The pixel of a tap, and whether it is in the image."""
    h, w = i * stride[0] - begin[0] + r * dilation[0], j * stride[1] - begin[1] + s * dilation[1]
    return h, w, 0 <= h < height and 0 <= w < width


@jit
def _convolve(x, weight, stride, begin, dilation, out):
    filters, channels, kernel_height, kernel_width, out_height, out_width = weight.shape
    for n in range(x.shape[0]):
        for k in range(filters):
            for c in range(channels):
                for r in range(kernel_height):
                    for s in range(kernel_width):
                        for i in range(out_height):
                            for j in range(out_width):
                                h, w, inside = _tap(i, j, r, s, stride, begin, dilation, x.shape[2], x.shape[3])
                                if inside:
                                    out[n, k, i, j] += x[n, c, h, w] * weight[k, c, r, s, i, j]


@jit
def _input_gradient(grad_output, weight, stride, begin, dilation, out):
    filters, channels, kernel_height, kernel_width, out_height, out_width = weight.shape
    for n in range(out.shape[0]):
        for k in range(filters):
            for c in range(channels):
                for r in range(kernel_height):
                    for s in range(kernel_width):
                        for i in range(out_height):
                            for j in range(out_width):
                                h, w, inside = _tap(i, j, r, s, stride, begin, dilation, out.shape[2], out.shape[3])
                                if inside:
                                    out[n, c, h, w] += grad_output[n, k, i, j] * weight[k, c, r, s, i, j]


@jit
def _weight_gradient(x, grad_output, stride, begin, dilation, out):
    filters, channels, kernel_height, kernel_width, out_height, out_width = out.shape
    for n in range(x.shape[0]):
        for k in range(filters):
            for c in range(channels):
                for r in range(kernel_height):
                    for s in range(kernel_width):
                        for i in range(out_height):
                            for j in range(out_width):
                                h, w, inside = _tap(i, j, r, s, stride, begin, dilation, x.shape[2], x.shape[3])
                                if inside:
                                    out[k, c, r, s, i, j] += grad_output[n, k, i, j] * x[n, c, h, w]

"""Elementwise layers (activations and dropout) and softmax."""

from __future__ import annotations

import numpy as np

from fastconv.nn.backend import as_floats, backend
from fastconv.nn.init import generator
from fastconv.nn.module import Module
from fastconv.problem import LEAKY_SLOPE
from fastconv.sizes import axis, integer, real


class ReLU(Module):
    """max(x, 0).

    It keeps its output, not its input: the next layer keeps the same array as its input, and a convolution
    may have computed it in one pass (see `Sequential`).
    """

    fused = "relu"  # what conv2d calls this activation

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Any shape, float32 or float64."""
        output = backend(x).relu(x)
        self.keep(output, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (output,) = self.take(grad_output)
        return backend(output).relu_backward(output, grad_output) if input_grad else None


class ReLU6(Module):
    """min(max(x, 0), 6) (Krizhevsky, 2010); it keeps its output, as `ReLU`."""

    fused = "relu6"

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Any shape, float32 or float64."""
        output = backend(x).relu6(x)
        self.keep(output, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (output,) = self.take(grad_output)
        return backend(output).relu6_backward(output, grad_output) if input_grad else None


class LeakyReLU(Module):
    """x where it is positive, else ``negative_slope * x``.

    Parameters
    ----------
    negative_slope : float, default 0.01
        Any number.
    """

    def __init__(self, negative_slope: float = LEAKY_SLOPE) -> None:
        self.negative_slope = real(negative_slope, "negative_slope")

    @property
    def fused(self) -> str | None:
        """What conv2d calls this activation, None where it has no such slope."""
        return "leaky_relu" if self.negative_slope == LEAKY_SLOPE else None

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Any shape, float32 or float64."""
        output = backend(x).leaky_relu(x, self.negative_slope)
        # The gradient needs the sign of x, which the output has too, unless the slope turned it.
        self.keep(output if self.negative_slope >= 0 else x, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (signs,) = self.take(grad_output)
        return backend(signs).leaky_relu_backward(signs, grad_output, self.negative_slope) if input_grad else None


class Dropout(Module):
    """In training, zero each element with probability `p` and scale the others by 1 / (1 - p).

    Parameters
    ----------
    p : float, default 0.5
        Between 0 and 1.
    rng : numpy.random.Generator, optional
        Where the randomness comes from; the one of `manual_seed` if not given.

    Raises
    ------
    ValueError
        If `p` is not a probability.
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        self.p, self.rng = real(p, "p", 0, 1), rng

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Any shape, float32 or float64; in eval mode `x` itself."""
        x = as_floats(x, "x")
        if not self.training:
            self.keep(None, output=x)
            return x
        pattern = (int(generator(self.rng).integers(2**63)), backend(x).channels_last(x))
        self.keep(pattern, output=x)
        return backend(x).dropout(x, self.p, *pattern)

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (pattern,) = self.take(grad_output)
        if not input_grad:
            return None
        return grad_output if pattern is None else backend(grad_output).dropout(grad_output, self.p, *pattern)


class Softmax(Module):
    """exp(x) / sum of exp(x) along an axis.

    Parameters
    ----------
    dim : int
        The axis.
    """

    def __init__(self, dim: int) -> None:
        self.dim = integer(dim, "dim")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Any shape, float32 or float64."""
        x = as_floats(x, "x")
        axis(self.dim, "dim", len(x.shape))
        output = backend(x).softmax(x, self.dim)
        self.keep(output, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (output,) = self.take(grad_output)
        return backend(output).softmax_backward(output, grad_output, self.dim) if input_grad else None

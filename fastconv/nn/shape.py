"""Layers that change the shape only."""

from __future__ import annotations

import math

import numpy as np

from fastconv.nn.backend import as_floats, backend
from fastconv.nn.module import Module
from fastconv.sizes import axis, integer


class Flatten(Module):
    """Merge axes `start_dim` to `end_dim` into one, in the order of (N, C, H, W) whatever the memory format.

    Parameters
    ----------
    start_dim : int, default 1
    end_dim : int, default -1
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = integer(start_dim, "start_dim"), integer(end_dim, "end_dim")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C*H*W) by default; a view of a contiguous array."""
        x = as_floats(x, "x")
        first, last = axis(self.start_dim, "start_dim", x.ndim), axis(self.end_dim, "end_dim", x.ndim)
        if first > last:
            raise ValueError(f"start_dim {self.start_dim} comes after end_dim {self.end_dim} in shape {x.shape}")
        shape = tuple(x.shape)
        flat = (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])
        output = backend(x).reshape(x, flat)
        self.keep(shape, backend(x).memory_format(x) if x.ndim == 4 else None, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        shape, format = self.take(grad_output)
        if not input_grad:
            return None
        grad_output = as_floats(grad_output, "grad_output")
        grad = backend(grad_output).reshape(grad_output, shape)
        # The layers below work in this format; they would have to convert otherwise, each for itself.
        return backend(grad).in_format(grad, format) if format == "channels_last" else grad

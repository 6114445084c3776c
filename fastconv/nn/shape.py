"""Layers that change the shape only."""

from __future__ import annotations

import math

import numpy as np

from fastconv.arrays import as_floats, empty, memory_format
from fastconv.nn.module import Module


class Flatten(Module):
    """Merge axes `start_dim` to `end_dim` into one, in the order of (N, C, H, W) whatever the memory format.

    Parameters
    ----------
    start_dim : int, default 1
    end_dim : int, default -1
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C*H*W) by default; a view of a contiguous array."""
        x = as_floats(x, "x")
        first, last = (d % x.ndim for d in (self.start_dim, self.end_dim))
        if first > last:
            raise ValueError(f"start_dim {self.start_dim} comes after end_dim {self.end_dim} in shape {x.shape}")
        output = x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
        self.keep(x.shape, memory_format(x) if x.ndim == 4 else None, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        shape, format = self.take(grad_output)
        if not input_grad:
            return None
        grad = grad_output.reshape(shape)
        if format != "channels_last":
            return grad
        # The layers below work in this format; they would have to convert otherwise, each for itself.
        result = empty(shape, grad.dtype, format)
        result[...] = grad
        return result

"""The fully connected layer."""

from __future__ import annotations

import numpy as np

from fastconv.arrays import as_floats
from fastconv.functional.conv import conv2d
from fastconv.grad import conv2d_bias, conv2d_input, conv2d_weight
from fastconv.nn.conv import Convolution
from fastconv.nn.init import kaiming_parameters


class Linear(Convolution):
    """x @ weight.T + bias, by the convolution kernels.

    A batch is seen as a channels-last image of 1 x N pixels, the features of a row as the channels of a pixel,
    and the weights as 1x1 filters. Nothing is copied for that.

    Parameters
    ----------
    in_features, out_features : int
        Elements of a row of the input and of the output.
    bias : bool, default True
    rng : numpy.random.Generator, optional
        Draws the first values; the one of `manual_seed` if not given.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight : Parameter (out_features, in_features)
    bias : Parameter (out_features,) or None
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, rng: np.random.Generator | None = None,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = kaiming_parameters(
            (out_features, in_features), (out_features,), in_features, bias=bias, rng=rng, dtype=dtype
        )

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_features) to (N, out_features)."""
        x = as_floats(x, "x", (2,))
        if x.shape[1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features, got shape {x.shape}")
        if not len(x):  # an image must have pixels
            return self.keep_input(x, np.empty((0, self.out_features), x.dtype))
        return self.keep_input(x, _as_rows(conv2d(_as_image(x), self._filters, self.bias_value)))

    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        if not len(x):
            return np.zeros_like(self.weight.value)
        grad = conv2d_weight(_as_image(x), self._filters.shape, _as_image(grad_output))
        return grad.reshape(self.weight.value.shape)

    def bias_gradient(self, grad_output: np.ndarray) -> np.ndarray:
        if not len(grad_output):
            return np.zeros(self.out_features, grad_output.dtype)
        return conv2d_bias(_as_image(grad_output))

    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        rows, features = shape
        if not rows:
            return np.empty(shape, grad_output.dtype)
        return _as_rows(conv2d_input((1, features, 1, rows), self._filters, _as_image(grad_output)))

    @property
    def _filters(self) -> np.ndarray:
        return self.weight.value[:, :, None, None]


def _as_image(rows: np.ndarray) -> np.ndarray:
    """(N, C) as (1, C, 1, N)."""
    return rows.T[None, :, None, :]


def _as_rows(image: np.ndarray) -> np.ndarray:
    """(1, C, 1, N) as (N, C)."""
    return image[0, :, 0, :].T

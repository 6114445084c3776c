"""The fully connected layer."""

from __future__ import annotations

import numpy as np

from fastconv.nn.backend import as_floats, backend
from fastconv.nn.conv import Convolution
from fastconv.nn.init import kaiming_parameters
from fastconv.sizes import integer


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
        in_features, out_features = (
            integer(value, name, least=1)
            for value, name in ((in_features, "in_features"), (out_features, "out_features"))
        )
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = kaiming_parameters(
            (out_features, in_features), (out_features,), in_features, bias=bias, rng=rng, dtype=dtype
        )

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_features) to (N, out_features)."""
        x = as_floats(x, "x", (2,), beside=self.weight.value, what="weight")
        if x.shape[1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features, got shape {x.shape}")
        if not len(x):  # an image must have pixels
            return self.keep_input(x, backend(x).new((0, self.out_features), x))
        return self.keep_input(x, backend(x).linear(x, self.weight.value, self.bias_value))

    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        if not len(x):
            return backend(x).full_like(self.weight.value, 0)
        return backend(x).linear_weight(x, grad_output)

    def bias_gradient(self, grad_output: np.ndarray) -> np.ndarray:
        if not len(grad_output):
            return backend(grad_output).batch_sum(grad_output)
        return backend(grad_output).linear_bias(grad_output)

    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        if not shape[0]:
            return backend(grad_output).new(shape, grad_output)
        return backend(grad_output).linear_input(self.weight.value, grad_output)

"""The locally connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.functional.local import locally_connected2d
from fastconv.grad import locally_connected2d_input, locally_connected2d_weight
from fastconv.nn.backend import as_floats, backend
from fastconv.nn.conv import Convolution, check_sizes
from fastconv.nn.init import kaiming_parameters
from fastconv.sizes import conv_output_size, padding_pairs, pair


class LocallyConnected2d(Convolution):
    """A convolution with weights and a bias of its own at each pixel of the result.

    Parameters
    ----------
    in_channels, out_channels : int
    input_size : int or (int, int)
        Height and width of the input.
    kernel_size : int or (int, int)
    stride, padding, dilation
        As in `fastconv.locally_connected2d`.
    bias : bool, default True
    rng : numpy.random.Generator, optional
        Draws the first values, as those of `Conv2d`; the one of `manual_seed` if not given.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels, R, S, Ho, Wo)
    bias : Parameter (out_channels, Ho, Wo) or None

    Raises
    ------
    ValueError
        If a size is out of range, or the kernel does not fit into the input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, input_size: Any, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, bias: bool = True, *, rng: np.random.Generator | None = None,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        in_channels, out_channels, _, kernel = check_sizes(
            in_channels, out_channels, kernel_size, stride, padding, dilation
        )
        strides, dilations = pair(stride, "stride", least=1), pair(dilation, "dilation", least=1)
        pads = padding_pairs(padding, kernel, strides, dilations)
        self.input_size = pair(input_size, "input_size", least=1)
        sizes = zip(self.input_size, kernel, pads, strides, dilations, strict=True)
        height, width = (conv_output_size(*axis) for axis in sizes)
        self.weight, self.bias = kaiming_parameters(
            (out_channels, in_channels, *kernel, height, width), (out_channels, height, width),
            in_channels * kernel[0] * kernel[1], bias=bias, rng=rng, dtype=dtype,
        )  # fmt: skip
        self.options = (stride, padding, dilation)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_channels, H, W) to (N, out_channels, Ho, Wo)."""
        x = as_floats(x, "x", (4,), beside=self.weight.value, what="weight")
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(f"x must have the layer's height and width {self.input_size}, got {tuple(x.shape)}")
        return self.keep_input(x, locally_connected2d(x, self.weight.value, self.bias_value, *self.options))

    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        return locally_connected2d_weight(x, self.weight.value.shape, grad_output, *self.options)

    def bias_gradient(self, grad_output: np.ndarray) -> np.ndarray:
        return backend(grad_output).batch_sum(grad_output)

    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        return locally_connected2d_input(shape, self.weight.value, grad_output, *self.options)

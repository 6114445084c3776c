"""Convolution layers: parameters, and the calls of forward, backward and inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.functional.conv import conv2d
from fastconv.functional.transposed import conv_transpose2d, extended
from fastconv.grad import conv2d_bias, conv2d_input, conv2d_weight
from fastconv.nn.backend import as_floats, backend, device_of
from fastconv.nn.init import kaiming_parameters
from fastconv.nn.module import Module, Parameter
from fastconv.nn.pool import pooled
from fastconv.plan import plan
from fastconv.pooling import Pool
from fastconv.sizes import Pair, integer, padding_pairs, pair, shown

if TYPE_CHECKING:
    from fastconv.nn.norm import BatchNorm2d

_MOST_PLANS = 16  # of one layer


class Convolution(Module):
    """What layers with a weight and a bias for each output channel share: the order of things in `backward`."""

    weight: Parameter
    bias: Parameter | None

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        x, shape = self.take(grad_output)
        if x is not None:
            self.weight.accumulate(self.weight_gradient(x, grad_output))
        if self.bias is not None and self.bias.requires_grad:
            self.bias.accumulate(self.bias_gradient(grad_output))
        return self.input_gradient(shape, grad_output) if input_grad else None

    def keep_input(self, x: np.ndarray, output: np.ndarray) -> np.ndarray:
        """Keep the input for the weights' gradient, or only its shape if they are frozen; returns `output`."""
        self.keep(x if self.weight.requires_grad else None, tuple(x.shape), output=output)
        return output

    @property
    def bias_value(self) -> np.ndarray | None:
        """The bias as functions take it."""
        return None if self.bias is None else self.bias.value

    @abstractmethod
    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        """Gradient of the weights."""

    def bias_gradient(self, grad_output: np.ndarray) -> np.ndarray:
        """Gradient of the bias."""
        return conv2d_bias(grad_output)

    @abstractmethod
    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        """Gradient of an input of this shape."""


class Conv2d(Convolution):
    """2-D convolution.

    Where it does not record (see `Module.recording`), as in eval mode, it has a `fastconv.Plan` for each shape and
    memory format, with the weights packed, until they change.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, padding, dilation, groups
        As in `fastconv.conv2d`.
    bias : bool, default True
    rng : numpy.random.Generator, optional
        Draws the first values; the one of `manual_seed` if not given.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels/groups, R, S)
    bias : Parameter (out_channels,) or None

    Raises
    ------
    ValueError
        If `groups` does not divide the channels, or a size is out of range.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, *, rng: np.random.Generator | None = None,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        in_channels, out_channels, groups, (height, width) = check_sizes(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        channels = in_channels // groups
        self.weight, self.bias = kaiming_parameters(
            (out_channels, channels, height, width), (out_channels,), channels * height * width,
            bias=bias, rng=rng, dtype=dtype,
        )  # fmt: skip
        self.options = (stride, padding, dilation, groups)
        self._plans = ConvPlans(self)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_channels, H, W) to (N, out_channels, Ho, Wo)."""
        if self.recording:
            return self.activated(x, None)
        self.keep()  # forgets what an earlier forward kept
        return self._plans(x)

    def activated(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        """Where it records: `forward` and an activation in one pass.

        `backward` still starts from the gradient of the convolution's own output, before the activation.
        """
        x = as_floats(x, "x", (4,), beside=self.weight.value, what="weight")
        return self.keep_input(x, conv2d(x, self.weight.value, self.bias_value, *self.options, activation=activation))

    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        return conv2d_weight(x, self.weight.value.shape, grad_output, *self.options)

    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        return conv2d_input(shape, self.weight.value, grad_output, *self.options)


class ConvPlans:
    """A convolution and what follows it, for inference: one plan for each shape and memory format.

    Parameters
    ----------
    conv : Conv2d
    norm : BatchNorm2d, optional
        Its running statistics are folded into weights and bias.
    activation : str, optional
    pool : Pool, optional
    """

    def __init__(
        self, conv: Conv2d, norm: BatchNorm2d | None = None, activation: str | None = None, pool: Pool | None = None
    ) -> None:
        self.conv, self.norm, self.activation, self.pool = conv, norm, activation, pool
        self._plans: dict[tuple, Callable[[Any], Any]] = {}
        self._made_from: list[tuple[Any, int]] = []  # the buffers and their versions

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the plan for arrays like `x`."""
        x = as_floats(x, "x", (4,), beside=self.conv.weight.value, what="weight")
        state = [*self.conv.named_state(), *(self.norm.named_state() if self.norm else ())]
        now = [(buffer, buffer.version) for _, buffer in state]  # a buffer equals itself alone
        if now != self._made_from:
            self._plans, self._made_from = {}, now
        plans, key = self._plans, (x.shape, backend(x).memory_format(x))
        found = plans.get(key)
        if found is None:
            if len(plans) >= _MOST_PLANS:
                plans.clear()
            found = plans[key] = self._plan(*key)
        return found(x)

    def _plan(self, shape: tuple[int, ...], format: Any) -> Callable[[Any], Any]:
        weight, bias = self.conv.weight.value, self.conv.bias_value
        if self.norm is not None:
            weight, bias = self.norm.folded(weight, bias)
        if device_of(weight) == "cuda":
            return partial(self._on_gpu, weight=weight, bias=bias)
        return plan(
            shape, weight, bias, *self.conv.options, memory_format=format, activation=self.activation, pool=self.pool
        )

    def _on_gpu(self, x: Any, *, weight: Any, bias: Any) -> Any:
        """The calls that a plan stands for: the kernels of a GPU are chosen and kept by the functions themselves."""
        output = conv2d(x, weight, bias, *self.conv.options, activation=self.activation)
        return output if self.pool is None else pooled(output, self.pool)

    def __getstate__(self) -> dict[str, Any]:
        # Plans hold compiled code, which cannot be copied or pickled; they are made again.
        return self.__dict__ | {"_plans": {}, "_made_from": []}


class ConvTranspose2d(Convolution):
    """2-D transposed convolution: the gradient of a convolution's input, as a layer.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, padding, output_padding, groups
        As in `fastconv.conv_transpose2d`.
    bias : bool, default True
    dilation : int or (int, int), default 1
    rng, dtype
        As in `Conv2d`.

    Attributes
    ----------
    weight : Parameter (in_channels, out_channels/groups, R, S)
    bias : Parameter (out_channels,) or None

    Raises
    ------
    ValueError
        If `groups` does not divide the channels, or a size is out of range.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, bias: bool = True, dilation: Any = 1, *,
        rng: np.random.Generator | None = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        in_channels, out_channels, groups, (height, width) = check_sizes(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        channels = out_channels // groups
        # The fan-in is that of the convolution whose gradient this is, as in torch.
        self.weight, self.bias = kaiming_parameters(
            (in_channels, channels, height, width), (out_channels,), channels * height * width,
            bias=bias, rng=rng, dtype=dtype,
        )  # fmt: skip
        self.options = (stride, padding, dilation, groups)
        self.output_padding = output_padding
        extra, steps = pair(output_padding, "output_padding", least=0), pair(stride, "stride", least=1)
        # The convolution of the result can have more rows and columns than the input, to no effect.
        self._beyond = (extra[0] // steps[0], extra[1] // steps[1])

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_channels, H, W) to (N, out_channels, Ho, Wo)."""
        x = as_floats(x, "x", (4,), beside=self.weight.value, what="weight")
        stride, padding, dilation, groups = self.options
        options = (stride, padding, self.output_padding, groups, dilation)
        return self.keep_input(x, conv_transpose2d(x, self.weight.value, self.bias_value, *options))

    def weight_gradient(self, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
        return conv2d_weight(grad_output, self.weight.value.shape, extended(x, *self._beyond), *self.options)

    def input_gradient(self, shape: tuple[int, ...], grad_output: np.ndarray) -> np.ndarray:
        grad = conv2d(grad_output, self.weight.value, None, *self.options)
        return grad if self._beyond == (0, 0) else grad[:, :, : shape[2], : shape[3]]


def check_sizes(
    in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int = 1
) -> tuple[int, int, int, Pair]:
    """Check what a convolution layer is made with; return its input and output channels, groups and kernel size.

    Raises
    ------
    TypeError, ValueError
        Names the argument that is no integer, or out of range.
    """
    given = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    in_channels, out_channels, groups = (integer(value, name, least=1) for name, value in given.items())
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups must divide in_channels {in_channels} and out_channels {out_channels}, got {shown(groups)}"
        )
    kernel = pair(kernel_size, "kernel_size", least=1)
    padding_pairs(padding, kernel, pair(stride, "stride", least=1), pair(dilation, "dilation", least=1))
    return in_channels, out_channels, groups, kernel

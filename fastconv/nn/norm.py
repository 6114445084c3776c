"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import as_floats
from fastconv.cpu.channels import channel_moments, channel_products, channel_sums, normalize, normalize_backward
from fastconv.nn.init import check_dtype
from fastconv.nn.module import Buffer, Module, Parameter


class BatchNorm2d(Module):
    """Batch normalisation of images (Ioffe and Szegedy, 2015, arXiv 1502.03167).

    ``(x - mean) / sqrt(var + eps) * weight + bias`` for each channel, with mean and (biased) variance of the
    batch in training, and their running averages, which are constants to `backward`, in eval mode. Sums are in
    float64.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float, default 1e-5
    momentum : float or None, default 0.1
        Weight of the newest batch in the running averages (of the mean and the unbiased variance); None
        weighs all batches alike.
    affine : bool, default True
        Whether there are a weight and a bias.
    track_running_stats : bool, default True
        If False, the statistics are those of the batch in eval mode too.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight, bias : Parameter (num_features,) or None
    running_mean, running_var, num_batches_tracked : Buffer or None
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, *, dtype: str = "float32",
    ) -> None:  # fmt: skip
        check_dtype(dtype)
        self.num_features, self.eps, self.momentum, self.dtype = num_features, eps, momentum, np.dtype(dtype)
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.running_mean = Buffer(np.zeros(num_features, dtype)) if track_running_stats else None
        self.running_var = Buffer(np.ones(num_features, dtype)) if track_running_stats else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if track_running_stats else None

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, num_features, H, W), at least two pixels for each channel where the batch's own statistics count."""
        x = self._checked(x)
        constant = self.running_mean is not None and not self.training
        mean, var = self._running_statistics() if constant else self._batch_statistics(x)
        deviation = np.sqrt(var + self.eps)
        shift = np.zeros(self.num_features) if self.bias is None else self.bias.value
        output = normalize(x, mean, self._weight / deviation, shift)
        needs_x = not constant or (self.weight is not None and self.weight.requires_grad)
        self.keep(x if needs_x else None, mean, deviation, constant, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`. With d = x - mean and s = sqrt(var + eps), over the M pixels of a channel,

        ``grad_x = weight / s * (g - sum(g) / M - d / s**2 * sum(g * d) / M)``;

        with running averages, in eval mode, it is ``weight / s * g``.
        """
        x, mean, deviation, constant = self.take(grad_output)
        grad_output = as_floats(grad_output, "grad_output")
        total: Any = None
        product: Any = None
        if x is not None and (input_grad or self.trainable):
            total, product = channel_products(x, grad_output, mean)
        elif self.trainable:
            total = channel_sums(grad_output)
        if self.weight is not None and self.weight.requires_grad and product is not None:
            self.weight.accumulate((product / deviation).astype(self.dtype))
        if self.bias is not None and self.bias.requires_grad:
            self.bias.accumulate(total.astype(self.dtype))
        if not input_grad:
            return None
        scale = self._weight / deviation
        if constant:
            return normalize(grad_output, np.zeros_like(mean), scale, np.zeros_like(mean))
        pixels = x.size // x.shape[1]
        along, shift = -scale * product / (deviation**2 * pixels), -scale * total / pixels
        return normalize_backward(x, grad_output, mean, along, scale, shift)

    def folded(self, weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Weights (K, C/groups, R, S) and bias (K,) of a convolution that does this normalisation too, as in eval."""
        mean, var = self._running_statistics()
        scale = self._weight / np.sqrt(var + self.eps)
        shift = ((0 if bias is None else bias) - mean) * scale
        shift = shift + (0 if self.bias is None else self.bias.value)
        return (weight * scale[:, None, None, None]).astype(weight.dtype), shift.astype(weight.dtype)

    @property
    def _weight(self) -> np.ndarray:
        """The weight in float64, 1 if there is none."""
        return np.ones(self.num_features) if self.weight is None else self.weight.value.astype(np.float64)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = as_floats(x, "x", (4,))
        if x.dtype != self.dtype:
            raise TypeError(f"x must have the layer's dtype {self.dtype}, got {x.dtype}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels, got shape {x.shape}")
        return x

    def _running_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Running averages of mean and variance, in float64."""
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean.value.astype(np.float64), self.running_var.value.astype(np.float64)

    def _batch_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the batch; in training, the running averages move towards them."""
        pixels = x.size // x.shape[1]
        if pixels < 2:
            raise ValueError(f"x must have at least two pixels for each channel to normalise by, got shape {x.shape}")
        mean, var = channel_moments(x)
        if self.training and self.running_mean and self.running_var and self.num_batches_tracked:
            self.num_batches_tracked.value = self.num_batches_tracked.value + 1
            share = 1 / int(self.num_batches_tracked.value) if self.momentum is None else self.momentum
            unbiased = var * pixels / (pixels - 1)
            for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                buffer.value = ((1 - share) * buffer.value + share * new).astype(self.dtype)
        return mean, var

"""Batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.arrays import check_room
from fastconv.nn.backend import as_floats, backend, dtype_of
from fastconv.nn.init import check_dtype
from fastconv.nn.module import Buffer, Module, Parameter
from fastconv.sizes import flag, integer, real


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
        num_features, eps = integer(num_features, "num_features", least=1), real(eps, "eps", 0)
        check_room(8 * num_features, (num_features,))
        momentum = None if momentum is None else real(momentum, "momentum", 0, 1)
        affine, track_running_stats = flag(affine, "affine"), flag(track_running_stats, "track_running_stats")
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
        output = backend(x).normalize(x, mean, var, *self._affine, self.eps)
        if self.training and self.running_mean is not None:
            self._move_running(x, mean, var)  # not before the output is there, for which memory may be lacking
        needs_x = not constant or (self.weight is not None and self.weight.requires_grad)
        self.keep(x if needs_x else None, mean, var, constant, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """`Module.backward`. With d = x - mean and s = sqrt(var + eps), over the M pixels of a channel,

        ``grad_x = weight / s * (g - sum(g) / M - d / s**2 * sum(g * d) / M)``;

        with running averages, in eval mode, it is ``weight / s * g``.
        """
        x, mean, var, constant = self.take(grad_output)
        grad_output = as_floats(grad_output, "grad_output")
        ops = backend(grad_output)
        weight, _ = self._affine
        along: Any = None
        total: Any = None
        if self.trainable or (input_grad and not constant):
            along, total = ops.norm_sums(x, grad_output, mean, var, self.eps)
        if self.weight is not None and self.weight.requires_grad and along is not None:
            self.weight.accumulate(ops.cast(along, grad_output))
        if self.bias is not None and self.bias.requires_grad:
            self.bias.accumulate(ops.cast(total, grad_output))
        if not input_grad:
            return None
        if constant:
            return ops.normalize(grad_output, None, var, weight, None, self.eps)
        return ops.norm_input(x, grad_output, mean, var, weight, along, total, self.eps)

    def folded(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """Weights (K, C/groups, R, S) and bias (K,) of a convolution that does this normalisation too, as in eval."""
        assert self.running_mean is not None and self.running_var is not None
        statistics = self.running_mean.value, self.running_var.value
        return backend(weight).fold(weight, bias, *statistics, *self._affine, self.eps)

    @property
    def _affine(self) -> tuple[Any, Any]:
        """Weight and bias, None for what there is not."""
        return self.weight and self.weight.value, self.bias and self.bias.value

    def _checked(self, x: np.ndarray) -> np.ndarray:
        state = self.weight or self.running_mean
        x = as_floats(x, "x", (4,), beside=state and state.value, what="the layer")
        if (got := dtype_of(x)) != self.dtype:
            raise TypeError(f"x must have the layer's dtype {self.dtype}, got {got}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels, got shape {x.shape}")
        return x

    def _running_statistics(self) -> tuple[Any, Any]:
        """Running averages of mean and variance, as `normalize` takes them."""
        assert self.running_mean is not None and self.running_var is not None
        mean, var = self.running_mean.value, self.running_var.value
        return backend(mean).constants(mean, var)

    def _batch_statistics(self, x: Any) -> tuple[Any, Any]:
        """Mean and variance of the batch."""
        pixels = math.prod(x.shape) // x.shape[1]
        if pixels < 2:
            raise ValueError(
                f"x must have at least two pixels for each channel to normalise by, got shape {tuple(x.shape)}"
            )
        return backend(x).moments(x)

    def _move_running(self, x: Any, mean: Any, var: Any) -> None:
        """Move the running averages towards the statistics of a batch."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.value = self.num_batches_tracked.value + 1
        share = 1 / int(self.num_batches_tracked.value) if self.momentum is None else self.momentum
        with self.running_mean.edit() as running_mean, self.running_var.edit() as running_var:
            pixels = math.prod(x.shape) // x.shape[1]
            backend(x).move_running(running_mean, running_var, mean, var, share, pixels)

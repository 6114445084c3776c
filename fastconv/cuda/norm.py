"""Batch normalisation on a GPU: statistics of channels, normalisation, and its gradients.

Images are (N, C, H, W) with any strides, vectors (C,) without gaps. Functions write where they are told to, on the
stream of the first array, and do not wait. What depends on the channel alone is computed in float64, and so are sums:
a block adds up a piece of some channels (`fastconv.cuda.channels`) by halves, and a second kernel merges the pieces
in the same order in every run.
"""

from __future__ import annotations

from functools import lru_cache

from fastconv.cuda.arrays import DeviceArray, library_of
from fastconv.cuda.channels import THREADS, Pieces
from fastconv.cuda.geometry import Steps
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.norm_kernels import (
    Given,
    fold_kernel,
    input_gradient_kernel,
    merge_moments_kernel,
    merge_products_kernel,
    merge_sums_kernel,
    normalize_kernel,
    piece_moments_kernel,
    piece_products_kernel,
    piece_sums_kernel,
    update_running_kernel,
)


def statistics(x: DeviceArray, mean: DeviceArray, var: DeviceArray) -> None:
    """Mean and (biased) variance of each channel.

    A piece has a mean of its own and, as it is read a second time, squared distances from it; pieces are merged as
    Chan, Golub and LeVeque (1979) do, so a mean far from zero costs no digits of the variance.

    Parameters
    ----------
    x : DeviceArray (N, C, H, W)
    mean, var : DeviceArray (C,), float32 or float64
        The results.

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    _check_vectors(x.shape[1], mean=mean, var=var)
    pieces = Pieces.of(x.shape, x.strides)
    partial = _partial(x, pieces)
    _start(piece_moments_kernel(x.dtype), pieces.blocks, (pieces, Steps(*x.strides)), (x, *partial), x.stream)
    merging = pieces.merging
    _start(merge_moments_kernel(mean.dtype), merging.tiles, (merging,), (*partial, mean, var), x.stream)


def channel_sums(x: DeviceArray, sums: DeviceArray) -> None:
    """The sum over the pixels of each channel.

    Parameters
    ----------
    x : DeviceArray (N, C, H, W)
    sums : DeviceArray (C,), float32 or float64
        The result.

    Raises
    ------
    ValueError
        If the shape of `sums` does not fit.
    """
    _check_vectors(x.shape[1], sums=sums)
    pieces = Pieces.of(x.shape, x.strides)
    partial, _ = _partial(x, pieces)
    _start(piece_sums_kernel(x.dtype), pieces.blocks, (pieces, Steps(*x.strides)), (x, partial), x.stream)
    merging = pieces.merging
    _start(merge_sums_kernel(sums.dtype), merging.tiles, (merging,), (partial, sums), x.stream)


def fold(
    weight: DeviceArray, bias: DeviceArray | None, mean: DeviceArray, var: DeviceArray, scale: DeviceArray | None,
    shift: DeviceArray | None, out_weight: DeviceArray, out_bias: DeviceArray, eps: float = 1e-5,
) -> None:  # fmt: skip
    """Weights and bias of a convolution that does a normalisation with constant statistics too.

    Parameters
    ----------
    weight, out_weight : DeviceArray (K, C/groups, R, S), contiguous
        `out_weight` is written, and so is `out_bias`.
    bias, mean, var, scale, shift, out_bias : DeviceArray (K,) of the dtype of `weight`
        Bias of the convolution; statistics, weight and bias of the normalisation. All but the statistics may be None.
    eps : float, default 1e-5

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    filters = weight.shape[0]
    vectors = {"mean": mean, "var": var, "out_bias": out_bias, **_given(bias=bias, scale=scale, shift=shift)}
    _check_vectors(filters, weight.dtype, **vectors)
    given = Given(1, int(scale is not None), int(shift is not None))
    values = (weight.size // filters, filters, int(bias is not None), given, float(eps))
    arrays = (weight, bias, mean, var, scale, shift, out_weight, out_bias)
    _start(fold_kernel(weight.dtype), -(-weight.size // THREADS), values, arrays, weight.stream)


def update_running(
    running_mean: DeviceArray, running_var: DeviceArray, mean: DeviceArray, var: DeviceArray, share: float, pixels: int
) -> None:
    """Move running averages towards the `statistics` of a batch, its variance made unbiased.

    Parameters
    ----------
    running_mean, running_var : DeviceArray (C,), float32 or float64
        Become ``(1 - share) * old + share * new``.
    mean, var : DeviceArray (C,), float32 or float64
    share : float
        Weight of the batch; torch's momentum.
    pixels : int
        Of a channel in the batch, at least 2.

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    _check_vectors(mean.size, running_mean=running_mean, running_var=running_var)
    _check_vectors(mean.size, mean=mean, var=var)
    kernel = update_running_kernel(running_mean.dtype, mean.dtype)
    values = (mean.size, float(share), pixels / (pixels - 1))
    arrays = (running_mean, running_var, mean, var)
    _start(kernel, -(-mean.size // THREADS), values, arrays, running_mean.stream)


def normalize(
    x: DeviceArray, mean: DeviceArray | None, var: DeviceArray, weight: DeviceArray | None, bias: DeviceArray | None,
    out: DeviceArray, eps: float = 1e-5,
) -> None:  # fmt: skip
    """``(x - mean) / sqrt(var + eps) * weight + bias``.

    With the gradient of the result as `x`, and neither mean nor bias, it is the gradient of the input where mean and
    variance are constants, as the running averages are.

    Parameters
    ----------
    x, out : DeviceArray (N, C, H, W)
        `out` is written.
    mean, var : DeviceArray (C,), float32 or float64
        Without a mean it is 0.
    weight, bias : DeviceArray (C,) of the dtype of `x`, optional
    eps : float, default 1e-5

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    _check_images(x, out=out)
    _check_vectors(x.shape[1], **_given(mean=mean, var=var))
    _check_vectors(x.shape[1], x.dtype, **_given(weight=weight, bias=bias))
    pieces = Pieces.of(x.shape, x.strides)
    given = Given(int(mean is not None), int(weight is not None), int(bias is not None))
    values = (pieces, Steps(*x.strides), Steps(*out.strides), given, float(eps))
    _start(normalize_kernel(x.dtype, var.dtype), pieces.blocks, values, (x, mean, var, weight, bias, out), x.stream)


def parameter_gradients(
    x: DeviceArray, grad_output: DeviceArray, mean: DeviceArray, var: DeviceArray, grad_weight: DeviceArray,
    grad_bias: DeviceArray, eps: float = 1e-5,
) -> None:  # fmt: skip
    """Sums over the pixels of each channel of ``grad_output * (x - mean) / sqrt(var + eps)`` and of `grad_output`.

    Parameters
    ----------
    x, grad_output : DeviceArray (N, C, H, W)
    mean, var : DeviceArray (C,), float32 or float64
    grad_weight, grad_bias : DeviceArray (C,), float32 or float64
        The results.
    eps : float, default 1e-5

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    _check_images(x, grad_output=grad_output)
    _check_vectors(x.shape[1], mean=mean, var=var)
    _check_vectors(x.shape[1], grad_weight=grad_weight, grad_bias=grad_bias)
    pieces = Pieces.of(x.shape, x.strides)
    partial = _partial(x, pieces)
    values = (pieces, Steps(*x.strides), Steps(*grad_output.strides))
    _start(
        piece_products_kernel(x.dtype, mean.dtype), pieces.blocks, values, (x, grad_output, mean, *partial), x.stream
    )
    merging, kernel = pieces.merging, merge_products_kernel(var.dtype, grad_weight.dtype)
    _start(kernel, merging.tiles, (merging, float(eps)), (*partial, var, grad_weight, grad_bias), x.stream)


def input_gradient(
    x: DeviceArray, grad_output: DeviceArray, mean: DeviceArray, var: DeviceArray, weight: DeviceArray | None,
    grad_weight: DeviceArray, grad_bias: DeviceArray, out: DeviceArray, eps: float = 1e-5,
) -> None:  # fmt: skip
    """Gradient of the input where mean and variance are those of the batch.

    With s = sqrt(var + eps), over the M pixels of a channel, ``weight / s * (grad_output - grad_bias / M - (x - mean) /
    s * grad_weight / M)``.

    Parameters
    ----------
    x, grad_output, out : DeviceArray (N, C, H, W)
        `out` is written.
    mean, var : DeviceArray (C,), float32 or float64
    weight : DeviceArray (C,) of the dtype of `x`, optional
    grad_weight, grad_bias : DeviceArray (C,), float32 or float64
        From `parameter_gradients`.
    eps : float, default 1e-5

    Raises
    ------
    TypeError, ValueError
        Names the argument whose dtype, or whose shape, does not fit.
    """
    _check_images(x, grad_output=grad_output, out=out)
    _check_vectors(x.shape[1], mean=mean, var=var)
    _check_vectors(x.shape[1], grad_weight=grad_weight, grad_bias=grad_bias)
    _check_vectors(x.shape[1], x.dtype, **_given(weight=weight))
    pieces = Pieces.of(x.shape, x.strides)
    strides = (Steps(*x.strides), Steps(*grad_output.strides), Steps(*out.strides))
    values = (pieces, *strides, int(weight is not None), float(eps))
    arrays = (x, grad_output, mean, var, weight, grad_weight, grad_bias, out)
    _start(input_gradient_kernel(x.dtype, mean.dtype, grad_weight.dtype), pieces.blocks, values, arrays, x.stream)


def _given(**vectors: DeviceArray | None) -> dict[str, DeviceArray]:
    return {name: vector for name, vector in vectors.items() if vector is not None}


def _check_images(x: DeviceArray, **others: DeviceArray) -> None:
    """Raise unless the others are as `x`."""
    for name, image in others.items():
        if image.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {image.dtype}")
        if image.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {x.shape}, got {image.shape}")


def _check_vectors(channels: int, dtype: str | None = None, /, **vectors: DeviceArray) -> None:
    """Raise unless each vector has so many numbers, side by side, and all have the (or one) dtype."""
    for name, vector in vectors.items():
        dtype = dtype or vector.dtype
        if vector.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {vector.dtype}")
        if vector.shape != (channels,):
            raise ValueError(f"{name} must have shape {(channels,)}, got {vector.shape}")
        if vector.size > 1 and vector.strides != (1,):
            raise ValueError(f"{name} must have stride 1, got {vector.strides[0]}; copy it first")


def _partial(x: DeviceArray, pieces: Pieces) -> tuple[DeviceArray, DeviceArray]:
    """Room for two numbers for each piece of each channel, (pieces, C) each."""
    library, shape = library_of(x.owner), (pieces.per_tile, pieces.channels)
    assert library is not None
    first, second = (library.new(shape, (pieces.channels, 1), "float64", x.owner) for _ in range(2))
    return library.describe(first), library.describe(second)


def _start(kernel: Kernel, blocks: int, values: tuple, arrays: tuple[DeviceArray | None, ...], stream: int) -> None:
    _launch(kernel, blocks, values)(arrays, stream)


@lru_cache(maxsize=1024)
def _launch(kernel: Kernel, blocks: int, values: tuple) -> Launch:
    return Launch(kernel, (blocks,), values)

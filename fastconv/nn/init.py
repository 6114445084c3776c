"""Where layers draw their first values, and the random numbers of dropout, from."""

from __future__ import annotations

import math

import numpy as np

from fastconv.arrays import as_dtype, check_room
from fastconv.nn.module import Parameter
from fastconv.sizes import flag, integer, shown


class _Default:
    generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Seed the generator of all layers that were not given one of their own.

    Parameters
    ----------
    seed : int
        Not negative. The same seed gives the same values, whatever the dtype (up to rounding) and the threads.
    """
    _Default.generator = np.random.default_rng(integer(seed, "seed", least=0, most=math.inf))


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """`rng`, or the default generator; TypeError for anything else."""
    if rng is None:
        return _Default.generator
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator or None, got {shown(rng)}")
    return rng


def check_dtype(dtype: str) -> None:
    """Raise a TypeError unless `dtype` is float32 or float64."""
    as_dtype(dtype)


def kaiming_parameters(
    weight_shape: tuple[int, ...], bias_shape: tuple[int, ...], fan_in: int, *, bias: bool,
    rng: np.random.Generator | None, dtype: str,
) -> tuple[Parameter, Parameter | None]:  # fmt: skip
    """Weight and bias (None if `bias` is False) as torch's layers start with.

    ``kaiming_uniform(a=sqrt(5))`` (He et al., 2015, arXiv 1502.01852) comes down to a uniform distribution
    between -1/sqrt(fan_in) and 1/sqrt(fan_in), where `fan_in` counts the inputs of one output; the bias has
    the same.
    """
    check_dtype(dtype)
    bias = flag(bias, "bias")
    for shape in (weight_shape, bias_shape):
        check_room(math.prod(shape) * 8, shape)  # they are drawn in float64
    bound, random = 1 / math.sqrt(fan_in), generator(rng)
    weight = Parameter(random.uniform(-bound, bound, weight_shape).astype(dtype))
    return weight, Parameter(random.uniform(-bound, bound, bias_shape).astype(dtype)) if bias else None

"""Units of 16 bytes, by which tensor cores' kernels read images: neighbouring channels, or pixels of few channels.

Filled up with zeros, a unit of 8 channels would be mostly empty for a photograph of three. So a unit holds all channels
of several pixels of a row there, and a convolution of the units, of fewer taps, computes the same: 7 taps of 3 channels
are 4 units instead of 7. Padding along rows becomes part of the units. Where the last unit of a row of taps has a pixel
that no tap reads, a second copy of all units, for that last one, has zero there: an infinity would make NaN of its zero
weight.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from fastconv.problem import ConvProblem


def width_of(problem: ConvProblem) -> int:
    """Elements of a unit."""
    return 16 // problem.itemsize


def padded_channels(problem: ConvProblem) -> int:
    """Channels of a group, filled up to whole units."""
    return whole_units(problem, problem.weight_shape[1])


def whole_units(problem: ConvProblem, channels: int) -> int:
    """A number of channels, filled up to whole units."""
    width = width_of(problem)
    return -(-channels // width) * width


class Join(NamedTuple):
    """How pixels of a row share units.

    Attributes
    ----------
    pixels, apart, step : int
        Those of a unit, the distance from one to the next, and that from unit to unit.
    units, last : int
        Of a row of taps, and how many pixels of the last of these taps read.
    """

    pixels: int
    apart: int
    step: int
    units: int
    last: int


@lru_cache
def join_of(problem: ConvProblem) -> Join | None:
    """That of images of few channels, or None: as few pixels as make a row of taps fewest units."""
    taps, fitting = problem.kernel_size[1], width_of(problem) // problem.weight_shape[1]
    if problem.direction == "backward_input" or min(fitting, taps) < 2:
        return None
    units = -(-taps // fitting)
    pixels, apart, stride = -(-taps // units), problem.dilation[1], problem.stride[1]
    step = stride if units == 1 else math.gcd(stride, pixels * apart)
    return Join(pixels, apart, step, units, taps - (units - 1) * pixels)


@lru_cache
def joined(problem: ConvProblem) -> ConvProblem:
    """The convolution of units that a convolution of few channels becomes; any other as it is."""
    join = join_of(problem)
    if join is None:
        return problem
    dilation = join.pixels * join.apart // join.step if join.units > 1 else 1
    stride = problem.stride[1] // join.step
    width = (problem.conv_size[1] - 1) * stride + (join.units - 1) * dilation + 1
    return replace(
        problem, in_channels=problem.in_channels * join.pixels, in_size=(problem.in_size[0], width),
        kernel_size=(problem.kernel_size[0], join.units), stride=(problem.stride[0], stride),
        padding=(problem.padding[0], (0, 0)), dilation=(problem.dilation[0], dilation),
    )  # fmt: skip


def tail_of(problem: ConvProblem) -> int:
    """Units of a row from one for any taps to its copy for the last taps; 0 if there is no such copy.

    Gradients of weights need none: what no tap reads has sums of its own, which nobody reads.
    """
    join = join_of(problem)
    needed = join is not None and join.last < join.pixels and problem.direction == "forward"
    return joined(problem).in_size[1] if needed else 0

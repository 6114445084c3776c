"""Units of 16 bytes, by which tensor cores' kernels read images: neighbouring channels, or pixels of few channels.

Filled up with zeros, a unit of 8 channels would be mostly empty for a photograph of three. So a unit holds all channels
of several pixels of a row there, and a convolution of the units, of fewer taps, computes the same: 7 taps of 3 channels
are 4 units instead of 7. Padding along rows becomes part of the units.
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
    """Pixels of a row that share a unit, the distance from one to the next, and that from unit to unit."""

    pixels: int = 1
    apart: int = 1
    step: int = 1


@lru_cache
def join_of(problem: ConvProblem) -> Join:
    """That of a forward convolution: as few pixels as make a row of taps fewest units; one, of many channels."""
    taps, fitting = problem.kernel_size[1], width_of(problem) // problem.weight_shape[1]
    if problem.direction != "forward" or min(fitting, taps) < 2:
        return Join()
    units = -(-taps // fitting)
    pixels, apart, stride = -(-taps // units), problem.dilation[1], problem.stride[1]
    return Join(pixels, apart, stride if units == 1 else math.gcd(stride, pixels * apart))


@lru_cache
def joined(problem: ConvProblem) -> ConvProblem:
    """The convolution of units that a convolution of few channels becomes; any other as it is."""
    join = join_of(problem)
    if join.pixels == 1:
        return problem
    units = -(-problem.kernel_size[1] // join.pixels)
    dilation = join.pixels * join.apart // join.step if units > 1 else 1
    stride = problem.stride[1] // join.step
    width = (problem.conv_size[1] - 1) * stride + (units - 1) * dilation + 1
    return replace(
        problem, in_channels=problem.in_channels * join.pixels, in_size=(problem.in_size[0], width),
        kernel_size=(problem.kernel_size[0], units), stride=(problem.stride[0], stride),
        padding=(problem.padding[0], (0, 0)), dilation=(problem.dilation[0], dilation),
    )  # fmt: skip

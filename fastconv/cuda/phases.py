"""Phases of a stride: the gradient of an input as convolutions with stride 1 of the output's gradient.

The pixels ``start, start + stride, ...`` along an axis were read by the taps r with
``(start + padding - r*dilation) % stride == 0``, which are evenly spaced, and by outputs that move on with the pixel,
and back with the tap. With stride 1 there is one phase; pixels that no tap reaches get zero, or the bias of a
transposed convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

_MOST = 64


@dataclass(frozen=True)
class Axis:
    """One phase along one axis.

    Attributes
    ----------
    start, step, pixels : int
        Its first pixel of the input, from one to the next, and how many there are.
    taps : range
        Kernel elements that reached them.
    output, spacing : int
        Pixel i was read with the j-th of the taps by output ``i + output - j*spacing``, if there is one.
    """

    start: int
    step: int
    pixels: int
    taps: range
    output: int
    spacing: int


def split_axis(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> list[Axis]:
    """The phases of one axis."""
    common = math.gcd(dilation, stride)
    found = []
    for start in range(min(stride, size)):
        ahead = start + padding[0]
        reaching = (r for r in range(min(kernel, stride // common)) if (ahead - r * dilation) % stride == 0)
        first = next(reaching, kernel)
        taps, pixels = range(first, kernel, stride // common), -(-(size - start) // stride)
        found.append(Axis(start, stride, pixels, taps, (ahead - first * dilation) // stride, dilation // common))
    return found


def phases(problem: ConvProblem) -> list[tuple[Axis, Axis]]:
    """Each phase of the rows with each of the columns."""
    sizes = (problem.in_size, problem.kernel_size, problem.stride, problem.padding, problem.dilation)
    rows, columns = (split_axis(*axis) for axis in zip(*sizes, strict=True))
    return list(product(rows, columns))


def too_many(problem: ConvProblem) -> str | None:
    """Why the phases of a problem are too many, or None if they are not."""
    found = math.prod(map(min, problem.stride, problem.in_size))
    return f"its stride has more than {_MOST} phases, each of which is a launch" if found > _MOST else None

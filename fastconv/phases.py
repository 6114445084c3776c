"""The gradient of an input as convolutions of stride 1: one for each phase of the stride.

The pixels ``phase, phase + stride, ...`` along an axis were read by the taps r with
``(phase + padding - r*dilation) % stride == 0``, which are evenly spaced, and by outputs that move on with
the pixel. So the gradient at the pixels of one phase is the convolution of the output's gradient with the
taps of that phase, in reverse order and with the roles of the channels exchanged. With stride 1 there is one
phase; pixels of a phase that has no taps get zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from fastconv.problem import ConvProblem
from fastconv.sizes import Pair


@dataclass(frozen=True)
class Axis:
    """One phase along one axis.

    Attributes
    ----------
    start, step, pixels : int
        Its first pixel of the input, from one to the next, and how many there are.
    taps : range
        Kernel elements in the order of the convolution.
    outputs : (int, int)
        The outputs that it reads, first and one past the last.
    padding : (int, int)
    dilation : int
    """

    start: int
    step: int
    pixels: int
    taps: range
    outputs: Pair
    padding: Pair
    dilation: int


def taps_of(start: int, kernel: int, stride: int, padding: Pair, dilation: int) -> tuple[range, range]:
    """The taps that read the pixels start, start + stride, ..., and the outputs that read the first with each."""
    divisor, ahead = math.gcd(dilation, stride), start + padding[0]
    apart, spacing = stride // divisor, dilation // divisor
    first = next((tap for tap in range(min(kernel, apart)) if (ahead - tap * dilation) % stride == 0), kernel)
    taps = range(first, kernel, apart)
    output = (ahead - first * dilation) // stride
    return taps, range(output, output - len(taps) * spacing, -spacing)


def split_axis(
    size: int, out: int, kernel: int, stride: int, padding: Pair, dilation: int, only_reached: bool = False
) -> list[Axis]:
    """The phases of one axis, or only those to which a tap belongs: of a large stride, few of many."""
    found = []
    starts: Iterable[int] = range(min(stride, size))
    if only_reached:
        reached = {(tap * dilation - padding[0]) % stride for tap in range(min(kernel, stride))}
        starts = sorted(start for start in reached if start < size)
    for start in starts:
        pixels = -(-(size - start) // stride)
        taps, outputs = (each[::-1] for each in taps_of(start, kernel, stride, padding, dilation))
        # Pixel i of the phase was read with the j-th of these taps by the j-th of these outputs, moved on by i.
        inside = (max(0, outputs[0]), min(out, outputs[-1] + pixels)) if taps else (0, 0)
        if inside[0] >= inside[1]:
            found.append(Axis(start, stride, pixels, range(0), (0, 0), (0, 0), 1))
            continue
        pads = max(0, -outputs[0]), max(0, outputs[-1] + pixels - out)
        found.append(Axis(start, stride, pixels, taps, inside, pads, outputs.step))
    return found


@dataclass(frozen=True)
class Phase:
    """The pixels of one phase of the rows and one of the columns; `problem` is None if no tap reaches them."""

    rows: Axis
    columns: Axis
    problem: ConvProblem | None


def phases(problem: ConvProblem) -> list[Phase]:
    """The phases of the gradient of the input, each with its forward convolution; that of the most taps first."""
    return _phases(problem, only_reached=False)


def reached_phases(problem: ConvProblem) -> list[tuple[Phase, ConvProblem]]:
    """The phases that have a convolution, and that: at most as many as there are taps. Other pixels get zero."""
    return [(phase, phase.problem) for phase in _phases(problem, only_reached=True) if phase.problem]


def _phases(problem: ConvProblem, only_reached: bool) -> list[Phase]:
    sizes = (problem.in_size, problem.conv_size, problem.kernel_size)
    walks = zip(*sizes, problem.stride, problem.padding, problem.dilation, strict=True)
    split = partial(split_axis, only_reached=only_reached)
    axes = [split(*walk) for walk in walks]
    found = [Phase(rows, columns, _forward(problem, rows, columns)) for rows, columns in product(*axes)]
    return sorted(found, key=lambda phase: -phase.problem.flops if phase.problem else 0)


def _forward(problem: ConvProblem, rows: Axis, columns: Axis) -> ConvProblem | None:
    if not rows.taps or not columns.taps:
        return None
    return replace(
        problem, direction="forward", in_channels=problem.out_channels, out_channels=problem.in_channels,
        in_size=(rows.outputs[1] - rows.outputs[0], columns.outputs[1] - columns.outputs[0]),
        kernel_size=(len(rows.taps), len(columns.taps)), stride=(1, 1), padding=(rows.padding, columns.padding),
        dilation=(rows.dilation, columns.dilation),
    )  # fmt: skip

"""Strips: a few neighbouring pixels of a row of the result, which one thread computes in registers.

Where taps are neighbours too, a thread loads what they read of a row once, as a window: taps find each other's pixels
there. Other kernels, dilated or wide, walk tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fastconv.algorithms import Params
from fastconv.cuda.elements import divided
from fastconv.cuda.strip_access import Access
from fastconv.cuda.toolkit import device, float32, int32, uint32
from fastconv.phases import Axis, phases
from fastconv.problem import ConvProblem

_MOST_SPAN = 7  # taps of a window
_MOST_STRIDE = 2


@dataclass(frozen=True)
class Walk:
    """How windows walk along one axis: result i and the j-th of the taps read ``i*stride - before + j*dilation``.

    Attributes
    ----------
    inputs, outputs : int
        Sizes of what is read, and of the result or the phase of it.
    stride, before, dilation : int
    taps : range
        Kernel elements, in the order in which they lie over the input.
    start, step : int
        Where the first of the results is written, and the distance to the next.
    """

    inputs: int
    outputs: int
    stride: int
    before: int
    dilation: int
    taps: range
    start: int = 0
    step: int = 1


Walks = tuple[Walk, Walk]


def forward(problem: ConvProblem) -> Walks:
    """How the forward convolution walks along rows and columns."""
    axes = zip(
        problem.in_size, problem.conv_size, problem.stride, (pair[0] for pair in problem.padding), problem.dilation,
        map(range, problem.kernel_size), strict=True,
    )  # fmt: skip
    rows, columns = (Walk(*axis) for axis in axes)
    return rows, columns


def _of_phase(axis: Axis, inputs: int) -> Walk:
    """How a phase walks along all outputs of an axis."""
    before = axis.padding[0] - axis.outputs[0]
    return Walk(inputs, axis.pixels, 1, before, axis.dilation, axis.taps, axis.start, axis.step)


def is_backward(problem: ConvProblem) -> bool:
    """Whether the gradient of the input is what is computed."""
    return problem.direction == "backward_input"


def backward(problem: ConvProblem) -> Iterator[Walks]:
    """How the phases of the input's gradient walk over the gradient of the output."""
    height, width = problem.conv_size
    return ((_of_phase(phase.rows, height), _of_phase(phase.columns, width)) for phase in phases(problem))


class StripGeometry(NamedTuple):
    """Sizes and steps of two walks, strides in elements.

    Tap (r, s) of the walk has its weights at ``w_first + r*w_row + s*w_column``, pixel (i, j) its result at
    ``out_first + i*out_row + j*out_column``. `lanes` are what a strip is computed for, by one thread each.
    """

    batch: int
    lanes: int
    strips: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    taps_h: int
    taps_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    x_batch: int
    x_channel: int
    x_row: int
    x_column: int
    out_first: int
    out_batch: int
    out_channel: int
    out_row: int
    out_column: int
    w_first: int
    w_row: int
    w_column: int
    has_bias: int
    channels_last: int


@dataclass(frozen=True)
class Strip:
    """What a kernel is compiled for.

    Attributes
    ----------
    pixels : int
        Of a thread.
    span, stride : int
        Taps of a window, and pixels of it from one result to the next. Both are 1 where taps are taken one by one.
    """

    pixels: int
    span: int
    stride: int

    @classmethod
    def of(cls, pixels: int, columns: Walk) -> Strip:
        """That of a walk along rows."""
        taps = len(columns.taps)
        if columns.dilation == 1 and 1 < taps <= _MOST_SPAN and columns.stride <= _MOST_STRIDE:
            return cls(pixels, taps, columns.stride)
        return cls(pixels, 1, 1)

    @property
    def columns(self) -> int:
        """Pixels of a window."""
        return (self.pixels - 1) * self.stride + self.span

    def geometry(
        self, problem: ConvProblem, walks: Walks, lanes: int, x: tuple[int, ...], out: tuple[int, ...],
        weight: tuple[int, int],
    ) -> StripGeometry:  # fmt: skip
        """From strides in elements, of what is read, of the result, and of rows and columns of packed weights."""
        rows, columns = walks
        taps = (rows.taps, columns.taps)
        numbers: tuple[int, ...] = (
            problem.batch, lanes, -(-columns.outputs // self.pixels), rows.inputs, columns.inputs, rows.outputs,
            columns.outputs, *map(len, taps), rows.stride, columns.stride, rows.before, columns.before, rows.dilation,
            columns.dilation, *x, rows.start * out[2] + columns.start * out[3], out[0], out[1], rows.step * out[2],
            columns.step * out[3], sum(t.start * step for t, step in zip(taps, weight, strict=True)),
            *(t.step * step for t, step in zip(taps, weight, strict=True)), int(problem.bias),
            int(problem.memory_format == "channels_last"),
        )  # fmt: skip
        return StripGeometry(*numbers)


def choices(problem: ConvProblem, pixels: tuple[int, ...]) -> list[Params]:
    """Of numbers of pixels, most first, those that are less than twice the result's width, or the least."""
    width = -(-problem.in_size[1] // problem.stride[1]) if is_backward(problem) else problem.conv_size[1]
    return [{"strip": strip} for strip in pixels if strip < 2 * width or strip == pixels[-1]]


def aligned(*steps: int) -> bool:
    """Whether vectors of 4 elements may lie so far apart."""
    return all(step % 4 == 0 for step in steps)


@device
def strip_of(index, g):
    """Lane, strip, row and image by the number of a strip: threads that follow each other read neighbours."""
    if g.channels_last:
        rest, lane = divided(index, g.lanes)
        rest, strip = divided(rest, g.strips)
        n, i = divided(rest, g.out_height)
    else:
        rest, strip = divided(index, g.strips)
        rest, i = divided(rest, g.out_height)
        n, lane = divided(rest, g.lanes)
    return lane, strip, i, n


@cache
def loading(strip: Strip, access: Access) -> Any:
    """``load(window, x, row, inside, column, g)``: the pixels of a row of the image from a column on.

    `row` is the row's first element. Outside of the image, or if the row is not `inside`, there are zeros.
    """
    COLUMNS, BY_TAP, WIDTH, read = strip.columns, strip.span == 1, access.width, access.read

    @device
    def load(window, x, row, inside, column, g):
        for q in range(COLUMNS):
            at = int32(column + q * g.stride_w) if BY_TAP else int32(column + q)
            for v in range(WIDTH):
                window[q, v] = float32(0)
            if inside and uint32(at) < uint32(g.in_width):
                read(window, q, x, int32(row + at * g.x_column), g.x_channel)

    return load

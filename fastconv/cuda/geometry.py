"""What a kernel reads of a problem: named tuples of integers, passed by value."""

from __future__ import annotations

from typing import NamedTuple

from fastconv.problem import EPILOGUES, ConvProblem


class ConvGeometry(NamedTuple):
    """Sizes of a convolution, of one group where it says channels and filters, and strides in elements.

    `x` is the input and `out` the output of the forward convolution, whichever of them a kernel writes.
    """

    batch: int
    groups: int
    channels: int
    filters: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
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
    out_batch: int
    out_channel: int
    out_row: int
    out_column: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int
    has_bias: int
    channels_last: int

    @classmethod
    def of(
        cls, problem: ConvProblem, x: tuple[int, ...], out: tuple[int, ...], weight: tuple[int, ...]
    ) -> ConvGeometry:
        """From a problem and strides in elements, of x (n, c, h, w), output (n, k, h, w) and weights (k, c, r, s)."""
        p = problem
        (top, _), (left, _) = p.padding
        numbers: tuple[int, ...] = (
            p.batch, p.groups, p.in_channels // p.groups, p.out_channels // p.groups, *p.in_size, *p.conv_size,
            *p.kernel_size, *p.stride, top, left, *p.dilation, *x, *out, *weight, int(p.bias),
            int(p.memory_format == "channels_last"),
        )  # fmt: skip
        return cls(*numbers)


class Steps(NamedTuple):
    """Strides of an (N, C, H, W) array, in elements."""

    batch: int
    channel: int
    row: int
    column: int


class Epilogue(NamedTuple):
    """An activation: x < 0 ? slope * x : x, clamped to [low, high]; `active` is 0 if that changes nothing."""

    slope: float
    low: float
    high: float
    active: float

    @classmethod
    def of(cls, activation: str | None) -> Epilogue:
        """That of an activation by its name in `ConvProblem`; None changes nothing."""
        return cls(*EPILOGUES[activation], float(activation is not None))

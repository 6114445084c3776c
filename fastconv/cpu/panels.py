"""Copies of padded input: as vectors of neighbouring pixels for a tap, whatever the stride, or as rows of pixels."""

from __future__ import annotations

import numpy as np

from fastconv.cpu.memory import copy, fill
from fastconv.cpu.ranges import inside
from fastconv.cpu.transpose import transpose
from fastconv.jit import inline
from fastconv.problem import ConvProblem

PANEL_FIELDS = (
    "x_batch", "x_channel", "x_row", "x_column", "in_height", "in_width", "stride_h", "stride_w", "top", "left",
    "panel_image", "panel_channel", "panel_phase", "panel_rows", "phases_h", "phases_w", "phase_step", "pitch",
)  # fmt: skip


@inline
def pad_vectors(x, g, top, bottom, channels, panel, ITEM):
    """Input of convolution rows [top, bottom) as (channel, phase, row, column), with its padding.

    `g` is a geometry record. Phase (ph, pw) of ``phases_h * phases_w`` has the pixels at ``ph + i * stride_h`` and
    ``pw * phase_step + j * stride_w`` of the padded image, where j counts `pitch` columns.
    """
    for phase in range(g.phases_h * g.phases_w):
        ph, pw = phase // g.phases_w, phase % g.phases_w * g.phase_step
        # Columns j whose pixel j*stride + pw - left is inside the image.
        begin, end = inside(pw - g.left, g.stride_w, g.in_width, g.pitch)
        for i in range(bottom - top - 1 + g.panel_rows):
            row = (top + i) * g.stride_h + ph - g.top
            line = panel + ITEM * (phase * g.panel_phase + i * g.pitch)
            exists = 0 <= row < g.in_height
            for c in range(channels):
                target = line + ITEM * c * g.panel_channel
                fill(target, begin if exists else g.pitch, 0.0, ITEM)
                fill(target + ITEM * end, g.pitch - end, 0.0, ITEM)
            if exists:
                source = x + ITEM * (row * g.x_row + (begin * g.stride_w + pw - g.left) * g.x_column)
                column = g.stride_w * g.x_column
                if g.x_channel == 1:
                    transpose(source, column, line + ITEM * begin, g.panel_channel, end - begin, channels, ITEM)
                else:
                    for c in range(channels):
                        target = line + ITEM * (c * g.panel_channel + begin)
                        copy(source + ITEM * c * g.x_channel, column, target, end - begin, ITEM)


@inline
def copy_pixels(source, column, channel, target, pixel, columns, channels, ITEM):
    """Copy neighbouring pixels to where they lie `pixel` elements apart, channels side by side."""
    if channel == 1 and column == pixel == channels:
        copy(source, 1, target, columns * channels, ITEM)
    elif channel == 1:
        for j in range(columns):
            copy(source + ITEM * j * column, 1, target + ITEM * j * pixel, channels, ITEM)
    elif column == 1:
        transpose(source, channel, target, pixel, channels, columns, ITEM)
    else:
        for j in range(columns):
            copy(source + ITEM * j * column, channel, target + ITEM * j * pixel, channels, ITEM)


@inline
def pad_rows(x, g, top, bottom, channels, panel, line, pixel, ITEM):
    """Input of convolution rows [top, bottom) as (row, column, channel), with its padding.

    `g` is a geometry record; in the panel, rows are `line` elements apart and pixels `pixel`.
    """
    width = line // pixel
    left, right = min(width, g.left), min(width, g.left + g.in_width)
    for i in range((bottom - top - 1) * g.stride_h + g.span_h):
        row, target = top * g.stride_h - g.top + i, panel + ITEM * i * line
        if row < 0 or row >= g.in_height:
            fill(target, line, 0.0, ITEM)
            continue
        fill(target, left * pixel, 0.0, ITEM)
        inside = target + ITEM * left * pixel
        copy_pixels(x + ITEM * row * g.x_row, g.x_column, g.x_channel, inside, pixel, right - left, channels, ITEM)
        fill(target + ITEM * right * pixel, (width - right) * pixel, 0.0, ITEM)


class TapPanels:
    """Panels with a phase for every filter column, and rows as long as those of the result.

    The pixels of the result, row after row, are then neighbours in the panel of each tap just as they are in weights
    (K, C, R, S, OH, OW): vectors run across the ends of rows.

    Parameters
    ----------
    conv : ConvProblem
        Whose input, taps and result are meant.
    """

    def __init__(self, conv: ConvProblem) -> None:
        self.conv, self.pitch = conv, conv.conv_size[1]
        taps_down = [divmod(r * conv.dilation[0], conv.stride[0]) for r in range(conv.kernel_size[0])]
        self.reach, self.phases_h = max(row for row, _ in taps_down), max(phase for _, phase in taps_down) + 1
        self._taps_down = taps_down

    def phase(self, height: int) -> int:
        """Elements of one phase of a channel, for `height` rows of the result."""
        return (height + self.reach) * self.pitch

    def channel(self, height: int) -> int:
        """Elements of one channel."""
        return self.phases_h * self.conv.kernel_size[1] * self.phase(height)

    def height(self, room: int) -> int:
        """The largest number of rows, of bands of equal height, with which a channel takes at most `room` elements."""
        rows = self.conv.conv_size[0]
        most = room // (self.phases_h * self.conv.kernel_size[1] * self.pitch) - self.reach
        return -(-rows // -(-rows // max(1, min(rows, most))))

    def taps(self, height: int, step: int) -> np.ndarray:
        """For each tap, (r, s) in row-major order: where in a channel its pixels start, and `step` times its number."""
        S = self.conv.kernel_size[1]
        starts = [
            (phase * S + s) * self.phase(height) + row * self.pitch for row, phase in self._taps_down for s in range(S)
        ]
        return np.array([(start, tap * step) for tap, start in enumerate(starts)], np.int64)

    def fields(self, height: int, x: tuple[int, ...], image: int) -> dict[str, int]:
        """`PANEL_FIELDS` for images with strides `x` whose panels lie `image` elements apart."""
        conv = self.conv
        return {
            "x_batch": x[0], "x_channel": x[1], "x_row": x[2], "x_column": x[3],
            "in_height": conv.in_size[0], "in_width": conv.in_size[1], "stride_h": conv.stride[0],
            "stride_w": conv.stride[1], "top": conv.padding[0][0], "left": conv.padding[1][0],
            "panel_image": image, "panel_channel": self.channel(height), "panel_phase": self.phase(height),
            "panel_rows": self.reach + 1, "phases_h": self.phases_h, "phases_w": conv.kernel_size[1],
            "phase_step": conv.dilation[1], "pitch": self.pitch,
        }  # fmt: skip

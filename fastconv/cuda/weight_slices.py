"""The two matrices of a weight gradient: its terms are pixels, found in both images and copied slice by slice.

A row of the left matrix is a filter, a column of the right one a channel at a tap, ordered by tap, then by channel.
Each thread copies one pixel of a slice, of both matrices and always at the same filters and columns: where those lie
is known before the first slice, and from slice to slice only the pixel goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.conv_kernel import Strides, check_reach
from fastconv.cuda.elements import divided
from fastconv.cuda.ptx import copy_async4, copy_async16, kept
from fastconv.cuda.toolkit import device, int32, int64, uint32
from fastconv.cuda.weight_splits import matrix, share, tiles
from fastconv.problem import ConvProblem

# Of the pixel: how many are left from it on, its place in x, and the elements of x and of the gradient.
LEFT, ROW, COLUMN, X, GRAD = range(5)
PIXEL_FIELDS = 5
# Of a column: how far its tap is from the pixel's place, and in elements.
TAP_ROW, TAP_COLUMN, ELEMENT = range(3)
COLUMN_FIELDS = 3


class WeightGeometry(NamedTuple):
    """Sizes of a group, strides in elements, and the steps from pixel to pixel.

    `pixels` counts those of all images, `share` those of a split; `columns` are taps times channels. A pixel's place
    in x is a multiple of the strides: `rows_end` and `columns_end` are behind the last. The results of a split go to
    ``split*w_split + filter*w_filter + channel*w_channel + r*w_row + s*w_column``.
    """

    pixels: int
    share: int
    channels: int
    filters: int
    columns: int
    column_tiles: int
    filter_tiles: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
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
    grad_batch: int
    grad_channel: int
    grad_row: int
    grad_column: int
    rows_end: int
    columns_end: int
    x_slice: int
    x_next_row: int
    x_next_image: int
    grad_slice: int
    grad_next_row: int
    grad_next_image: int
    w_split: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int

    @classmethod
    def of(cls, problem: ConvProblem, tile: Any, splits: int, *strides: Strides) -> WeightGeometry:
        """From the strides of x, of the output's gradient, and of the sums (splits*K, C/groups, R, S)."""
        p, (x, grad, out) = problem, strides
        filters, channels, kernel_h, kernel_w = p.weight_shape
        check_reach(p.in_shape, x)
        check_reach(p.out_shape, grad)
        check_reach((splits * filters, channels, kernel_h, kernel_w), out)
        (height, width), (stride_h, stride_w), ((top, _), (left, _)) = p.conv_size, p.stride, p.padding
        filter_tiles, column_tiles = tiles(p, tile)
        group_filters, columns, pixels = matrix(p)
        numbers: tuple[int, ...] = (
            pixels, share(p, splits, tile.depth), channels, group_filters, columns, column_tiles, filter_tiles,
            *p.in_size, height, width, kernel_w, stride_h, stride_w, top, left, *p.dilation, *x, *grad,
            height * stride_h, width * stride_w,
            tile.depth * stride_w * x[3], stride_h * x[2] - width * stride_w * x[3], x[0] - height * stride_h * x[2],
            tile.depth * grad[3], grad[2] - width * grad[3], grad[0] - height * grad[2], filters * out[0], *out,
        )  # fmt: skip
        return cls(*numbers)


@dataclass(frozen=True)
class Copies:
    """How slices are copied.

    Attributes
    ----------
    channels_last : bool
        Whether neighbouring threads copy neighbouring channels, which must be neighbours in memory, or pixels.
    grad_vectors, x_vectors : bool
        Whether a copy has 16 bytes of neighbouring channels; only channels-last.
    width : int
        Channels in 16 bytes.
    """

    channels_last: bool
    grad_vectors: bool = False
    x_vectors: bool = False
    width: int = 4

    @property
    def widths(self) -> tuple[int, int]:
        """Channels in a copy of the gradient and in one of x."""
        return self.width if self.grad_vectors else 1, self.width if self.x_vectors else 1

    @property
    def words(self) -> tuple[str, ...]:
        """For a kernel's name."""
        return "nhwc" if self.channels_last else "nchw", "x".join(map(str, self.widths))


@cache
def own_columns(tile: Any, copies: Copies) -> int:
    """Copies of the right matrix that a thread makes for each slice."""
    return tile.columns * tile.depth // tile.threads // copies.widths[1]


def _lanes(tile: Any) -> int:
    """Threads that share a pixel of a slice."""
    return tile.threads // tile.depth


def _own(tile: Any, copies: Copies) -> Any:
    CHANNELS_LAST, DEPTH, LANES = copies.channels_last, tile.depth, _lanes(tile)

    @device
    def own(thread):
        """A thread's pixel in a slice, and its number among those that copy it."""
        if CHANNELS_LAST:
            number = int32(thread // LANES)
            if DEPTH > 8:  # eight lanes that write at once have pixels four apart, whose rows meet other banks
                number = int32(number // 8 * 8 + number % 2 * 4 + number // 2 % 4)
            return number, int32(thread % LANES)
        return int32(thread % DEPTH), int32(thread // DEPTH)

    return own


def _start_columns(tile: Any, copies: Copies) -> Any:
    OWN_COLUMNS, COLUMN_STEP = own_columns(tile, copies), _lanes(tile) * copies.widths[1]

    @device
    def start_columns(g, first, columns):
        for t in range(OWN_COLUMNS):
            column = int32(first + t * COLUMN_STEP)
            tap, channel = divided(column, g.channels)
            r, s = divided(tap, g.kernel_w)
            row, columns[t, TAP_COLUMN] = int32(r * g.dilation_h - g.top), int32(s * g.dilation_w - g.left)
            columns[t, ELEMENT] = int32(row * g.x_row + columns[t, TAP_COLUMN] * g.x_column + channel * g.x_channel)
            columns[t, TAP_ROW] = row if column < g.columns else int32(-(1 << 30))  # never inside

    return start_columns


def _start(tile: Any, copies: Copies) -> Any:
    own, start_columns, (GRAD_WIDTH, X_WIDTH) = _own(tile, copies), _start_columns(tile, copies), copies.widths
    LEFT_PITCH, RIGHT_PITCH = tile.left_pitch, tile.right_pitch

    @device
    def start(g, thread, group, split, first_filter, first_column, pixel, columns):
        number, lane = own(thread)
        m, first = int32(split * g.share + number), int32(first_filter + lane * GRAD_WIDTH)
        rest, j = divided(m, g.out_width)
        n, i = divided(rest, g.out_height)
        pixel[LEFT] = int32(min(g.pixels, int32((split + 1) * g.share)) - m)
        pixel[ROW], pixel[COLUMN] = int32(i * g.stride_h), int32(j * g.stride_w)
        channel = int32(group * g.channels * g.x_channel)
        pixel[X] = int32(n * g.x_batch + pixel[ROW] * g.x_row + pixel[COLUMN] * g.x_column + channel)
        filter = int32((group * g.filters + first) * g.grad_channel)
        pixel[GRAD] = int32(n * g.grad_batch + i * g.grad_row + j * g.grad_column + filter)
        start_columns(g, int32(first_column + lane * X_WIDTH), columns)
        left_place = int32(number * LEFT_PITCH + lane * GRAD_WIDTH)
        return left_place, int32(number * RIGHT_PITCH + lane * X_WIDTH), int32(g.filters - first)

    return start


def _copy(tile: Any, copies: Copies) -> Any:
    CHANNELS_LAST, (GRAD_WIDTH, X_WIDTH) = copies.channels_last, copies.widths
    OWN_FILTERS, OWN_COLUMNS = tile.rows // _lanes(tile) // GRAD_WIDTH, own_columns(tile, copies)
    FILTER_STEP, COLUMN_STEP = _lanes(tile) * GRAD_WIDTH, _lanes(tile) * X_WIDTH
    copy_grad = copy_async16 if copies.grad_vectors else copy_async4
    copy_x = copy_async16 if copies.x_vectors else copy_async4

    @device
    def copy(shared, left_at, right_at, grad, x, g, filters, pixel, columns):
        inside = pixel[LEFT] > 0
        first_row = pixel[ROW] if inside else int32(-(1 << 30))  # no row of taps is inside
        for t in range(OWN_FILTERS):
            # In 64 bits a constant step is a part of the instruction.
            step = int64(t * FILTER_STEP) if CHANNELS_LAST else int64(int32(t * FILTER_STEP * g.grad_channel))
            valid = inside and filters > t * FILTER_STEP
            copy_grad(shared, int32(left_at + t * FILTER_STEP), grad, pixel[GRAD] + step, valid)
        for t in range(OWN_COLUMNS):
            row, column = int32(first_row + columns[t, TAP_ROW]), int32(pixel[COLUMN] + columns[t, TAP_COLUMN])
            valid = uint32(row) < uint32(g.in_height) and uint32(column) < uint32(g.in_width)
            copy_x(shared, int32(right_at + t * COLUMN_STEP), x, int32(pixel[X] + columns[t, ELEMENT]), valid)

    return copy


def _advance(tile: Any) -> Any:
    DEPTH = tile.depth

    @device
    def advance(g, pixel):
        # Not kept, they would be computed again where a row ends, from copies made before.
        pixel[LEFT] = kept(int32(pixel[LEFT] - DEPTH))
        pixel[COLUMN] = kept(int32(pixel[COLUMN] + DEPTH * g.stride_w))
        pixel[X] = kept(int32(pixel[X] + g.x_slice))
        pixel[GRAD] = kept(int32(pixel[GRAD] + g.grad_slice))
        while pixel[COLUMN] >= g.columns_end:
            pixel[COLUMN] -= g.columns_end
            pixel[ROW] += g.stride_h
            pixel[X] += g.x_next_row
            pixel[GRAD] += g.grad_next_row
            if pixel[ROW] == g.rows_end:
                pixel[ROW] = int32(0)
                pixel[X] += g.x_next_image
                pixel[GRAD] += g.grad_next_image

    return advance


@cache
def slicing(tile: Any, copies: Copies) -> Any:
    """Three device functions for a `Tile` or an `MmaWeightTile`, and a way of copying.

    ``start(g, thread, group, split, first_filter, first_column, pixel, columns)`` gives the places in a slice of the
    left and of the right matrix that a thread writes first, and its filters until the last,
    ``copy(shared, left_at, right_at, grad, x, g, filters, pixel, columns)`` copies to there and on, ``advance(g,
    pixel)`` goes on to the next slice. `pixel` and `columns` are local int32 arrays (PIXEL_FIELDS,) and
    (`own_columns`, COLUMN_FIELDS).
    """
    return _start(tile, copies), _copy(tile, copies), _advance(tile)

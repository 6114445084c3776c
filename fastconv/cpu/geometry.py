"""Where the pixels and the filter taps of a problem lie: the integer tables that kernels walk.

A *tap* is one filter position (r, s). A *segment* is a run of output positions along one axis that see
the same taps inside the image; the product of a row segment and a column segment is a rectangle whose
pixels need no test for padding at all. A *line* is a run of pixels of such a rectangle, or the same pixel of
one image after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, product

import numpy as np

from fastconv.phases import taps_of
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair


@dataclass(frozen=True)
class Segment:
    """Output positions [start, stop) whose taps [first, last) fall inside the input."""

    start: int
    stop: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.stop - self.start


def segments(size: int, out: int, kernel: int, stride: int, padding: Pair, dilation: int) -> list[Segment]:
    """Split one axis into the longest runs that see the same taps."""
    starts: Iterable[int] = range(out)
    if out > 2 * kernel:  # only where a tap enters or leaves the input
        edges = (tap * dilation - padding[0] - end for tap in range(kernel) for end in (0, size))
        starts = sorted({0} | {o for edge in edges if 0 < (o := -(edge // stride)) < out})
    found: list[tuple[int, int, int]] = []
    for o in starts:
        origin = o * stride - padding[0]
        first = min(kernel, max(0, -(origin // dilation)))
        last = max(first, min(kernel, -((origin - size) // dilation)))
        if not found or found[-1][1:] != (first, last):
            found.append((o, first, last))
    ends = [*(start for start, _, _ in found[1:]), out]
    return [Segment(start, end, first, last) for (start, first, last), end in zip(found, ends, strict=False)]


def axes(problem: ConvProblem) -> tuple[list[Segment], list[Segment]]:
    """The segments of the convolution's rows and of its columns."""
    return axis_segments(problem, 0), axis_segments(problem, 1)


def axis_segments(problem: ConvProblem, axis: int) -> list[Segment]:
    """The segments of the convolution's rows, 0, or of its columns, 1."""
    return segments(
        problem.in_size[axis], problem.conv_size[axis], problem.kernel_size[axis], problem.stride[axis],
        problem.padding[axis], problem.dilation[axis],
    )  # fmt: skip


def tiles_of(down: int, along: int, tile: int, images: int) -> tuple[int, int]:
    """Register tiles of `tile` pixels that `images` rectangles take: each by itself, and with lines across them.

    Of a narrow rectangle, the columns are the lines.
    """
    if along < min(tile, down):
        down, along = along, down
    return images * down * -(-along // tile), down * along * -(-images // tile)


def runs_across(alone: int, across: int) -> bool:
    """Whether lines across images save enough tiles: their pixels lie far apart, often at multiples of a page."""
    return 10 * across < 9 * alone


def tiles_in_batch(problem: ConvProblem, down: int, along: int, tile: int) -> int:
    """Register tiles for a rectangle of `down` x `along` pixels in each image, as `cover` chooses its lines."""
    if problem.kernel_size == problem.stride == (1, 1) and problem.in_size == problem.conv_size:
        down, along = 1, down * along  # rows follow each other
    alone, across = tiles_of(down, along, tile, problem.batch)
    return across if problem.memory_format == "channels_last" and runs_across(alone, across) else alone


def tiles_and_steps(problem: ConvProblem, tile: int) -> tuple[int, int]:
    """Register tiles of `tile` pixels that cover all images, and the taps that they visit together."""
    tiles = steps = 0
    row_segments, column_segments = axes(problem)
    for rows, columns in product(row_segments, column_segments):
        count = tiles_in_batch(problem, len(rows), len(columns), tile)
        tiles += count
        steps += count * (rows.last - rows.first) * (columns.last - columns.first)
    return tiles, steps


@dataclass(frozen=True)
class Lines:
    """The pixels of a batch as lines, and the taps that they need.

    Attributes
    ----------
    lines : int64 array (n, 8)
        Per line: offset into x, offset into out, pixels, distance of pixels in x and in out, first
        row of `taps`, number of taps, steps of the innermost sum. Offsets and distances in elements.
    of_image : int
        So many lines, the first ones, are of one image and come again in each; the others run from image to
        image.
    taps : int64 array (m, 2)
        Offsets into x and into the packed weights of one filter block.
    """

    lines: np.ndarray
    of_image: int
    taps: np.ndarray


_LINE_TILES = 8  # of the longest line, or fewer where that makes too few lines: a job is some lines

Run = tuple[int, int, int]  # pixels, and from one to the next in x and in out


@dataclass(frozen=True)
class Rectangle:
    """Pixels that see the same taps.

    Attributes
    ----------
    x, out : int
        Offsets of the first one.
    down, along : Run
        Its rows, and the pixels of a row.
    sum : (int, int, int)
        First row of `Lines.taps`, number of taps, steps of the innermost sum.
    """

    x: int
    out: int
    down: Run
    along: Run
    sum: tuple[int, int, int]

    @property
    def axes(self) -> tuple[Run, Run]:
        """`down` and `along`, or one long row where rows follow each other."""
        down, along = self.down, self.along
        if down[1:] == (along[0] * along[1], along[0] * along[2]):
            return (1, 0, 0), (down[0] * along[0], *along[1:])
        return down, along

    def lines(self, tile: int, longest: int) -> list[tuple[int, ...]]:
        """Rows of `Lines.lines` that cover it in one image; where it is narrow, its columns are the lines."""
        down, along = self.axes
        if along[0] < min(tile, down[0]):
            down, along = along, down
        return [
            self._line(i * down[1] + j * along[1], i * down[2] + j * along[2], min(longest, along[0] - j), along)
            for i, j in product(range(down[0]), range(0, along[0], longest))
        ]

    def across(self, longest: int, images: Run) -> list[tuple[int, ...]]:
        """Lines that run from image to image, one for each pixel; first all those of the first few images."""
        (high, *down), (wide, *along) = self.axes
        count, found = images[0], []
        for n, i, j in product(range(0, count, longest), range(high), range(wide)):
            x, out = (n * images[m] + i * down[m - 1] + j * along[m - 1] for m in (1, 2))
            found.append(self._line(x, out, min(longest, count - n), images))
        return found

    def _line(self, x: int, out: int, count: int, run: Run) -> tuple[int, ...]:
        return (self.x + x, self.out + out, count, *run[1:], *self.sum)


def cover(rectangles: list[Rectangle], taps: list[Pair], tile: int, images: Run, least: int) -> Lines:
    """Lines of the orientation that needs the fewest register tiles of `tile` pixels; `least` if that many tiles."""
    of_image: list[tuple[int, ...]] = []
    across: list[tuple[int, ...]] = []
    tiles = [tiles_of(rectangle.axes[0][0], rectangle.axes[1][0], tile, images[0]) for rectangle in rectangles]
    longest = tile * max(1, min(_LINE_TILES, sum(map(min, tiles)) // least))
    for rectangle, (alone, together) in zip(rectangles, tiles, strict=True):
        if runs_across(alone, together):
            across += rectangle.across(longest, images)
        else:
            of_image += rectangle.lines(tile, longest)
    table = np.array(of_image + across, np.int64).reshape(-1, 8)
    return Lines(table, len(of_image), np.array(taps or [(0, 0)], np.int64))


def lines(
    problem: ConvProblem, x_strides: tuple, out_strides: tuple, block: int, tile: int, merged: bool, images: int = 1,
    least: int = 1,
) -> Lines:  # fmt: skip
    """Cover the output map with lines whose taps all lie inside the input.

    Parameters
    ----------
    problem : ConvProblem
    x_strides, out_strides : (n, c, h, w)
        Strides in elements.
    block : int
        Filters per block of the packed weights, which are (r, s, c, block).
    tile : int
        Pixels per register tile: narrow rectangles are walked downwards, long lines are cut into
        pieces of a few tiles.
    merged : bool
        Whether the taps of one filter row are evenly spaced in memory like the steps of the sum over
        channels, so that both are one loop.
    images : int, default 1
        How many images a line may run across.
    least : int, default 1
        Lines wanted: they are shorter where there would be fewer.
    """
    channels = problem.in_channels // problem.groups
    _, _, high_x, wide_x = x_strides
    _, _, high_o, wide_o = out_strides
    (sh, sw), (dh, dw) = problem.stride, problem.dilation
    S = problem.kernel_size[1]
    row_segments, column_segments = axes(problem)
    rectangles: list[Rectangle] = []
    taps: list[Pair] = []
    for rows, columns in product(row_segments, column_segments):
        first_tap, across = len(taps), columns.last - columns.first
        each = [columns.first] if merged and across else range(columns.first, columns.last)
        taps += [
            (r * dh * high_x + s * dw * wide_x, (r * S + s) * channels * block)
            for r in range(rows.first, rows.last)
            for s in each
        ]
        steps = across * channels if merged and across else channels
        top, left = problem.padding[0][0], problem.padding[1][0]
        x0 = (rows.start * sh - top) * high_x + (columns.start * sw - left) * wide_x
        o0 = rows.start * high_o + columns.start * wide_o
        down, along = (len(rows), sh * high_x, high_o), (len(columns), sw * wide_x, wide_o)
        rectangles.append(Rectangle(x0, o0, down, along, (first_tap, len(taps) - first_tap, steps)))
    return cover(rectangles, taps, tile, (images, x_strides[0], out_strides[0]), least)


@dataclass(frozen=True)
class InputSegment:
    """Input positions start, start + step, ... that the same taps read, each at the next output position.

    Attributes
    ----------
    taps : range
        Kernel elements.
    first_output, spacing : int
        The output position that reads `start` with the first of them, and how much earlier each next one is.
    """

    start: int
    count: int
    step: int
    taps: range
    first_output: int
    spacing: int

    @property
    def pairs(self) -> Iterator[Pair]:
        """Each tap, with the output position that reads `start`."""
        return zip(self.taps, count(self.first_output, -self.spacing), strict=False)


def input_segments(size: int, out: int, kernel: int, stride: int, padding: Pair, dilation: int) -> list[InputSegment]:
    """Split one axis of the input into the longest runs that the same taps read."""
    found: list[InputSegment] = []
    for remainder in range(min(stride, size)):
        positions = -(-(size - remainder) // stride)
        taps, outputs = taps_of(remainder, kernel, stride, padding, dilation)
        output, spacing = outputs.start, -outputs.step
        # Positions from which on a tap reads an output, or no longer does.
        starts = sorted({0} | {n for o in outputs for n in (-o, out - o) if 0 < n < positions})
        for start, end in zip(starts, [*starts[1:], positions], strict=True):
            latest = output + start
            skipped = max(0, (latest - out) // spacing + 1)
            reading = taps[skipped : max(0, latest // spacing + 1)]
            place = remainder + start * stride
            found.append(InputSegment(place, end - start, stride, reading, latest - skipped * spacing, spacing))
    return found


def input_axes(problem: ConvProblem) -> tuple[list[InputSegment], list[InputSegment]]:
    """The segments of the input's rows and of its columns."""
    sizes = (problem.in_size, problem.conv_size, problem.kernel_size)
    rows, columns = (
        input_segments(*axis) for axis in zip(*sizes, problem.stride, problem.padding, problem.dilation, strict=True)
    )
    return rows, columns


def input_lines(
    problem: ConvProblem, grad_strides: tuple, x_strides: tuple, block: int, tile: int, images: int, least: int = 1
) -> Lines:
    """`lines` for the gradient of the input: each pixel's sum over the outputs that read it.

    Parameters
    ----------
    problem : ConvProblem
    grad_strides, x_strides : (n, c, h, w)
        Strides in elements of the output's gradient and of the input's.
    block : int
        Input channels per block of the packed weights, which are (r, s, k, block).
    tile : int
        Pixels per register tile.
    images : int
        How many images a line may run across.
    least : int, default 1
        As in `lines`.
    """
    filters, S = problem.out_channels // problem.groups, problem.kernel_size[1]
    high, wide = grad_strides[2:]
    rectangles: list[Rectangle] = []
    taps: list[Pair] = []
    for rows, columns in product(*input_axes(problem)):
        pairs = list(product(rows.pairs, columns.pairs))
        found = (len(taps), len(pairs), filters)
        taps += [(i * high + j * wide, (r * S + s) * filters * block) for (r, i), (s, j) in pairs]
        down, along = (rows.count, high, rows.step * x_strides[2]), (columns.count, wide, columns.step * x_strides[3])
        start = rows.start * x_strides[2] + columns.start * x_strides[3]
        rectangles.append(Rectangle(0, start, down, along, found))
    return cover(rectangles, taps, tile, (images, grad_strides[0], x_strides[0]), least)

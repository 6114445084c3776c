"""Direct gradient of a convolution's input: `fastconv.cpu.direct` with the roles of the channels exchanged.

Pixel h of the input was read by output (h + padding - r*dilation) / stride, for every filter row r where
that is a whole number inside the output. Pixels with the same remainder modulo the stride see the same
taps, but for the border: along a line of such an `InputSegment` the gradient is a plain sum over taps and
output channels, which is what the forward kernel computes. It reads the gradient of the output where it
lies, with the weights packed for vectors of input channels; a pixel that no window reached gets a sum of no
taps.
"""

from __future__ import annotations

import math
from itertools import product

from fastconv.cpu.direct import Direct
from fastconv.cpu.geometry import input_axes, input_lines, tiles_in_batch
from fastconv.cpu.host import host
from fastconv.cpu.kernel import Geometry, Params
from fastconv.cpu.pack_input import InputPacker
from fastconv.cpu.tiles import FMA_NS, channel_vector_tiles, per_tile_ns, step_ns
from fastconv.problem import ConvProblem

_PACK_NS = 0.3  # for each weight
_MOST_PHASES, _MOST_TAPS = 4096, 1 << 20  # each takes a line, or a row of a table


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    phases = math.prod(map(min, problem.stride, problem.in_size))
    if phases > _MOST_PHASES:
        return f"its stride has {phases} phases, more than {_MOST_PHASES}"
    found = math.prod(sum(len(segment.taps) for segment in axis) for axis in input_axes(problem))
    return f"its table of taps has {found} rows, more than {_MOST_TAPS}" if found > _MOST_TAPS else None


def space(problem: ConvProblem) -> list[Params]:
    """The register tiles of this CPU."""
    channels, pixels = problem.in_channels // problem.groups, math.prod(problem.in_size)
    tiles = channel_vector_tiles(channels, pixels, problem.itemsize)
    return [{"rows": rows, "vectors": vectors} for rows, vectors in tiles]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    filters, block = problem.out_channels // problem.groups, vectors * host().lanes(problem.itemsize)
    blocks = problem.groups * -(-problem.in_channels // problem.groups // block)
    step = step_ns(rows, vectors)
    if problem.memory_format == "contiguous":
        step += 4 * FMA_NS  # channels lie a plane apart: a cache line brings one useful row of the tile
    each = 0.0
    for down, along in product(*input_axes(problem)):
        tiles = tiles_in_batch(problem, down.count, along.count, rows)
        each += tiles * (len(down.taps) * len(along.taps) * filters * step + per_tile_ns(rows, vectors))
        if problem.memory_format == "contiguous":
            each += tiles * rows * vectors * 12 * FMA_NS  # results are scattered
    return blocks * each + _PACK_NS * math.prod(problem.weight_shape)


def make(problem: ConvProblem, params: Params, threads: int) -> DirectInput:
    """The kernel, to be compiled or loaded when it is first run."""
    return DirectInput(problem, params, threads)


class DirectInput(Direct):
    """Gradient of the input for one problem: `x` is the gradient of the output, `out` that of the input."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.blocks = -(-(problem.in_channels // problem.groups) // self.block)
        self.pack = packer = InputPacker(problem, self.block, threads)
        self._packed_bytes = packer.nbytes

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run, the packed weights among it."""
        return super().workspace_bytes + self._packed_bytes

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        return self.problem.out_shape, self.problem.in_shape

    def geometry(self, x_strides: tuple[int, ...], out_strides: tuple[int, ...]) -> Geometry:
        p = self.problem
        filters, taps = p.out_channels // p.groups, math.prod(p.kernel_size)
        images, least = self.images(x_strides), self.least_lines
        found = input_lines(p, x_strides, out_strides, self.block, self.rows, images, least)
        packing = {"raw": 0, "length": taps * filters, "kernel_taps": taps, "filters": p.in_channels // p.groups}
        return self.fill(found, x_strides, out_strides, filters, p.conv_size, 0, packing)

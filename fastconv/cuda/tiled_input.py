"""Gradient of the input by implicit GEMM: a convolution of the output's gradient for each phase of the stride.

A phase (`fastconv.cuda.phases`) is a walk of stride 1 with negative dilation (`fastconv.cuda.gather`), its terms the
filters at its taps and its columns the channels.
"""

from __future__ import annotations

import math

from fastconv.algorithms import Params
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import ConvKernel, Packed, Strides, check_reach
from fastconv.cuda.gather import MOST_TAPS
from fastconv.cuda.gemm import DEPTH, Tile
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import MOST_BLOCKS, Launch
from fastconv.cuda.pack import FilterPacker
from fastconv.cuda.phases import Axis, phases, too_many
from fastconv.cuda.product_cost import product_ns
from fastconv.cuda.tiled import TILES, compiled
from fastconv.cuda.walk import WalkGeometry
from fastconv.problem import ConvProblem

NARROW = (64, 32)  # of few channels, as those of a photograph


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    if problem.dtype != "float32":
        return f"it computes float32, not {problem.dtype}"
    if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
        return "its indices have 32 bits, and an array has 2**30 elements or more"
    if problem.groups > MOST_BLOCKS or FilterPacker(problem, TILES[0][1], transposed=True).size >= 1 << 30:
        return "it has too many groups, or weights that fill too much with whole tiles"
    if too_many(problem):
        return too_many(problem)
    if max(len(axis.taps) for phase in phases(problem) for axis in phase) > MOST_TAPS:
        return f"a phase of its kernel has more than {MOST_TAPS} rows or columns"
    return None


def space(problem: ConvProblem) -> list[Params]:
    """Tiles that a group's channels fill at least half, or the narrow one."""
    channels = problem.in_channels // problem.groups
    return [{"pixels": m, "channels": n} for m, n in [tile for tile in TILES if tile[1] < 2 * channels] or [NARROW]]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU, of one phase after the other."""
    tile = Tile(params["pixels"], params["channels"])
    filters, channels = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    total = 0.0
    for rows, columns in phases(problem):
        pixels = problem.batch * rows.pixels * columns.pixels
        terms = len(rows.taps) * len(columns.taps) * filters
        total += product_ns(tile, pixels, channels, terms, problem.groups)
    return total


def make(problem: ConvProblem, params: Params, threads: int) -> TiledInput:
    """The kernel of a problem; `threads` are of the CPU and change nothing."""
    return TiledInput(problem, params)


class _Phase(ConvKernel):
    """The pixels of one phase; `launch` gets the strides of the output's gradient, packed weights and all pixels."""

    def __init__(self, problem: ConvProblem, tile: Tile, rows: Axis, columns: Axis) -> None:
        super().__init__(problem)
        self.tile, self.rows, self.columns = tile, rows, columns
        self.packer = FilterPacker(problem, tile.columns, (rows.taps, columns.taps), transposed=True)
        self.workspace_bytes = problem.itemsize * self.packer.size

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, C/groups, R, S) as (group, r, s, filter, c), r and s of this phase; unread if it has none."""
        return self.packer(weight) if self.packer.size else weight, bias

    def launch(self, *strides: Strides) -> Launch:
        _, _, out = strides
        whole = out[1] == 1 and self.problem.weight_shape[1] % 4 == 0
        return self._launch(strides, whole and all(step % 4 == 0 for step in (out[0], out[2], out[3])))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        return self._launch(strides, False)

    def _launch(self, strides: tuple[Strides, ...], vectors: bool) -> Launch:
        p, tile, rows, columns = self.problem, self.tile, self.rows, self.columns
        grad, _, out = strides
        check_reach(p.out_shape, grad)
        check_reach(p.in_shape, out)
        pixels, channels = p.batch * rows.pixels * columns.pixels, p.in_channels // p.groups
        numbers: tuple[int, ...] = (
            pixels, p.groups, p.out_channels // p.groups, channels, *p.conv_size, rows.pixels, columns.pixels,
            len(rows.taps), max(1, len(columns.taps)), 1, 1, -rows.output, -columns.output, -rows.spacing,
            -columns.spacing, -rows.spacing * grad[2], -columns.spacing * grad[3], *grad,
            rows.start * out[2] + columns.start * out[3], out[0], out[1], rows.step * out[2], columns.step * out[3],
            self.packer.columns, self.packer.columns // tile.columns, self.packer.terms // DEPTH, int(p.bias),
            int(vectors),
        )  # fmt: skip
        tiles = -(-pixels // tile.rows) * (self.packer.columns // tile.columns)
        values = (WalkGeometry.of(*numbers), Epilogue.of(None))
        return Launch(compiled(tile, grad[1] == 1), (tiles, 1, p.groups), values, tile.shared_bytes)


class TiledInput:
    """Gradient of the input, or a transposed convolution: its phases one after the other."""

    layout_copies = "none"

    def __init__(self, problem: ConvProblem, params: Params) -> None:
        self.problem = problem
        tile = Tile(params["pixels"], params["channels"])
        self.phases = [_Phase(problem, tile, *axes) for axes in phases(problem)]

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run."""
        return sum(phase.workspace_bytes for phase in self.phases)

    def convolve(
        self, grad_output: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray
    ) -> None:
        """Compute `out` (N, C, H, W) from the gradient of the output (N, K, Ho, Wo) and weights as they are."""
        for phase in self.phases:
            phase.convolve(grad_output, weight, bias, out)

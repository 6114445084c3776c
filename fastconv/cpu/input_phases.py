"""Gradient of the input by the forward kernels: one stride-1 convolution for each phase of the stride.

The pixels ``phase, phase + stride, ...`` along an axis were read by the taps r with
``(phase + padding - r*dilation) % stride == 0``, which are evenly spaced, and by outputs that move on with
the pixel. So the gradient at the pixels of one phase is the convolution of the output's gradient with the
taps of that phase, in reverse order and with the roles of the channels exchanged. With stride 1 there is one
phase; pixels of a phase that has no taps get zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType

import numpy as np

from fastconv.cpu import depthwise, im2col, tiled
from fastconv.cpu.kernel import ConvKernel, Params
from fastconv.cpu.pack import ChannelPacker, FilterPacker, Packed, Packer, RowPacker
from fastconv.cpu.pack_input import InputPacker
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

_PACK_NS = 0.5  # for each weight
_FILL_NS = 1.3  # for each pixel of a channel that no tap reaches


@dataclass(frozen=True)
class Axis:
    """One phase along one axis.

    Attributes
    ----------
    start, step : int
        Its first pixel of the input, and from one to the next.
    taps : tuple of int
        Kernel elements in the order of the convolution.
    outputs : (int, int)
        The outputs that it reads, first and one past the last.
    padding : (int, int)
    dilation : int
    """

    start: int
    step: int
    taps: tuple[int, ...]
    outputs: Pair
    padding: Pair
    dilation: int


def split_axis(size: int, out: int, kernel: int, stride: int, padding: Pair, dilation: int) -> list[Axis]:
    """The phases of one axis."""
    found = []
    for start in range(min(stride, size)):
        pixels = -(-(size - start) // stride)
        taps = [r for r in reversed(range(kernel)) if (start + padding[0] - r * dilation) % stride == 0]
        # Pixel i of the phase was read with the j-th of these taps by output i + first + j*spacing.
        spacing = dilation // math.gcd(dilation, stride)
        first = (start + padding[0] - taps[0] * dilation) // stride if taps else 0
        last = first + spacing * (len(taps) - 1) + pixels - 1
        inside = max(0, first), min(out, last + 1)
        if not taps or inside[0] >= inside[1]:
            found.append(Axis(start, stride, (), (0, 0), (0, 0), 1))
            continue
        pads = max(0, -first), max(0, last + 1 - out)
        found.append(Axis(start, stride, tuple(taps), inside, pads, spacing))
    return found


@dataclass(frozen=True)
class Phase:
    """The pixels of one phase of the rows and one of the columns; `problem` is None if no tap reaches them."""

    rows: Axis
    columns: Axis
    problem: ConvProblem | None

    def of_input(self, array: np.ndarray) -> np.ndarray:
        """Its pixels of an array (N, C, H, W)."""
        return array[:, :, self.rows.start :: self.rows.step, self.columns.start :: self.columns.step]

    def of_output(self, array: np.ndarray) -> np.ndarray:
        """The part of an array (N, K, Ho, Wo) that its convolution reads."""
        return array[:, :, slice(*self.rows.outputs), slice(*self.columns.outputs)]


def phases(problem: ConvProblem) -> list[Phase]:
    """The phases of the gradient of the input, each with its forward convolution; that of the most taps first."""
    sizes = (problem.in_size, problem.conv_size, problem.kernel_size)
    axes = [split_axis(*a) for a in zip(*sizes, problem.stride, problem.padding, problem.dilation, strict=True)]
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


class ByPhases:
    """A registered algorithm (see `fastconv.algorithms`) made of a forward one."""

    def __init__(self, forward: ModuleType) -> None:
        self.forward = forward

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why it cannot compute `problem`, or None if it can."""
        for phase in phases(problem):
            if phase.problem and (reason := self.forward.unsupported(phase.problem)):
                return reason
        return None

    def space(self, problem: ConvProblem) -> list[Params]:
        """The parameters of the largest phase's convolution; others that do not have them take their best."""
        largest = phases(problem)[0].problem
        return self.forward.space(largest) if largest else [{}]

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted nanoseconds on one thread."""
        computed = [phase.problem for phase in phases(problem) if phase.problem]
        unread = math.prod(problem.in_size) - sum(math.prod(p.conv_size) for p in computed)
        extra = _PACK_NS * math.prod(problem.weight_shape) + _FILL_NS * problem.batch * problem.in_channels * unread
        return extra + sum(self.forward.cost(p, self._fitting(p, params)) for p in computed)

    def make(self, problem: ConvProblem, params: Params, threads: int) -> InputPhases:
        """Compile or load the kernels."""
        kernels: list[tuple[Phase, ConvKernel | None]] = []
        for phase in phases(problem):
            if phase.problem is None:
                kernels.append((phase, None))
                continue
            kernel = self.forward.make(phase.problem, self._fitting(phase.problem, params), threads)
            kernel.pack = _packer(problem, phase, kernel.pack, threads)
            kernels.append((phase, kernel))
        return InputPhases(problem, kernels)

    def _fitting(self, problem: ConvProblem, params: Params) -> Params:
        space = self.forward.space(problem)
        return params if params in space else min(space, key=lambda p: self.forward.cost(problem, p))


def _packer(problem: ConvProblem, phase: Phase, forward: Packer, threads: int) -> Packer:
    """What packs the weights of `problem` as `forward` packs those of the phase's convolution."""
    order = [r * problem.kernel_size[1] + s for r in phase.rows.taps for s in phase.columns.taps]
    if isinstance(forward, FilterPacker):
        return InputPacker(problem, forward.block, threads, order)
    if isinstance(forward, RowPacker):
        return InputPacker(problem, forward.pack.block, threads, order, forward.lanes)
    assert isinstance(forward, ChannelPacker)
    return _PhaseOfChannels(forward, np.ix_(phase.rows.taps, phase.columns.taps))


class _PhaseOfChannels(Packer):
    """Depthwise weights: few, and the same channels on both sides."""

    def __init__(self, forward: Packer, taps: tuple) -> None:
        self.forward, self.taps = forward, taps

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        return self.forward(weight[:, :, *self.taps], bias)


class InputPhases:
    """Gradient of the input for one problem: `convolve`, and what `Plan.explain` asks of a kernel."""

    def __init__(self, problem: ConvProblem, kernels: list[tuple[Phase, ConvKernel | None]]) -> None:
        self.problem, self.kernels = problem, kernels

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run, the packed weights of a phase among it."""
        return max((k.workspace_bytes + getattr(k.pack, "nbytes", 0) for _, k in self.kernels if k), default=0)

    @property
    def layout_copies(self) -> str:
        """Which arrays a run copies to another layout."""
        return next((kernel.layout_copies for _, kernel in self.kernels if kernel), "none")

    def convolve(self, grad_output: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """Compute `out` (N, C, H, W) from the gradient of the output (N, K, Ho, Wo)."""
        for phase, kernel in self.kernels:
            pixels = phase.of_input(out)
            if kernel is None:
                pixels[...] = 0 if bias is None else bias[:, None, None]
            else:
                kernel.convolve(phase.of_output(grad_output), weight, bias, pixels)


by_tiled, by_im2col, by_depthwise = ByPhases(tiled), ByPhases(im2col), ByPhases(depthwise)

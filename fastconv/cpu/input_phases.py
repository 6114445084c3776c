"""Gradient of the input by the forward kernels: one stride-1 convolution for each phase (`fastconv.phases`)."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from fastconv.cpu import depthwise, im2col, tiled
from fastconv.cpu.kernel import ConvKernel, Params
from fastconv.cpu.pack import ChannelPacker, FilterPacker, Packed, Packer, RowPacker
from fastconv.cpu.pack_input import InputPacker
from fastconv.phases import Phase, phases
from fastconv.problem import ConvProblem

_PACK_NS = 0.5  # for each weight
_FILL_NS = 1.3  # for each pixel of a channel that no tap reaches


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
            rows, columns = phase.rows, phase.columns
            pixels = out[:, :, rows.start :: rows.step, columns.start :: columns.step]
            if kernel is None:
                pixels[...] = 0 if bias is None else bias[:, None, None]
            else:
                read = grad_output[:, :, slice(*rows.outputs), slice(*columns.outputs)]
                kernel.convolve(read, weight, bias, pixels)


by_tiled, by_im2col, by_depthwise = ByPhases(tiled), ByPhases(im2col), ByPhases(depthwise)

"""Gradient of the input by the forward kernels: one stride-1 convolution for each phase (`fastconv.phases`)."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from fastconv.cpu import depthwise, im2col, tiled
from fastconv.cpu.kernel import ConvKernel, Params
from fastconv.cpu.pack import ChannelPacker, FilterPacker, Packed, Packer, RowPacker
from fastconv.cpu.pack_input import InputPacker
from fastconv.phases import Phase, reached_phases
from fastconv.problem import ConvProblem

_PACK_NS = 0.5  # for each weight
_FILL_NS = 1.3  # for each pixel of a channel, where some are reached by no tap


class ByPhases:
    """A registered algorithm (see `fastconv.algorithms`) made of a forward one."""

    def __init__(self, forward: ModuleType) -> None:
        self.forward = forward

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why it cannot compute `problem`, or None if it can."""
        reasons = (self.forward.unsupported(convolution) for _, convolution in reached_phases(problem))
        return next((reason for reason in reasons if reason), None)

    def space(self, problem: ConvProblem) -> list[Params]:
        """The parameters of the largest phase's convolution; others that do not have them take their best."""
        reached = reached_phases(problem)
        return self.forward.space(reached[0][1]) if reached else [{}]

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted nanoseconds on one thread."""
        reached = [convolution for _, convolution in reached_phases(problem)]
        filled = math.prod(problem.in_shape) if _leaves_gaps(problem, reached) else 0
        extra = _PACK_NS * math.prod(problem.weight_shape) + _FILL_NS * filled
        return extra + sum(self.forward.cost(p, self._fitting(p, params)) for p in reached)

    def make(self, problem: ConvProblem, params: Params, threads: int) -> InputPhases:
        """Compile or load the kernels."""
        kernels = []
        for phase, convolution in reached_phases(problem):
            kernel = self.forward.make(convolution, self._fitting(convolution, params), threads)
            kernel.pack = _packer(problem, phase, kernel.pack, threads)
            kernels.append((phase, kernel))
        return InputPhases(problem, kernels)

    def _fitting(self, problem: ConvProblem, params: Params) -> Params:
        space = self.forward.space(problem)
        return params if params in space else min(space, key=lambda p: self.forward.cost(problem, p))


def _leaves_gaps(problem: ConvProblem, reached: list[ConvProblem]) -> bool:
    """Whether there are pixels that the convolutions of its phases do not compute."""
    return sum(math.prod(phase.conv_size) for phase in reached) < math.prod(problem.in_size)


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

    def __init__(self, problem: ConvProblem, kernels: list[tuple[Phase, ConvKernel]]) -> None:
        self.problem, self.kernels = problem, kernels
        self._has_gaps = _leaves_gaps(problem, [kernel.problem for _, kernel in kernels])

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run, the packed weights of a phase among it."""
        return max((k.workspace_bytes + getattr(k.pack, "nbytes", 0) for _, k in self.kernels), default=0)

    @property
    def layout_copies(self) -> str:
        """Which arrays a run copies to another layout."""
        return next((kernel.layout_copies for _, kernel in self.kernels), "none")

    def convolve(self, grad_output: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """Compute `out` (N, C, H, W) from the gradient of the output (N, K, Ho, Wo)."""
        if self._has_gaps:
            out[...] = 0 if bias is None else bias[:, None, None]
        for phase, kernel in self.kernels:
            rows, columns = phase.rows, phase.columns
            read = grad_output[:, :, slice(*rows.outputs), slice(*columns.outputs)]
            kernel.convolve(read, weight, bias, out[:, :, rows.start :: rows.step, columns.start :: columns.step])


by_tiled, by_im2col, by_depthwise = ByPhases(tiled), ByPhases(im2col), ByPhases(depthwise)

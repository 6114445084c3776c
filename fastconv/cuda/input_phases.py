"""Gradient of the input by the forward kernels: one stride-1 convolution for each phase (`fastconv.phases`).

The kernels are those of a forward convolution, only weights are packed in another order. They read and write parts of
the arrays of all phases; the bias is that of a transposed convolution.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda import mma, mma_split, tiled, tiled_split, wgmma
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.image_units import ImageUnits
from fastconv.cuda.product_cost import LAUNCH_NS
from fastconv.phases import Phase, phases
from fastconv.problem import ConvProblem
from fastconv.sizes import Pair

_MOST_PHASES = 64


def convolution(problem: ConvProblem, phase: Phase) -> ConvProblem:
    """The forward problem of a phase; where no tap reaches it, one of which nothing is multiplied."""
    if phase.problem:
        return phase.problem
    return replace(
        problem, direction="forward", in_channels=problem.out_channels, out_channels=problem.in_channels,
        in_size=(1, 1), kernel_size=(1, 1), stride=(1, 1), dilation=(1, 1),
        padding=((0, phase.rows.pixels - 1), (0, phase.columns.pixels - 1)),
    )  # fmt: skip


def pixels(x: DeviceArray, phase: Phase) -> DeviceArray:
    """Those of a phase, of an array like the input."""
    rows, columns = phase.rows, phase.columns
    strides = x.strides[0], x.strides[1], rows.step * x.strides[2], columns.step * x.strides[3]
    return _part(x, (rows.start, columns.start), (rows.pixels, columns.pixels), strides)


def outputs(grad: DeviceArray, phase: Phase) -> DeviceArray:
    """What a phase reads of an array like the output."""
    (top, bottom), (left, right) = phase.rows.outputs, phase.columns.outputs
    return _part(grad, (top, left), (bottom - top, right - left), grad.strides)


def _part(array: DeviceArray, first: Pair, size: Pair, strides: tuple[int, ...]) -> DeviceArray:
    start = array.pointer + array.itemsize * (first[0] * array.strides[2] + first[1] * array.strides[3])
    return replace(array, pointer=start, shape=(*array.shape[:2], *size), strides=strides)


def too_many(problem: ConvProblem) -> str | None:
    """Why the phases of a problem are too many, or None if they are not."""
    found = math.prod(map(min, problem.stride, problem.in_size))
    return (
        f"its stride has more than {_MOST_PHASES} phases, each of which is a launch" if found > _MOST_PHASES else None
    )


class ByPhases:
    """A registered algorithm (see `fastconv.algorithms`) made of a forward one.

    Parameters
    ----------
    forward : module, or object that stands for one
    units : bool, default False
        Whether it reads images by units of 16 bytes: one copy of the gradient serves all phases.
    whole : module, optional
        What computes phases whose terms are too few for `forward` to split.

    Attributes
    ----------
    CAPABILITY : (int, int) or None
        That of the forward one.
    """

    def __init__(self, forward: Any, units: bool = False, whole: Any = None) -> None:
        self.forward, self.units, self.whole = forward, units, whole or forward
        self.CAPABILITY: Pair | None = getattr(forward, "CAPABILITY", None)

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why it cannot compute `problem`, or None if it can."""
        if max(math.prod(shape) for shape in (problem.in_shape, problem.weight_shape, problem.out_shape)) >= 1 << 30:
            return "its indices have 32 bits, and an array has 2**30 elements or more"
        if reason := too_many(problem):
            return reason
        if self.units and self._images(problem).size >= 1 << 30:
            return "a copy of its gradient with whole units has 2**30 elements or more"
        (_, first), *rest = self._parts(problem)
        reasons = (self.forward.unsupported(first), *(self.whole.unsupported(part) for _, part in rest))
        return next((reason for reason in reasons if reason), None)

    def space(self, problem: ConvProblem) -> list[Params]:
        """Those of the phase of most taps, whose filters are the channels of the input."""
        return self.forward.space(self._parts(problem)[0][1])

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted time in nanoseconds on a large GPU, of one phase after the other."""
        total = mma.copy_ns(self._images(problem)) if self.units else 0.0
        for phase, part in self._parts(problem):
            module, own = self._chosen(phase, part, params)
            total += module.cost(part, own) if phase.problem else LAUNCH_NS
        return total

    def make(self, problem: ConvProblem, params: Params, threads: int) -> InputPhases:
        """The kernel of a problem; `threads` are of the CPU and change nothing."""
        kernels = []
        for phase, part in self._parts(problem):
            module, own = self._chosen(phase, part, params)
            kernel = module.make(part, own, threads)
            taps = phase.rows.taps, phase.columns.taps
            kernel.packer = kernel.packer.of_phase(problem, taps)
            kernels.append((phase, kernel))
        return InputPhases(problem, kernels, self._images(problem) if self.units else None)

    def _images(self, problem: ConvProblem) -> ImageUnits:
        """What copies the gradient."""
        return ImageUnits(problem, problem.out_shape)

    def _parts(self, problem: ConvProblem) -> list[tuple[Phase, ConvProblem]]:
        """The phases, each with its convolution of the gradient as its kernel reads it."""
        found = [(phase, convolution(problem, phase)) for phase in phases(problem)]
        if not self.units:
            return found
        channels = self._images(problem).channels
        return [(phase, replace(p, memory_format="channels_last", in_channels=channels)) for phase, p in found]

    def _chosen(self, phase: Phase, part: ConvProblem, params: Params) -> tuple[Any, Params]:
        """What computes a phase, and its parameters."""
        if self.forward is self.whole or (phase.problem and self.forward.unsupported(part) is None):
            return self.forward, params
        return self.whole, {name: value for name, value in params.items() if name != "splits"}


class InputPhases:
    """Gradient of the input, or a transposed convolution: its phases one after the other.

    Parameters
    ----------
    problem : ConvProblem
    kernels : list of (Phase, ConvKernel)
    images : ImageUnits, optional
        What copies a gradient that the kernels cannot read.
    """

    def __init__(self, problem: ConvProblem, kernels: list[tuple[Phase, Any]], images: ImageUnits | None) -> None:
        self.problem, self.kernels, self.images = problem, kernels, images

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run."""
        copied = self.images.size if self.images and self.images.expected else 0
        elements = copied + sum(kernel.packer.size for _, kernel in self.kernels)
        return self.problem.itemsize * elements + max(kernel.maps_bytes for _, kernel in self.kernels)

    @property
    def layout_copies(self) -> str:
        """Which arrays a run copies to another layout."""
        copies = self.images is not None and self.images.expected
        return "gradient to channels-last with whole units of 16 bytes" if copies else "none"

    def convolve(
        self, grad_output: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray
    ) -> None:
        """Compute `out` (N, C, H, W) from the gradient of the output (N, K, Ho, Wo) and weights as they are."""
        copies = self.images is not None and self.images.needed(grad_output)
        grad = self.images(grad_output) if self.images and copies else grad_output
        for phase, kernel in self.kernels:
            kernel.convolve(outputs(grad, phase), weight, bias, pixels(out, phase))


by_tiled_split, by_mma_split = ByPhases(tiled_split, whole=tiled), ByPhases(mma_split.by_mma, units=True, whole=mma)
by_wgmma_split = ByPhases(mma_split.by_wgmma, units=True, whole=wgmma)
by_tiled, by_mma, by_wgmma = ByPhases(tiled), ByPhases(mma, units=True), ByPhases(wgmma, units=True)

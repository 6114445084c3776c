"""Gradient of the input, or a transposed convolution, by kernels that walk along strips of pixels.

Each phase of the stride is a convolution of the output's gradient with stride 1 and the taps in reverse: the forward
kernel of depthwise filters, or that of small groups, along other walks (`fastconv.cuda.strips`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.algorithms import Params
from fastconv.cuda import depthwise, grouped
from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.conv_kernel import ConvKernel
from fastconv.cuda.input_phases import too_many
from fastconv.cuda.strips import backward
from fastconv.problem import ConvProblem

_PACK_NS = 2_000.0


class PhasedInput:
    """Gradient of the input, or a transposed convolution: its phases one after the other, on weights packed once."""

    layout_copies = "none"

    def __init__(self, problem: ConvProblem, kernels: Sequence[ConvKernel]) -> None:
        self.problem, self.kernels = problem, kernels
        self.workspace_bytes = kernels[0].workspace_bytes

    def convolve(
        self, grad_output: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray
    ) -> None:
        """Compute `out` (N, C, H, W) from the gradient of the output (N, K, Ho, Wo) and weights as they are."""
        packed = self.kernels[0].pack(weight, bias)
        for kernel in self.kernels:
            kernel.run(grad_output, packed, out)


class ByPhases:
    """What `fastconv.algorithms` asks of a module, by a module that has a kernel along walks."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def unsupported(self, problem: ConvProblem) -> str | None:
        """Why this algorithm cannot compute `problem`, or None if it can."""
        return self.forward.unsupported(problem) or too_many(problem)

    def space(self, problem: ConvProblem) -> list[Params]:
        """Pixels of a thread."""
        return self.forward.space(problem)

    def cost(self, problem: ConvProblem, params: Params) -> float:
        """Predicted time in nanoseconds on a large GPU, of one phase after the other."""
        return _PACK_NS + sum(self.forward.walk_ns(problem, params, walks) for walks in backward(problem))

    def make(self, problem: ConvProblem, params: Params, threads: int) -> PhasedInput:
        """The kernels of a problem; `threads` are of the CPU and change nothing."""
        return PhasedInput(problem, [self.forward.walking(problem, params, walks) for walks in backward(problem)])


by_depthwise, by_grouped = ByPhases(depthwise), ByPhases(grouped)

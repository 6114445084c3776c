"""Gradient of a depthwise convolution's input in float32, or a depthwise transposed convolution.

Each phase of the stride is a depthwise convolution of the output's gradient, with stride 1 and the taps in reverse.
"""

from __future__ import annotations

from fastconv.algorithms import Params
from fastconv.cuda import depthwise
from fastconv.cuda.depthwise import Depthwise, walk_ns
from fastconv.cuda.phases import PhasedInput, too_many
from fastconv.cuda.strips import backward
from fastconv.problem import ConvProblem

_PACK_NS = 2_000.0


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return depthwise.unsupported(problem) or too_many(problem)


def space(problem: ConvProblem) -> list[Params]:
    """Pixels of a thread."""
    widest = max(columns.outputs for _, columns in backward(problem))
    return [{"strip": strip} for strip in (4, 2, 1) if strip < 2 * widest or strip == 1]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU, of one phase after the other."""
    return _PACK_NS + sum(walk_ns(problem, params, walks) for walks in backward(problem))


def make(problem: ConvProblem, params: Params, threads: int) -> PhasedInput:
    """The kernels of a problem; `threads` are of the CPU and change nothing."""
    return PhasedInput(problem, [Depthwise(problem, params, walks) for walks in backward(problem)])

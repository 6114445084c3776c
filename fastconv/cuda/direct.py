"""Convolution of small problems: a thread for each element of the result, which reads weights as they are.

All others arrange the weights first, which is a launch of its own unless a plan did it once. A small problem takes less
time than a launch.
"""

from __future__ import annotations

import math

from fastconv.algorithms import Params
from fastconv.cuda import reference
from fastconv.problem import ConvProblem

_MOST_FLOPS = 1 << 24
_LAUNCH_NS, _TERM_NS, _BYTE_NS = 5_000.0, 20.0, 0.0003  # a thread's terms follow each other
_AT_ONCE = 132 * 1024  # threads of a large GPU

space, make = reference.space, reference.make


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm should not compute `problem`, or None if it may."""
    return None if problem.flops <= _MOST_FLOPS else "it is for small problems"


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU."""
    terms = math.prod(problem.weight_shape[1:]) * (math.prod(problem.pool.kernel_size) if problem.pool else 1)
    waves = math.ceil(math.prod(problem.out_shape) / _AT_ONCE)
    return _LAUNCH_NS + problem.bytes * _BYTE_NS + terms * _TERM_NS * waves

"""Convolution and pooling one after the other, each with the kernel that is predicted to be fastest for it.

It takes what the kernels that fuse both do not, float64 and large windows, and depthwise convolution, whose own kernel
does not pool.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from fastconv.algorithms import Candidate, Params, candidates, module_of, predicted_ns
from fastconv.arrays import dense_strides
from fastconv.cuda import pool
from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.conv_kernel import Packed
from fastconv.problem import ConvProblem, PoolProblem


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return None if problem.pool else "there is no pooling"


def space(problem: ConvProblem) -> list[Params]:
    """There is nothing to tune but the convolution by itself."""
    return [{}]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted time in nanoseconds on a large GPU, of both."""
    convolution, candidate, pooling = _parts(problem)
    return predicted_ns(convolution, candidate) + pool.cost(pooling, {})


def make(problem: ConvProblem, params: Params, threads: int) -> TwoPass:
    """The kernels of a problem; `threads` are of the CPU and change nothing."""
    return TwoPass(problem)


@lru_cache
def _parts(problem: ConvProblem) -> tuple[ConvProblem, Candidate, PoolProblem]:
    """The convolution by itself with what computes it, and the pooling."""
    assert problem.pool is not None
    convolution = replace(problem, pool=None, device="cuda")
    pooling = PoolProblem(
        problem.batch, problem.out_channels, problem.conv_size, problem.pool, problem.dtype, problem.memory_format,
        device="cuda",
    )  # fmt: skip
    return convolution, candidates(convolution)[0], pooling


class TwoPass:
    """Forward convolution with pooling: what `fastconv.cuda.conv_kernel.ConvKernel` offers, made of two kernels."""

    def __init__(self, problem: ConvProblem) -> None:
        convolution, candidate, pooling = _parts(problem)
        self.problem, self._map = problem, pooling
        self.convolution = module_of(convolution, candidate.algorithm).make(convolution, dict(candidate.params), 1)
        self.pooling = pool.make(pooling, {}, 1)
        self.pack, self.layout_copies = self.convolution.pack, self.convolution.layout_copies
        unpooled = problem.itemsize * math.prod(pooling.in_shape)
        self.workspace_bytes = self.convolution.workspace_bytes + unpooled

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`; both (N, C, H, W) with the problem's sizes and dtype."""
        shape = self._map.in_shape
        unpooled = replace(
            scratch(math.prod(shape), x), shape=shape, strides=dense_strides(shape, self._map.memory_format)
        )
        self.convolution.run(x, packed, unpooled)
        self.pooling.run(unpooled, out)

    def convolve(self, x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray) -> None:
        """`run` with weights and bias as they are."""
        self.run(x, self.pack(weight, bias), out)

"""Convolution and pooling, one after the other, with the map between them in cache.

Where the map of an image is small, to write it and read it back costs less than what `tiled` pays for never writing
it: rows that overlapping windows share are convolved by two jobs, and the input is copied. The convolution is that of
`direct`, which leaves the map channels-last, the faster order to pool, whatever the result's is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from fastconv.arrays import dense_strides, empty
from fastconv.cpu import direct, pool
from fastconv.cpu.host import host
from fastconv.cpu.kernel import Params
from fastconv.cpu.pack import Packed
from fastconv.problem import ConvProblem, PoolProblem

_LAUNCHES_NS = 2000  # of each part of a batch
_FAR_NS = 0.06  # for each byte of a map that is larger than L2


def unsupported(problem: ConvProblem) -> str | None:
    """Why this algorithm cannot compute `problem`, or None if it can."""
    return None if problem.pool else "there is no pooling"


def space(problem: ConvProblem) -> list[Params]:
    """Those of the convolution."""
    return direct.space(_parts(problem)[0])


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    convolution, pooling = _parts(problem)
    size = pooling.itemsize * math.prod(pooling.in_shape)
    each = direct.cost_into(convolution, params, pooling.memory_format) + pool.cost(pooling, {}) + _LAUNCHES_NS
    each += _FAR_NS * size if size > host().l2 else 0
    return each * len(_starts(problem, convolution))


def make(problem: ConvProblem, params: Params, threads: int) -> TwoPass:
    """The kernels, to be compiled or loaded when they are first run."""
    return TwoPass(problem, params, threads)


@lru_cache
def _parts(problem: ConvProblem) -> tuple[ConvProblem, PoolProblem]:
    """Both operations, for as many images at a time as leave a map that stays in cache, and part the batch evenly."""
    assert problem.pool is not None
    image = problem.itemsize * problem.out_channels * problem.conv_size[0] * problem.conv_size[1]
    fit = max(1, 2 * host().l2 // max(1, image))
    images = max((n for n in range(1, min(fit, problem.batch) + 1) if problem.batch % n == 0), default=0)
    convolution = replace(problem, batch=images, pool=None)
    pooling = PoolProblem(
        images, problem.out_channels, problem.conv_size, problem.pool, problem.dtype, memory_format="channels_last"
    )
    return convolution, pooling


def _starts(problem: ConvProblem, convolution: ConvProblem) -> range:
    """The first image of each part of a batch."""
    return range(0, problem.batch, max(1, convolution.batch))


class TwoPass:
    """Convolution with pooling of one problem: what `fastconv.cpu.kernel.ConvKernel` offers, made of two kernels."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        self.problem, self.params, self.threads = problem, params, threads
        convolution, pooling = _parts(problem)
        self.convolution = direct.make(convolution, params, threads)
        self.pooling = pool.make(pooling, {}, threads)
        self.starts, self.pack = _starts(problem, convolution), self.convolution.pack
        self._maps: deque[np.ndarray] = deque()  # as many as there are calls at the same time

    @property
    def layout_copies(self) -> str:
        """Which arrays a run copies to another layout."""
        return self.convolution.layout_copies

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run, with the unpooled map."""
        convolution, pooling = self.convolution, self.pooling.problem
        x, unpooled = (dense_strides(p.in_shape, p.memory_format) for p in (convolution.problem, pooling))
        scratch = convolution.scratch_bytes(convolution.geometry(x, unpooled))
        return scratch + pooling.itemsize * math.prod(pooling.in_shape)

    def run(self, x: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        """As `ConvKernel.run`."""
        self._run(self.convolution.run, self.pooling.run, x, packed, out)

    def convolve(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with weights and bias as they are."""
        self.run(x, self.pack(weight, bias), out)

    def bound(self, x: np.ndarray, out: np.ndarray) -> Callable[[np.ndarray, Packed, np.ndarray], None]:
        """As `ConvKernel.bound`."""
        first, unpooled = slice(0, self.starts.step), self._map()
        convolve, pool = self.convolution.bound(x[first], unpooled), self.pooling.bound(unpooled, out[first])
        self._maps.append(unpooled)
        return partial(self._run, convolve, pool)

    def _run(self, convolve: Callable, pool: Callable, x: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        unpooled = self._map()
        for first in self.starts:
            part = slice(first, first + self.starts.step)
            convolve(x[part], packed, unpooled)
            pool(unpooled, out[part])
        self._maps.append(unpooled)

    def _map(self) -> np.ndarray:
        try:
            return self._maps.pop()
        except IndexError:
            pooling = self.pooling.problem
            return empty(pooling.in_shape, pooling.dtype, pooling.memory_format)

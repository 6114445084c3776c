"""The second stage of a gradient of weights: what splits of the pixels left is added, always in the same order."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of
from fastconv.cuda.conv_kernel import DeviceKernel, Strides, WeightKernel
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, float32, int64, numbers, pointer
from fastconv.problem import ConvProblem

_THREADS = 256
_WEIGHTS = 32  # of a block: neighbours in memory for the lanes of a warp; its warps share the splits


class SumGeometry(NamedTuple):
    """Sizes of weights (K, C, R, S) and their strides in elements."""

    splits: int
    weights: int
    channels: int
    kernel_h: int
    kernel_w: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int


@cache
def _compiled() -> Kernel:
    WARPS = _THREADS // _WEIGHTS

    def sum_splits(partial, out, g):
        shared = cuda.shared.array(_THREADS, float32)
        thread = cuda.threadIdx.x
        index, split = cuda.blockIdx.x * _WEIGHTS + thread % _WEIGHTS, thread // _WEIGHTS
        total = float32(0)
        if index < g.weights:
            while split < g.splits:
                total += partial[split * g.weights + index]
                split += WARPS
        shared[thread] = total
        cuda.syncthreads()
        if thread < _WEIGHTS and index < g.weights:
            for warp in range(1, WARPS):
                total += shared[warp * _WEIGHTS + thread]
            c, tap = index % g.channels, index // g.channels
            s, rest = tap % g.kernel_w, tap // g.kernel_w
            r, k = rest % g.kernel_h, rest // g.kernel_h
            out[k * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column] = total

    array = pointer(float32)
    return Kernel(sum_splits, (array, array, numbers(int64, SumGeometry)), threads=_THREADS)


class SplitSum(DeviceKernel):
    """Adds the sums of all splits; `launch` gets the strides of `scratch` and of the weights.

    Attributes
    ----------
    workspace_bytes : int
        Size of `scratch`.
    """

    problem: ConvProblem

    def __init__(self, problem: ConvProblem, splits: int) -> None:
        super().__init__(problem)
        self.splits = splits
        self.workspace_bytes = problem.itemsize * splits * math.prod(problem.weight_shape)

    def scratch(self, like: DeviceArray) -> DeviceArray:
        """New memory for the sums: weights (splits*K, C, R, S), channels neighbours, where `like` is."""
        filters, channels, kernel_h, kernel_w = self.problem.weight_shape
        shape = (self.splits * filters, channels, kernel_h, kernel_w)
        strides = (channels * kernel_h * kernel_w, 1, kernel_w * channels, channels)
        library = library_of(like.owner)
        assert library is not None
        partial = as_device_array(library.new(shape, strides, self.problem.dtype, like.owner), "partial")
        return replace(partial, stream=like.stream)

    def launch(self, *strides: Strides) -> Launch:
        _, out = strides
        weights = math.prod(self.problem.weight_shape)
        values = (SumGeometry(self.splits, weights, *self.problem.weight_shape[1:], *out),)
        return Launch(_compiled(), (-(-weights // _WEIGHTS),), values)


class SplitWeightKernel(WeightKernel):
    """A gradient of weights whose sums are split; `launch` gets the strides of x, gradient and the sums of a split."""

    def __init__(self, problem: ConvProblem, splits: int) -> None:
        super().__init__(problem)
        self.splits = splits
        self._sum = SplitSum(problem, splits) if splits > 1 else None
        self.workspace_bytes = self._sum.workspace_bytes if self._sum else 0

    def run(self, x: DeviceArray, grad_output: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (K, C/groups, R, S) from x (N, C, H, W) and the gradient of the output (N, K, Ho, Wo)."""
        if self._sum is None:
            self.start((x, grad_output, out))
        else:
            partial = self._sum.scratch(x)
            self.start((x, grad_output, partial))
            self._sum.start((partial, out))

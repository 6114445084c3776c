"""The second stage of a gradient of weights: what splits of the pixels left is added, always in the same order."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import DeviceKernel, Strides, WeightKernel
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, float32, int64, numbers, pointer
from fastconv.problem import ConvProblem

_THREADS = 256
_WEIGHTS = 32  # of a block: neighbours in memory for the lanes of a warp; its warps share the splits


class SumGeometry(NamedTuple):
    """Sizes of weights (K, C, R, S) and their strides in elements.

    Filters are those of a group; where sums lie, a group has `sum_filters` of them, a filter `sum_channels` channels,
    and a split has `sums`. There a row has `sum_columns` taps, of so many `pixels` with all channels of each.
    """

    splits: int
    weights: int
    filters: int
    channels: int
    kernel_h: int
    kernel_w: int
    sums: int
    sum_filters: int
    sum_channels: int
    sum_columns: int
    pixels: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int


@cache
def _compiled(dtype: str) -> Kernel:
    WARPS = _THREADS // _WEIGHTS
    stored, _, _, write = codec(dtype)

    def sum_splits(partial, out, g):
        shared = cuda.shared.array(_THREADS, float32)
        thread = cuda.threadIdx.x
        index, split = cuda.blockIdx.x * _WEIGHTS + thread % _WEIGHTS, thread // _WEIGHTS
        c, tap = index % g.channels, index // g.channels
        s, rest = tap % g.kernel_w, tap // g.kernel_w
        r, k = rest % g.kernel_h, rest // g.kernel_h
        at = ((k // g.filters * g.sum_filters + k % g.filters) * g.kernel_h + r) * g.sum_columns + s // g.pixels
        at = at * g.sum_channels + s % g.pixels * g.channels + c
        total = float32(0)
        if index < g.weights:
            while split < g.splits:
                total += partial[split * g.sums + at]
                split += WARPS
        shared[thread] = total
        cuda.syncthreads()
        if thread < _WEIGHTS and index < g.weights:
            for warp in range(1, WARPS):
                total += shared[warp * _WEIGHTS + thread]
            write(out, k * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column, total)

    kinds = (pointer(float32), pointer(stored), numbers(int64, SumGeometry))
    return Kernel(sum_splits, kinds, (dtype,), threads=_THREADS)


class SplitSum(DeviceKernel):
    """Adds the sums of all splits; `launch` gets the strides of `scratch` and of the weights.

    Parameters
    ----------
    problem : ConvProblem
    splits : int
    filled : ConvProblem, optional
        The problem whose sums they are, if it is another: groups filled up to more channels and filters.
    pixels : int, default 1
        That share a tap of it (`fastconv.cuda.units`).

    Attributes
    ----------
    workspace_bytes : int
        Size of `scratch`.
    """

    problem: ConvProblem

    def __init__(self, problem: ConvProblem, splits: int, filled: ConvProblem | None = None, pixels: int = 1) -> None:
        super().__init__(problem)
        self.splits, self.filled, self.pixels = splits, filled or problem, pixels
        self.workspace_bytes = 4 * splits * math.prod(self.filled.weight_shape)

    def scratch(self, like: DeviceArray) -> DeviceArray:
        """New memory for the sums: float32 (splits*K, C, R, S), channels neighbours, where `like` is."""
        filters, channels, kernel_h, kernel_w = self.filled.weight_shape
        shape = (self.splits * filters, channels, kernel_h, kernel_w)
        strides = (channels * kernel_h * kernel_w, 1, kernel_w * channels, channels)
        library = library_of(like.owner)
        assert library is not None
        partial = as_device_array(library.new(shape, strides, "float32", like.owner), "partial")
        return replace(partial, stream=like.stream)

    def launch(self, *strides: Strides) -> Launch:
        _, out = strides
        p, filled = self.problem, self.filled
        weights, filters = math.prod(p.weight_shape), p.out_channels // p.groups
        sums: tuple[int, ...] = (
            math.prod(filled.weight_shape), filled.out_channels // p.groups, filled.weight_shape[1],
            filled.kernel_size[1], self.pixels,
        )  # fmt: skip
        values = (SumGeometry(self.splits, weights, filters, *p.weight_shape[1:], *sums, *out),)
        return Launch(_compiled(p.dtype), (-(-weights // _WEIGHTS),), values)


def needs_sum(problem: ConvProblem, splits: int) -> bool:
    """Whether a second stage writes the result: of several splits, or in another dtype than that of their sums."""
    return splits > 1 or problem.dtype != "float32"


class SplitWeightKernel(WeightKernel):
    """A gradient of weights whose sums, float32, are split; `launch` gets the strides of x, gradient and those sums."""

    def __init__(self, problem: ConvProblem, splits: int) -> None:
        super().__init__(problem)
        self.splits = splits
        self._sum = SplitSum(problem, splits) if needs_sum(problem, splits) else None
        self.workspace_bytes = self._sum.workspace_bytes if self._sum else 0

    def run(self, x: DeviceArray, grad_output: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (K, C/groups, R, S) from x (N, C, H, W) and the gradient of the output (N, K, Ho, Wo)."""
        if self._sum is None:
            self.start((x, grad_output, out))
        else:
            partial = self._sum.scratch(x)
            self.start((x, grad_output, partial))
            self._sum.start((partial, out))

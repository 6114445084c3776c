"""Weights in the layout that products of matrices read, packed on the GPU."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of
from fastconv.cuda.gemm import DEPTH
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, float32, int64, numbers, pointer
from fastconv.problem import ConvProblem

_THREADS = 256


class PackGeometry(NamedTuple):
    """Sizes of a group's weights, their padded matrix, and strides in elements."""

    groups: int
    filters: int
    channels: int
    kernel_h: int
    kernel_w: int
    terms: int
    columns: int
    w_filter: int
    w_channel: int
    w_row: int
    w_column: int


@cache
def _compiled() -> Kernel:
    def pack_filters(weight, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.groups * g.terms * g.columns:
            k, rest = index % g.columns, index // g.columns
            term, group = rest % g.terms, rest // g.terms
            c, tap = term % g.channels, term // g.channels
            r, s = tap // g.kernel_w, tap % g.kernel_w
            value = float32(0)
            if k < g.filters and r < g.kernel_h:
                value = weight[(group * g.filters + k) * g.w_filter + c * g.w_channel + r * g.w_row + s * g.w_column]
            out[index] = value
            index += step

    array = pointer(float32)
    return Kernel(pack_filters, (array, array, numbers(int64, PackGeometry)), threads=_THREADS)


class FilterPacker:
    """Packs weights (K, C/groups, R, S) as (group, r, s, c, filter): a matrix of `terms` x `columns` for each group.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Filters of a tile: columns are filled up to a multiple of it with zeros, terms to one of `DEPTH`.
    """

    def __init__(self, problem: ConvProblem, block: int) -> None:
        self.problem = problem
        self.terms = -(-math.prod(problem.weight_shape[1:]) // DEPTH) * DEPTH
        self.columns = -(-(problem.out_channels // problem.groups) // block) * block
        self.size = problem.groups * self.terms * self.columns
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the weights' strides

    def __call__(self, weight: DeviceArray) -> DeviceArray:
        p = self.problem
        library = library_of(weight.owner)
        assert library is not None
        packed = as_device_array(library.new((self.size,), (1,), p.dtype, weight.owner), "packed")
        self._launch(weight.strides)((weight, packed), weight.stream)
        return packed

    def _launch(self, strides: tuple[int, ...]) -> Launch:
        launch = self._launches.get(strides)
        if launch is None:
            p = self.problem
            sizes = (p.groups, p.out_channels // p.groups, *p.weight_shape[1:], self.terms, self.columns, *strides)
            grid = (min(-(-self.size // _THREADS), 1 << 16),)
            launch = self._launches[strides] = Launch(_compiled(), grid, (PackGeometry(*sizes),))
        return launch

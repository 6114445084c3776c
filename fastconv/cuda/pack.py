"""Weights in the layout that kernels which compute in float32 read, packed on the GPU."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.elements import divided
from fastconv.cuda.gemm import DEPTH
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, float32, int64, numbers, pointer
from fastconv.problem import ConvProblem

_THREADS = 256


class PackGeometry(NamedTuple):
    """Sizes of a group's matrix, without and with what fills it up, and where the weights lie, in elements.

    A term is an `inner` index at a tap: channels, and columns are filters, or the other way around. `first` is the
    element of the first tap, `w_row` and `w_tap` go on to the next one; `packed_group` and `packed_term` do in what is
    packed, where columns are neighbours.
    """

    groups: int
    inner: int
    columns: int
    taps_h: int
    taps_w: int
    padded_terms: int
    padded_columns: int
    first: int
    w_group: int
    w_inner: int
    w_column: int
    w_row: int
    w_tap: int
    packed_group: int
    packed_term: int


@cache
def _compiled(dtype: str) -> Kernel:
    stored, _, read, _ = codec(dtype)

    def pack_filters(weight, out, g):
        index, step = cuda.grid(1), cuda.gridsize(1)
        while index < g.groups * g.padded_terms * g.padded_columns:
            rest, column = divided(index, g.padded_columns)
            group, term = divided(rest, g.padded_terms)
            tap, inner = divided(term, g.inner)
            r, s = divided(tap, g.taps_w)
            value = float32(0)
            if column < g.columns and r < g.taps_h:
                at = g.first + group * g.w_group + column * g.w_column
                value = read(weight, at + inner * g.w_inner + r * g.w_row + s * g.w_tap)
            out[group * g.packed_group + term * g.packed_term + column] = value
            index += step

    kinds = (pointer(stored), pointer(float32), numbers(int64, PackGeometry))
    return Kernel(pack_filters, kinds, (dtype,), threads=_THREADS)


class FilterPacker:
    """Packs weights (K, C/groups, R, S) as (group, r, s, c, filter): a matrix of `terms` x `columns` for each group.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Filters of a tile: columns are filled up to a multiple of it with zeros, terms to one of `DEPTH`.
    taps : (range, range), optional
        Rows and columns of the kernel, all if not given.
    transposed : bool, default False
        Exchange filters and channels of a group, as gradients of the input read them: (group, r, s, filter, c).
    abreast : bool, default False
        Put the columns of all groups side by side: (r, s, c, group, filter).

    Attributes
    ----------
    size, workspace_bytes, slices : int
        Elements of what is packed, which are float32 whatever those of the weights are, their bytes, and slices of
        `DEPTH` terms.
    """

    def __init__(
        self, problem: ConvProblem, block: int, taps: tuple[range, range] | None = None, transposed: bool = False,
        abreast: bool = False,
    ) -> None:  # fmt: skip
        self.problem, self.block, self.transposed, self.abreast = problem, block, transposed, abreast
        self.taps = taps or (range(problem.kernel_size[0]), range(problem.kernel_size[1]))
        sizes = (problem.weight_shape[1], problem.out_channels // problem.groups)
        self._inner, self._columns = reversed(sizes) if transposed else sizes
        self.terms = -(-len(self.taps[0]) * len(self.taps[1]) * self._inner // DEPTH) * DEPTH
        self.columns = -(-self._columns // block) * block
        self.slices, self.size = self.terms // DEPTH, problem.groups * self.terms * self.columns
        self.workspace_bytes = 4 * self.size
        self._launches: dict[tuple[int, ...], Launch] = {}  # by the weights' strides

    def __call__(self, weight: DeviceArray) -> DeviceArray:
        if not self.size:
            return weight  # no taps: nobody reads it
        packed = scratch(self.size, weight, "float32")
        self._launch(weight.strides)((weight, packed), weight.stream)
        return packed

    def of_phase(self, problem: ConvProblem, taps: tuple[range, range]) -> FilterPacker:
        """The same for some taps of a gradient of the input."""
        return FilterPacker(problem, self.block, taps, transposed=True)

    def _launch(self, strides: tuple[int, ...]) -> Launch:
        launch = self._launches.get(strides)
        if launch is None:
            (rows, columns), (w_filter, w_channel, w_row, w_tap) = self.taps, strides
            steps = (w_filter, w_channel) if self.transposed else (w_channel, w_filter)
            wide = self.problem.groups * self.columns
            packed = (self.columns, wide) if self.abreast else (self.terms * self.columns, self.columns)
            sizes = (
                self.problem.groups, self._inner, self._columns, len(rows), len(columns), self.terms, self.columns,
                rows.start * w_row + columns.start * w_tap, self.problem.out_channels // self.problem.groups * w_filter,
                *steps, rows.step * w_row, columns.step * w_tap, *packed,
            )  # fmt: skip
            grid = (min(-(-self.size // _THREADS), 1 << 16),)
            launch = self._launches[strides] = Launch(_compiled(self.problem.dtype), grid, (PackGeometry(*sizes),))
        return launch

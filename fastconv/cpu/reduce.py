"""Vectors that reduce a window: the sum or the maximum of its taps, lane by lane.

It is the little sibling of `fastconv.cpu.contract`: the accumulators stay in registers while two nested
loops walk the taps of a window. What the lanes are is the caller's choice: channels, columns of an
image, or columns of a line that has been reduced over its rows already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter, short_loop
from fastconv.cpu.host import host

SUM, SQUARES, MAX, ARGMAX = range(4)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_taps(
    typingctx, x, row_step, rows, column_step, columns, out, lanes, indices, index, index_row, index_column,
    VECS, MASKED, ITEM,
):  # fmt: skip
    """Maxima of ``rows x columns`` taps for VECS vectors, and where they were.

    Parameters
    ----------
    x, out, indices : int64
        Addresses. All are contiguous along the lanes.
    row_step, column_step : int64
        Distance of neighbouring taps in `x`, in elements.
    rows, columns : int64
        Taps; where either is 0 the maximum is -inf.
    lanes : int64
        Lanes to read and to write, at least 1 (only if MASKED).
    index, index_row, index_column : int64
        The index is ``index + row*index_row + column*index_column`` of the first maximum or the last NaN, and
        `index` for an empty window.
    VECS, ITEM : literal int
        Vectors, and bytes of an element.
    MASKED : literal int
        1: touch only the first `lanes` lanes of the one vector, 0: all lanes of all vectors.
    """
    vectors, masked, itemsize = (kind.literal_value for kind in (VECS, MASKED, ITEM))
    signature = types.void(*[types.int64] * 11, VECS, MASKED, ITEM)

    def codegen(context, builder, _signature, args):
        x, row_step, rows, column_step, columns, out, lanes, indices, first, index_row, index_column = args[:11]
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        reduction, mask = Reduction(emit, ARGMAX, vectors), emit.first(lanes) if masked else None
        totals = [reduction.accumulator(first) for _ in reduction.offsets]
        with short_loop(builder, rows) as row, short_loop(builder, columns) as column:
            tap = emit.at(emit.pointer(x), builder.mul(row, row_step), builder.mul(column, column_step))
            moved = builder.add(builder.mul(row, index_row), builder.mul(column, index_column))
            here = reduction.integer(builder.add(first, moved))
            for offset, total in zip(reduction.offsets, totals, strict=True):
                reduction.add(emit.load_some(emit.at(tap, _I64(offset)), mask), total, here)
        # Indices are stored as doubles of the same bits: the emitter knows floats only.
        bits = Emitter(builder, 8, emit.lanes)
        for offset, total in zip(reduction.offsets, totals, strict=True):
            emit.store_some(reduction.value(total), emit.at(emit.pointer(out), _I64(offset)), mask)
            index = builder.bitcast(reduction.index(total), bits.vector)
            bits.store_some(index, bits.at(bits.pointer(indices), _I64(offset)), mask)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def reduce_runs(typingctx, x, run, out, channels, divisor, OP, ITEM):
    """Reduce for each channel some runs of neighbours to one element. Lanes hold partial results.

    Parameters
    ----------
    x, out : (address, channel_step)
        The first run and the result of the first channel, and how much further those of the next are, in elements.
    run : (row_step, rows, count)
        How far apart runs are, how many there are, and of how many elements.
    channels, divisor : int64, float64
        Sums are divided.
    OP, ITEM : literal int
        SUM, SQUARES or MAX, and bytes of an element.
    """
    pair, itemsize = types.UniTuple(types.int64, 2), ITEM.literal_value
    signature = types.void(pair, types.UniTuple(types.int64, 3), pair, types.int64, types.float64, OP, ITEM)

    def codegen(context, builder, _signature, args):
        x, run, out = (cgutils.unpack_tuple(builder, value) for value in args[:3])
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        reduction = Reduction(emit, OP.literal_value, 4)
        with emit.lines((x, out), args[3]) as (source, target):
            builder.store(reduction.divided(reduction.run(source, *run), args[4]), target)
        return context.get_dummy_value()

    return signature, codegen


@dataclass(frozen=True)
class Accumulator:
    """Stack slots, which LLVM turns into registers, of one vector of results.

    A maximum is kept apart from the last NaN, and its index from that of the NaN, until the end: a chain of plain
    maxima is several times shorter than one that asks at each step whether there was a NaN.
    """

    value: Any
    nan: Any = None
    index: Any = None
    nan_index: Any = None


class Reduction:
    """IR that reduces vectors by one operation, `vectors` of them side by side."""

    def __init__(self, emit: Emitter, op: int, vectors: int) -> None:
        self.emitter, self.op = emit, op
        self.offsets = [v * emit.lanes for v in range(vectors)]
        self.integers = ir.VectorType(_I64, emit.lanes)
        self.empty = emit.constant(float("-inf") if op in (MAX, ARGMAX) else 0.0)

    def run(self, x: Any, row_step: Any, rows: Any, count: Any) -> Any:
        """Reduce runs of neighbours to a scalar."""
        emit, bld = self.emitter, self.emitter.builder
        lanes, block = _I64(emit.lanes), _I64(emit.lanes * len(self.offsets))
        wide, rest = bld.sdiv(count, block), bld.srem(count, lanes)
        single = bld.sdiv(bld.srem(count, block), lanes)
        totals = [self.accumulator() for _ in self.offsets]
        with cgutils.for_range(bld, rows) as row:
            line = emit.at(x, bld.mul(row.index, row_step))
            with cgutils.for_range(bld, wide) as step:
                for offset, total in zip(self.offsets, totals, strict=True):
                    self.add(emit.load(emit.at(line, bld.mul(step.index, block), _I64(offset))), total)
            line = emit.at(line, bld.mul(wide, block))
            with cgutils.for_range(bld, single) as step:
                self.add(emit.load(emit.at(line, bld.mul(step.index, lanes))), totals[0])
            with bld.if_then(bld.icmp_signed(">", rest, _I64(0))):
                place = emit.at(line, bld.mul(single, lanes))
                self.add(emit.load_masked(place, emit.first(rest), self.empty), totals[1])
        return self._folded([self.value(total) for total in totals])

    def _folded(self, totals: list) -> Any:
        """One scalar from vectors of partial results, by halves."""
        bld, lanes = self.emitter.builder, self.emitter.lanes
        merge = partial(folded, self.emitter, MAX if self.op == MAX else SUM)
        while len(totals) > 1:
            half = len(totals) // 2
            totals = [merge(pair) for pair in zip(totals[:half], totals[half:], strict=True)]
        total, half = totals[0], lanes // 2
        while half:
            upper = [min(lane + half, lanes - 1) for lane in range(lanes)]
            order = ir.Constant(ir.VectorType(_I32, lanes), upper)
            total = merge((total, bld.shuffle_vector(total, total, order)))
            half //= 2
        return bld.extract_element(total, _I32(0))

    def _slot(self, start: Any) -> Any:
        bld = self.emitter.builder
        with bld.goto_entry_block():
            slot = bld.alloca(start.type)
        bld.store(start, slot)
        return slot

    def accumulator(self, first: Any = None) -> Accumulator:
        """A new one, of nothing yet; `first` is the index of an empty window."""
        value = self._slot(self.empty)
        if self.op not in (MAX, ARGMAX):
            return Accumulator(value)
        nan = self._slot(self.emitter.constant(0.0))
        if self.op == MAX:
            return Accumulator(value, nan)
        return Accumulator(value, nan, *(self._slot(self.integer(first)) for _ in range(2)))

    def add(self, value: Any, total: Accumulator, here: Any = None) -> None:
        """Take one more vector of elements in, which lie at the index `here`."""
        emit, bld = self.emitter, self.emitter.builder
        before = bld.load(total.value)
        if self.op == SQUARES:
            bld.store(bld.call(emit.fma, [value, value, before]), total.value)
        elif self.op == SUM:
            bld.store(bld.fadd(before, value), total.value)
        else:
            greater, nan = bld.fcmp_ordered(">", value, before), self._nan(value)
            bld.store(bld.select(greater, value, before), total.value)
            bld.store(bld.select(nan, value, bld.load(total.nan)), total.nan)
            if here is not None:
                bld.store(bld.select(greater, here, bld.load(total.index)), total.index)
                bld.store(bld.select(nan, here, bld.load(total.nan_index)), total.nan_index)

    def value(self, total: Accumulator) -> Any:
        """The vector of results so far."""
        bld = self.emitter.builder
        value = bld.load(total.value)
        if total.nan is None:
            return value
        nan = bld.load(total.nan)
        return bld.select(self._nan(nan), nan, value)

    def index(self, total: Accumulator) -> Any:
        """The vector of their indices."""
        bld = self.emitter.builder
        return bld.select(self._nan(bld.load(total.nan)), bld.load(total.nan_index), bld.load(total.index))

    def _nan(self, value: Any) -> Any:
        return self.emitter.builder.fcmp_unordered("uno", value, value)

    def divided(self, total: Any, divisor: Any) -> Any:
        """Sums, in a vector or one, over a float64 divisor; maxima as they are."""
        emit, bld = self.emitter, self.emitter.builder
        if self.op in (MAX, ARGMAX):
            return total
        divisor = divisor if emit.itemsize == 8 else bld.fptrunc(divisor, emit.scalar)
        return bld.fdiv(total, emit.splat(divisor) if total.type == emit.vector else divisor)

    def integer(self, value: Any) -> Any:
        """An index in all lanes."""
        return self.emitter.splat(value, self.integers)


def folded(emit: Emitter, op: int, values: Sequence) -> Any:
    """The sum of some vectors, their sum of squares, or the maximum, which is NaN where a value is."""
    bld = emit.builder
    if op == SUM:
        return reduce(bld.fadd, values)
    if op == SQUARES:
        start = bld.fmul(values[0], values[0])
        return reduce(lambda total, value: bld.call(emit.fma, [value, value, total]), values[1:], start)
    largest = reduce(lambda a, b: bld.select(bld.fcmp_ordered(">", b, a), b, a), values)
    pairs = zip(values[::2], [*values[1::2], values[-1]], strict=False)  # one comparison looks at two
    unordered = reduce(bld.or_, [bld.fcmp_unordered("uno", a, b) for a, b in pairs])
    return bld.select(unordered, emit.constant(math.nan), largest)

"""Vectors that reduce a window: the sum or the maximum of its taps, lane by lane.

It is the little sibling of `fastconv.cpu.contract`: the accumulators stay in registers while two nested
loops walk the taps of a window. What the lanes are is the caller's choice: channels, columns of an
image, or columns of a line that has been reduced over its rows already.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter
from fastconv.cpu.host import host

SUM, SQUARES, MAX, ARGMAX = range(4)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_taps(
    typingctx, x, row_step, rows, column_step, columns, gap, out, lanes, op, divisor,
    indices, index, index_row, index_column, VECS, MASKED, ITEM,
):  # fmt: skip
    """Reduce ``rows x columns`` taps for VECS vectors and store them at `out`.

    Parameters
    ----------
    x, out, indices : int64
        Addresses. `out` and `indices` are contiguous along the lanes.
    row_step, column_step : int64
        Distance of neighbouring taps in `x`, in elements.
    rows, columns : int64
        Taps; where either is 0 the result is that of an empty window.
    gap : int64
        Distance of neighbouring lanes in `x`, 1 or 2. With 2, all lanes and one element more are read.
    lanes : int64
        Lanes to read and to write, at least 1 (only if MASKED).
    op : int64
        SUM; SQUARES, a sum too; MAX, which is NaN if a tap is; ARGMAX, the same with indices.
    divisor : float64
        Sums are divided by it.
    index, index_row, index_column : int64
        ARGMAX stores ``index + row*index_row + column*index_column`` of the first maximum or the last
        NaN, and `index` for an empty window.
    VECS, ITEM : literal int
        Vectors, and bytes of an element.
    MASKED : literal int
        1: touch only the first `lanes` lanes of the one vector, 0: all lanes of all vectors.
    """
    vectors, masked, itemsize = (kind.literal_value for kind in (VECS, MASKED, ITEM))
    word = types.int64
    signature = types.void(*[word] * 9, types.float64, *[word] * 4, VECS, MASKED, ITEM)

    def codegen(context, builder, _signature, args):
        x, row_step, rows, column_step, columns, gap, out, lanes, op, divisor, *index = args[:14]
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        window, result = (x, row_step, rows, column_step, columns), (out, lanes, divisor)
        twice = builder.icmp_signed("==", gap, _I64(2))
        for each in (SUM, SQUARES, MAX, ARGMAX):
            with builder.if_then(builder.icmp_signed("==", op, _I64(each))):
                reduction = _Reduction(emit, each, vectors, bool(masked))
                if each in (SUM, MAX):
                    with builder.if_else(twice) as (strided, dense):
                        with strided:
                            reduction.emit(2, window, result, index)
                        with dense:
                            reduction.emit(1, window, result, index)
                else:
                    reduction.emit(1, window, result, index)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def reduce_run(typingctx, x, row_step, rows, count, op, ITEM):
    """Reduce `rows` runs of `count` neighbours, `row_step` elements apart, to one element.

    `op` is SUM, SQUARES or MAX; the rest as in `reduce_taps`. Lanes hold partial results.
    """
    element, itemsize = {4: types.float32, 8: types.float64}[ITEM.literal_value], ITEM.literal_value
    signature = element(*[types.int64] * 5, ITEM)

    def codegen(context, builder, _signature, args):
        x, row_step, rows, count, op = args[:5]
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        with builder.goto_entry_block():
            result = builder.alloca(emit.scalar)
        for each in (SUM, SQUARES, MAX):
            with builder.if_then(builder.icmp_signed("==", op, _I64(each))):
                total = _Reduction(emit, each, 4, False).run(x, row_step, rows, count)
                builder.store(total, result)
        return builder.load(result)

    return signature, codegen


class _Reduction:
    """IR of one case of `reduce_taps`; accumulators are stack slots that LLVM turns into registers."""

    def __init__(self, emit: Emitter, op: int, vectors: int, masked: bool) -> None:
        self.emitter, self.op, self.masked = emit, op, masked
        self.offsets = [v * emit.lanes for v in range(vectors)]
        self.integers = ir.VectorType(_I64, emit.lanes)
        self.empty = emit.constant(float("-inf") if op in (MAX, ARGMAX) else 0.0)

    def emit(self, gap: int, window: tuple, result: tuple, index: list) -> None:
        """Reduce the taps of a window for each lane, and store the results."""
        emit, bld = self.emitter, self.emitter.builder
        x, row_step, rows, column_step, columns = window
        out, lanes, divisor = result
        indices, first, index_row, index_column = index
        origin = emit.pointer(x)
        values = [self._slot(self.empty) for _ in self.offsets]
        places = [self._slot(self._integer(first)) for _ in self.offsets if self.op == ARGMAX]
        with cgutils.for_range(bld, rows) as row:
            line = emit.at(origin, bld.mul(row.index, row_step))
            with cgutils.for_range(bld, columns) as column:
                tap = emit.at(line, bld.mul(column.index, column_step))
                loaded = [self._load(tap, offset, gap, lanes) for offset in self.offsets]
                if self.op == ARGMAX:
                    moved = bld.add(bld.mul(row.index, index_row), bld.mul(column.index, index_column))
                    here = self._integer(bld.add(first, moved))
                    for value, best, place in zip(loaded, values, places, strict=True):
                        better = bld.or_(self._greater(value, bld.load(best)), self._nan(value))
                        bld.store(bld.select(better, here, bld.load(place)), place)
                for value, total in zip(loaded, values, strict=True):
                    self._add(value, total)
        self._store_all(emit, [self._divided(bld.load(v), divisor) for v in values], out, lanes)
        # Stored as doubles of the same bits: the emitter knows floats only.
        bits = Emitter(bld, 8, emit.lanes)
        self._store_all(bits, [bld.bitcast(bld.load(p), bits.vector) for p in places], indices, lanes)

    def run(self, x: Any, row_step: Any, rows: Any, count: Any) -> Any:
        """Reduce runs of neighbours to a scalar."""
        emit, bld = self.emitter, self.emitter.builder
        lanes, block = _I64(emit.lanes), _I64(emit.lanes * len(self.offsets))
        wide, rest = bld.sdiv(count, block), bld.srem(count, lanes)
        single, origin = bld.sdiv(bld.srem(count, block), lanes), emit.pointer(x)
        totals = [self._slot(self.empty) for _ in self.offsets]
        with cgutils.for_range(bld, rows) as row:
            line = emit.at(origin, bld.mul(row.index, row_step))
            with cgutils.for_range(bld, wide) as step:
                for offset, total in zip(self.offsets, totals, strict=True):
                    self._add(emit.load(emit.at(line, bld.mul(step.index, block), _I64(offset))), total)
            line = emit.at(line, bld.mul(wide, block))
            with cgutils.for_range(bld, single) as step:
                self._add(emit.load(emit.at(line, bld.mul(step.index, lanes))), totals[0])
            with bld.if_then(bld.icmp_signed(">", rest, _I64(0))):
                self._add(self._load_first(emit.at(line, bld.mul(single, lanes)), rest), totals[1])
        return self._folded([bld.load(total) for total in totals])

    def _folded(self, totals: list) -> Any:
        """One scalar from vectors of partial results, by halves."""
        bld, lanes = self.emitter.builder, self.emitter.lanes
        while len(totals) > 1:
            half = len(totals) // 2
            totals = [self._merged(a, b) for a, b in zip(totals[:half], totals[half:], strict=True)]
        total, half = totals[0], lanes // 2
        while half:
            upper = [min(lane + half, lanes - 1) for lane in range(lanes)]
            order = ir.Constant(ir.VectorType(_I32, lanes), upper)
            total = self._merged(total, bld.shuffle_vector(total, total, order))
            half //= 2
        return bld.extract_element(total, _I32(0))

    def _slot(self, start: Any) -> Any:
        bld = self.emitter.builder
        with bld.goto_entry_block():
            slot = bld.alloca(start.type)
        bld.store(start, slot)
        return slot

    def _add(self, value: Any, slot: Any) -> None:
        """Take one more vector of elements into the accumulator in `slot`."""
        emit, bld = self.emitter, self.emitter.builder
        before = bld.load(slot)
        if self.op == SQUARES:
            bld.store(bld.call(emit.fma, [value, value, before]), slot)
        else:
            bld.store(self._merged(before, value), slot)

    def _merged(self, before: Any, value: Any) -> Any:
        bld = self.emitter.builder
        if self.op in (SUM, SQUARES):
            return bld.fadd(before, value)
        larger = bld.select(self._greater(value, before), value, before)
        return bld.select(self._nan(value), value, larger)

    def _greater(self, value: Any, best: Any) -> Any:
        return self.emitter.builder.fcmp_ordered(">", value, best)

    def _nan(self, value: Any) -> Any:
        return self.emitter.builder.fcmp_unordered("uno", value, value)

    def _divided(self, total: Any, divisor: Any) -> Any:
        emit, bld = self.emitter, self.emitter.builder
        if self.op in (MAX, ARGMAX):
            return total
        return bld.fdiv(total, emit.splat(divisor if emit.itemsize == 8 else bld.fptrunc(divisor, emit.scalar)))

    def _integer(self, value: Any) -> Any:
        return self.emitter.splat(value, self.integers)

    def _load(self, pointer: Any, offset: int, gap: int, lanes: Any) -> Any:
        emit, bld = self.emitter, self.emitter.builder
        if gap == 1:
            if self.masked:
                return self._load_first(pointer, lanes)
            return emit.load(emit.at(pointer, _I64(offset)))
        first, second = (emit.load(emit.at(pointer, _I64(2 * offset + n))) for n in (0, emit.lanes))
        even = ir.Constant(ir.VectorType(_I32, emit.lanes), list(range(0, 2 * emit.lanes, 2)))
        return bld.shuffle_vector(first, second, even)

    def _load_first(self, pointer: Any, count: Any) -> Any:
        """Load `count` lanes; the others are those of an empty window."""
        emit = self.emitter
        return emit.load_masked(pointer, emit.first(count), self.empty)

    def _store_all(self, emit: Emitter, values: list, address: Any, lanes: Any) -> None:
        for offset, value in zip(self.offsets, values, strict=False):
            pointer = emit.at(emit.pointer(address), _I64(offset))
            if self.masked:
                emit.store_masked(value, pointer, emit.first(lanes))
            else:
                emit.store(value, pointer)

"""Small windows on contiguous rows: vectors hold neighbouring results, and taps come straight from the map.

Every load is masked by what lies inside of the row, so padding needs no copy and no case of its own. With a stride of
2, two vectors hold two taps each of the same results: rows are reduced first, then lanes sorted into even and odd.
Rows and taps are constants of the emitted code: a loop over two or three of them would cost more than the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter
from fastconv.cpu.host import host
from fastconv.cpu.reduce import MAX, SQUARES, SUM, folded

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_small(typingctx, x, rows, columns, out, counts, divisors, TAPS, STRIDE, OP, ITEM):
    """Reduce windows of 2 or 3 columns and at most as many rows. Addresses, distances and counts are int64.

    Parameters
    ----------
    x : (address, channel_step, line_step, row_step)
        Column 0 of the first row of the first window; how much further, in elements, that of the next channel and of
        the next line of results is, and the next row of the window.
    rows : int64
        Of the windows, from 1 to TAPS.
    columns : (first, width)
        Column of the first tap of the first result, and how many columns there are to be read, from 0 on.
    out : (address, channel_step, line_step)
        Where results go.
    counts : (channels, lines, results)
        How many, and of how many results each line is.
    divisors : int64
        Address of what the results of a line are divided by, unless they are maxima.
    TAPS, STRIDE : literal int
        Columns of a window, and from one window to the next.
    OP, ITEM : literal int
        SUM, SQUARES or MAX, and bytes of an element.
    """
    x_type, pair, triple = (types.UniTuple(types.int64, n) for n in (4, 2, 3))
    signature = types.void(x_type, types.int64, pair, triple, triple, types.int64, TAPS, STRIDE, OP, ITEM)

    def codegen(context, builder, _signature, args):
        x, columns, out, counts = (cgutils.unpack_tuple(builder, args[i]) for i in (0, 2, 3, 4))
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        for rows in range(1, TAPS.literal_value + 1):
            small = _Small(emit, OP.literal_value, (rows, x[3]), (TAPS.literal_value, STRIDE.literal_value), columns)
            chosen = builder.if_then(builder.icmp_signed("==", args[1], _I64(rows)))
            vectors = cgutils.for_range_slice(builder, _I64(0), counts[2], _I64(emit.lanes))
            with chosen, _lines(emit, x, out, counts) as (source, target), vectors as (start, _):
                mask = emit.first(builder.sub(counts[2], start))
                result = small.reduced(source, start)
                if small.op != MAX:
                    divisor = emit.load_masked(emit.at(emit.pointer(args[5]), start), mask, emit.constant(1.0))
                    result = builder.fdiv(result, divisor)
                emit.store_masked(result, emit.at(target, start), mask)
        return context.get_dummy_value()

    return signature, codegen


@contextmanager
def _lines(emit: Emitter, x: list, out: list, counts: list) -> Iterator[tuple[Any, Any]]:
    """Loops over channels and lines: where each reads and writes."""
    bld = emit.builder
    with cgutils.for_range(bld, counts[0]) as channel, cgutils.for_range(bld, counts[1]) as line:
        yield tuple(
            emit.at(emit.pointer(address), bld.mul(channel.index, channel_step), bld.mul(line.index, line_step))
            for address, channel_step, line_step in (x[:3], out)
        )


class _Small:
    """IR for a vector of results of neighbouring windows."""

    def __init__(self, emit: Emitter, op: int, rows: tuple[int, Any], across: tuple[int, int], columns: list) -> None:
        self.emitter, self.op = emit, op
        (self.rows, self.row_step), (self.taps, self.stride), (self.first, self.width) = rows, across, columns

    def reduced(self, source: Any, start: Any) -> Any:
        """The results from `start` on of a line."""
        lanes, add = self.emitter.lanes, self.emitter.builder.add
        column = add(self.first, self.emitter.builder.mul(start, _I64(self.stride)))
        needed = self.stride + (self.taps > self.stride)
        vectors = [self._down(source, add(column, _I64(v * lanes))) for v in range(needed)]
        return folded(self.emitter, SUM if self.op == SQUARES else self.op, self._of_taps(vectors))

    def _of_taps(self, vectors: list) -> list:
        """For each tap its elements of all windows, from those of neighbouring columns."""
        lanes, (first, second, *_) = self.emitter.lanes, vectors
        if self.stride == 1:
            return [self._picked(first, second, range(tap, tap + lanes)) for tap in range(self.taps)]
        found = [self._picked(first, second, range(tap, 2 * lanes, 2)) for tap in (0, 1)]
        return [*found, *(self._picked(found[0], third, range(1, lanes + 1)) for third in vectors[2:])]

    def _picked(self, first: Any, second: Any, lanes: range) -> Any:
        order = ir.Constant(ir.VectorType(_I32, self.emitter.lanes), list(lanes))
        return self.emitter.builder.shuffle_vector(first, second, order)

    def _down(self, source: Any, column: Any) -> Any:
        """The elements from `column` on, reduced over the rows; what changes nothing where there is no column."""
        emit, bld = self.emitter, self.emitter.builder
        mask, zero = emit.inside(column, self.width), emit.constant(0.0)
        places = (emit.at(source, bld.mul(_I64(row), self.row_step), column) for row in range(self.rows))
        total = folded(emit, self.op, [emit.load_masked(place, mask, zero) for place in places])
        return bld.select(mask, total, emit.constant(-math.inf)) if self.op == MAX else total

"""Windows where channels are neighbours: vectors hold channels, and the taps of one pixel after the other are walked.

The loop over pixels is part of the emitted code, for each has little to do.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter, short_loop
from fastconv.cpu.host import host
from fastconv.cpu.reduce import MAX, Reduction, folded

_I64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_pixels(typingctx, x, window, out, channels, divisor, SIZE, OP, ITEM):
    """Windows of neighbouring pixels, all channels of each, where channels are neighbours.

    Parameters
    ----------
    x : (address, step)
        The first tap of the first window, and how much further that of the next is.
    window : (row_step, rows, column_step, columns)
        Distances of the taps, and how many.
    out : (address, step, count)
        Where the first result goes, how much further the next, and how many windows there are.
    channels, divisor : int64, float64
        Sums are divided.
    SIZE : literal int
        For windows of ``SIZE x SIZE`` taps there are no loops over them; 0 if they are not all small and alike.
    OP, ITEM : literal int
        SUM, SQUARES or MAX, and bytes of an element.
    """
    groups = [types.UniTuple(types.int64, n) for n in (2, 4, 3)]

    def codegen(context, builder, _signature, args):
        x, window, (out, out_step, count) = (
            cgutils.unpack_tuple(builder, args[i], len(kind)) for i, kind in enumerate(groups)
        )
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        size = SIZE.literal_value

        def all_pixels(size: int) -> None:
            pixels = _Pixels(emit, OP.literal_value, size, window, args[4])
            emit.over_lines((x, (out, out_step)), count, args[3], pixels.some, pixels.sizes)

        if size == 0:
            all_pixels(0)
            return context.get_dummy_value()
        alike = builder.and_(*(builder.icmp_signed("==", n, _I64(size)) for n in (window[1], window[3])))
        with builder.if_else(alike) as (small, other):
            with small:
                all_pixels(size)
            with other:  # at the edge
                all_pixels(0)
        return context.get_dummy_value()

    return types.void(*groups, types.int64, types.float64, SIZE, OP, ITEM), codegen


class _Pixels:
    """IR for some vectors of the channels of a pixel; windows are `size` x `size`, or of any size for 0."""

    def __init__(self, emit: Emitter, op: int, size: int, window: list, divisor: Any) -> None:
        self.emitter, self.size, self.divisor = emit, size, divisor
        self.reduction = Reduction(emit, op, 1)
        self.row_step, self.rows, self.column_step, self.columns = window
        # With a stride of many channels from tap to tap, more lines of each; but a maximum takes two registers.
        self.sizes = (4, 1) if size or op == MAX else (8, 4, 1)

    def some(self, source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
        """The results of `vectors` vectors from the channel `start` on."""
        emit, bld = self.emitter, self.emitter.builder
        offsets = [bld.add(start, _I64(v * emit.lanes)) for v in range(vectors)]
        results = (self._unrolled if self.size else self._looped)(source, offsets, mask)
        for offset, result in zip(offsets, results, strict=True):
            emit.store_some(self.reduction.divided(result, self.divisor), emit.at(target, offset), mask)

    def _looped(self, source: Any, offsets: list, mask: Any) -> list:
        emit, bld = self.emitter, self.emitter.builder
        totals = [self.reduction.accumulator() for _ in offsets]
        with short_loop(bld, self.rows) as row, short_loop(bld, self.columns) as column:
            tap = emit.at(source, bld.mul(row, self.row_step), bld.mul(column, self.column_step))
            for offset, total in zip(offsets, totals, strict=True):
                self.reduction.add(emit.load_some(emit.at(tap, offset), mask), total)
        return [self.reduction.value(total) for total in totals]

    def _unrolled(self, source: Any, offsets: list, mask: Any) -> list:
        emit, bld = self.emitter, self.emitter.builder
        taps = [
            emit.at(source, bld.mul(_I64(r), self.row_step), bld.mul(_I64(s), self.column_step))
            for r, s in product(range(self.size), repeat=2)
        ]
        loaded = ([emit.load_some(emit.at(tap, offset), mask) for tap in taps] for offset in offsets)
        return [folded(emit, self.reduction.op, values) for values in loaded]

"""Windows where columns are neighbours, in two steps: rows are reduced into lines, lines into rows of results.

What `reduce_down` leaves in a line serves every window that looks at the column, in `reduce_along`. The loops over
windows are part of the emitted code, for each has little to do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter, short_loop
from fastconv.cpu.host import host
from fastconv.cpu.reduce import MAX, SUM, Reduction

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_down(typingctx, x, lines, row_step, rows, count, OP, ITEM):
    """``line[i] = x[i] + x[i + row_step] + ...`` of `rows` rows, for `count` neighbouring columns.

    Addresses, distances in elements and counts are int64.

    Parameters
    ----------
    x : (address, step)
        The first row of the first line, and how much further that of the next line is.
    lines : (address, step, count)
        Where lines go, how far apart, and how many.
    OP, ITEM : literal int
        SUM, SQUARES or MAX of `fastconv.cpu.reduce`, and bytes of an element.
    """
    pair, triple = (types.UniTuple(types.int64, n) for n in (2, 3))
    signature = types.void(pair, triple, *[types.int64] * 3, OP, ITEM)

    def codegen(context, builder, _signature, args):
        (x, x_step), (line, step, n) = (cgutils.unpack_tuple(builder, args[i], i + 2) for i in (0, 1))
        row_step, rows, count = args[2:5]
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        reduction = Reduction(emit, OP.literal_value, 1)

        def some(source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
            total = reduction.accumulator()
            with short_loop(builder, rows) as row:
                place = emit.at(source, start, builder.mul(row, row_step))
                reduction.add(emit.load_some(place, mask), total)
            emit.store_some(reduction.value(total), emit.at(target, start), mask)

        emit.over_lines(((x, x_step), (line, step)), n, count, some)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def reduce_along(typingctx, lines, window, out, divisor, OP, ITEM):
    """``out[j] = (line[j*stride] + line[j*stride + tap_step] + ...) / divisor``.

    Parameters
    ----------
    lines : (address, step, count)
        As in `reduce_down`. Two vectors are readable from any tap of a window on, with anything in them.
    window : (taps, tap_step, stride)
        The stride is 1 or 2.
    out : (address, step, count)
        Where results of the first line go, how much further those of the next, and how many windows a line has.
    divisor : float64
        Sums are divided by it.
    OP, ITEM : literal int
        SUM, MAX, or SQUARES, which are in the line already; and bytes of an element.
    """
    triple = types.UniTuple(types.int64, 3)

    def codegen(context, builder, _signature, args):
        (line, step, n), (taps, tap_step, stride), (out, out_step, count) = (
            cgutils.unpack_tuple(builder, value, 3) for value in args[:3]
        )
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        reduction = Reduction(emit, MAX if OP.literal_value == MAX else SUM, 1)

        def some(gap: int, source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
            total = reduction.accumulator()
            first = emit.at(source, builder.mul(start, _I64(gap)))
            with short_loop(builder, taps) as tap:
                place = emit.at(first, builder.mul(tap, tap_step))
                reduction.add(emit.load(place) if gap == 1 else _every_second(emit, place), total)
            emit.store_some(reduction.divided(reduction.value(total), args[3]), emit.at(target, start), mask)

        for gap in (1, 2):
            with builder.if_then(builder.icmp_signed("==", stride, _I64(gap))):
                emit.over_lines(((line, step), (out, out_step)), n, count, partial(some, gap))
        return context.get_dummy_value()

    return types.void(triple, triple, triple, types.float64, OP, ITEM), codegen


def _every_second(emit: Emitter, pointer: Any) -> Any:
    first, second = (emit.load(emit.at(pointer, _I64(n))) for n in (0, emit.lanes))
    even = ir.Constant(ir.VectorType(_I32, emit.lanes), list(range(0, 2 * emit.lanes, 2)))
    return emit.builder.shuffle_vector(first, second, even)

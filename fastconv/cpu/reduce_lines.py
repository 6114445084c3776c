"""Many windows at once: rows reduced into lines, lines into rows of results, and windows of neighbouring pixels.

Where columns are neighbours, a window is reduced in two steps: what `reduce_down` leaves in a line serves every
window that looks at the column, in `reduce_along`. Where channels are neighbours, `reduce_pixels` walks the taps of
one window after the other. The loops over windows are part of the emitted code, for each has little to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter
from fastconv.cpu.host import host
from fastconv.cpu.reduce import MAX, SQUARES, SUM, Reduction

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def reduce_down(typingctx, x, lines, row_step, rows, count, op, ITEM):
    """``line[i] = x[i] + x[i + row_step] + ...`` of `rows` rows, for `count` neighbouring columns.

    Addresses, distances in elements and counts are int64.

    Parameters
    ----------
    x : (address, step)
        The first row of the first line, and how much further that of the next line is.
    lines : (address, step, count)
        Where lines go, how far apart, and how many.
    op : int64
        SUM, SQUARES or MAX of `fastconv.cpu.reduce`.
    """
    pair, triple = (types.UniTuple(types.int64, n) for n in (2, 3))
    signature = types.void(pair, triple, *[types.int64] * 4, ITEM)

    def codegen(context, builder, _signature, args):
        (x, x_step), (line, step, n) = (cgutils.unpack_tuple(builder, args[i], i + 2) for i in (0, 1))
        row_step, rows, count, op = args[2:6]

        def some(reduction: Reduction, source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
            emit, total = reduction.emitter, reduction.accumulator()
            with cgutils.for_range(builder, rows) as row:
                place = emit.at(source, start, builder.mul(row.index, row_step))
                reduction.add(emit.load_some(place, mask), total)
            emit.store_some(reduction.value(total), emit.at(target, start), mask)

        for reduction in _cases(builder, op, (SUM, SQUARES, MAX), ITEM.literal_value):
            _over_lines(reduction, ((x, x_step), (line, step)), n, count, some)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def reduce_along(typingctx, lines, window, out, op, divisor, ITEM):
    """``out[j] = (line[j*stride] + line[j*stride + tap_step] + ...) / divisor``.

    Parameters
    ----------
    lines : (address, step, count)
        As in `reduce_down`. Two vectors are readable from any tap of a window on, with anything in them.
    window : (taps, tap_step, stride)
        The stride is 1 or 2.
    out : (address, step, count)
        Where results of the first line go, how much further those of the next, and how many windows a line has.
    op, divisor : int64, float64
        SUM or MAX, which is not divided.
    """
    triple = types.UniTuple(types.int64, 3)

    def codegen(context, builder, _signature, args):
        (line, step, n), (taps, tap_step, stride), (out, out_step, count) = (
            cgutils.unpack_tuple(builder, value, 3) for value in args[:3]
        )
        op, divisor = args[3:5]

        def windows(gap: int) -> Callable:
            def some(reduction: Reduction, source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
                emit, total = reduction.emitter, reduction.accumulator()
                first = emit.at(source, builder.mul(start, _I64(gap)))
                with cgutils.for_range(builder, taps) as tap:
                    place = emit.at(first, builder.mul(tap.index, tap_step))
                    reduction.add(emit.load(place) if gap == 1 else _every_second(emit, place), total)
                result = reduction.divided(reduction.value(total), divisor)
                emit.store_some(result, emit.at(target, start), mask)

            return some

        for reduction in _cases(builder, op, (SUM, MAX), ITEM.literal_value):
            for gap in (1, 2):
                with builder.if_then(builder.icmp_signed("==", stride, _I64(gap))):
                    _over_lines(reduction, ((line, step), (out, out_step)), n, count, windows(gap))
        return context.get_dummy_value()

    return types.void(triple, triple, triple, types.int64, types.float64, ITEM), codegen


@intrinsic(prefer_literal=True)
def reduce_pixels(typingctx, x, window, out, channels, op, divisor, ITEM):
    """Windows of neighbouring pixels, all channels of each, where channels are neighbours.

    Parameters
    ----------
    x : (address, step)
        The first tap of the first window, and how much further that of the next is.
    window : (row_step, rows, column_step, columns)
        Distances of the taps, and how many.
    out : (address, step, count)
        Where the first result goes, how much further the next, and how many windows there are.
    channels, op : int64
        `op` is SUM, SQUARES or MAX.
    divisor : float64
        Sums are divided by it.
    """
    groups = [types.UniTuple(types.int64, n) for n in (2, 4, 3)]

    def codegen(context, builder, _signature, args):
        (x, step), (row_step, rows, column_step, columns), (out, out_step, n) = (
            cgutils.unpack_tuple(builder, args[i], len(kind)) for i, kind in enumerate(groups)
        )
        channels, op, divisor = args[3:6]

        def some(reduction: Reduction, source: Any, target: Any, vectors: int, start: Any, mask: Any) -> None:
            emit = reduction.emitter
            offsets = [_I64(v * emit.lanes) for v in range(vectors)]
            totals = [reduction.accumulator() for _ in offsets]
            with cgutils.for_range(builder, rows) as row:
                line = emit.at(source, start, builder.mul(row.index, row_step))
                with cgutils.for_range(builder, columns) as column:
                    tap = emit.at(line, builder.mul(column.index, column_step))
                    for offset, total in zip(offsets, totals, strict=True):
                        reduction.add(emit.load_some(emit.at(tap, offset), mask), total)
            for offset, total in zip(offsets, totals, strict=True):
                result = reduction.divided(reduction.value(total), divisor)
                emit.store_some(result, emit.at(target, start, offset), mask)

        for reduction in _cases(builder, op, (SUM, SQUARES, MAX), ITEM.literal_value):
            _over_lines(reduction, ((x, step), (out, out_step)), n, channels, some, together=4)
        return context.get_dummy_value()

    return types.void(*groups, types.int64, types.int64, types.float64, ITEM), codegen


def _cases(builder: ir.IRBuilder, op: Any, ops: tuple[int, ...], itemsize: int) -> Iterator[Reduction]:
    """One after the other, with the builder where it is emitted for that operation."""
    for each in ops:
        with builder.if_then(builder.icmp_signed("==", op, _I64(each))):
            yield Reduction(Emitter(builder, itemsize, host().lanes(itemsize)), each, 1)


def _over_lines(reduction: Reduction, where: tuple, lines: Any, count: Any, some: Callable, together: int = 1) -> None:
    """``some(reduction, source, target, vectors, start, mask)`` for `count` elements of each line.

    `where` has (address, step) of the sources and of the targets; the rest is as `Emitter.in_vectors` has it.
    """
    emit, bld = reduction.emitter, reduction.emitter.builder
    with cgutils.for_range(bld, lines) as line:
        source, target = (emit.at(emit.pointer(address), bld.mul(line.index, step)) for address, step in where)
        emit.in_vectors(count, partial(some, reduction, source, target), together)


def _every_second(emit: Emitter, pointer: Any) -> Any:
    first, second = (emit.load(emit.at(pointer, _I64(n))) for n in (0, emit.lanes))
    even = ir.Constant(ir.VectorType(_I32, emit.lanes), list(range(0, 2 * emit.lanes, 2)))
    return emit.builder.shuffle_vector(first, second, even)

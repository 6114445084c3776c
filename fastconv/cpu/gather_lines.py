"""Gradients of pooling, many pixels at once: for each the sum of what the windows that cover it pass on.

A window passes its gradient on to all of its pixels, by a weight, or to the one that its index names. Each pixel is
written once. The loops over rows and pixels are part of the emitted code, for each has little to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter, short_loop
from fastconv.cpu.host import host

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def gather_rows(typingctx, grad, out, tables, rows, padding, KERNEL, STRIDE, ITEM):
    """Averages: rows of a plane whose columns are neighbours, where windows are 1 or 2 columns apart.

    Addresses, distances in elements and counts are int64.

    Parameters
    ----------
    grad : (address, row_step, count)
        The windows' gradients, and how many windows a row has.
    out : (address, row_step, width)
    tables : (rows, down, across)
        Addresses: for each row the first window that covers it and how many do (int64); weights of the windows'
        rows and of their columns.
    rows : (first, last)
    padding, KERNEL, STRIDE : int64, literal int, literal int
        Along the row.
    """
    kinds = [types.UniTuple(types.int64, n) for n in (3, 3, 3, 2)]

    def codegen(context, builder, _signature, args):
        values = [cgutils.unpack_tuple(builder, value, kind.count) for value, kind in zip(args, kinds, strict=False)]
        grad, out, tables, rows = values
        kernel, gap, padding = KERNEL.literal_value, STRIDE.literal_value, args[4]
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        blocks = _Blocks(emit, kernel, gap, *grad, *out, *tables)
        reach = builder.sdiv(builder.add(builder.add(out[2], padding), _I64(gap - 1)), _I64(gap))
        with cgutils.for_range_slice(builder, _I64(0), reach, _I64(emit.lanes)) as (q, _):
            blocks.write(rows, q, builder.sub(builder.mul(q, _I64(gap)), padding))
        return context.get_dummy_value()

    return types.void(*kinds, types.int64, KERNEL, STRIDE, ITEM), codegen


@intrinsic(prefer_literal=True)
def gather_pixels(typingctx, windows, out, tables, pixels, channels, MAX, ITEM):
    """Pixels of a row whose channels are neighbours, at any stride.

    Parameters
    ----------
    windows : (gradients, indices, row_step, column_step)
        Addresses of the first of each, which lie alike.
    out : (address, column_step)
        Of the row.
    tables : (rows, columns, down, across)
        As in `gather_rows`, with the windows that cover a column, too.
    pixels : (row, width, first, last)
        Which row, its length, and columns of it.
    channels : int64
    MAX : literal int
        1: an index, ``row*width + column``, names the pixel that gets the gradient. 0: all get it, by weight.

    Returns
    -------
    int64
        How many indices named a pixel of their window, among these pixels.
    """
    kinds = [types.UniTuple(types.int64, n) for n in (4, 2, 4, 4)]

    def codegen(context, builder, _signature, args):
        values = [cgutils.unpack_tuple(builder, value, kind.count) for value, kind in zip(args, kinds, strict=False)]
        (grad, indices, *steps), (out, step), tables, (row, width, first, last) = values
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        source, before, down = _Windows(emit, grad, indices), builder.mul(row, width), _pair(emit, tables[0], row)
        with cgutils.for_range(builder, last, start=first) as column:
            pixel, place = builder.add(before, column.index), builder.mul(column.index, step)
            across = _pair(emit, tables[1], column.index)

            def vectors(
                count: int, start: Any, mask: Any, pixel: Any = pixel, place: Any = place, across: Any = across
            ) -> None:
                starts = [builder.add(start, _I64(v * emit.lanes)) for v in range(count)]
                totals = [_total(emit) for _ in starts]
                with _each(builder, down) as i, _each(builder, across) as j:
                    offset = builder.add(builder.mul(i, steps[0]), builder.mul(j, steps[1]))
                    if MAX.literal_value:
                        add, scale = source.add_named, emit.splat(pixel, source.integers)
                    else:
                        add, scale = source.add_weighted, _weight(emit, tables[2:], (i, j))
                    for total, at in zip(totals, starts, strict=True):
                        add(total, builder.add(offset, at), mask, scale)
                for total, at in zip(totals, starts, strict=True):
                    emit.store_some(builder.load(total), emit.at(emit.pointer(out), place, at), mask)

            emit.in_vectors(args[4], vectors)
        return source.matches()

    return types.int64(*kinds, types.int64, MAX, ITEM), codegen


@intrinsic(prefer_literal=True)
def fill_run(typingctx, out, count, value, ITEM):
    """Set `count` neighbouring elements; few cost no loop over single ones."""
    kind = {4: types.float32, 8: types.float64}[ITEM.literal_value]

    def codegen(context, builder, _signature, args):
        emit = Emitter(builder, ITEM.literal_value, host().lanes(ITEM.literal_value))
        filled = emit.splat(args[2])

        def vectors(count: int, start: Any, mask: Any) -> None:
            for v in range(count):
                emit.store_some(filled, emit.at(emit.pointer(args[0]), start, _I64(v * emit.lanes)), mask)

        emit.in_vectors(args[1], vectors)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kind, ITEM), codegen


class _Windows:
    """What windows of neighbouring channels pass on."""

    def __init__(self, emit: Emitter, grad: Any, indices: Any) -> None:
        self.emit, self.grad = emit, emit.pointer(grad)
        # The emitter knows floats only: indices are loaded as doubles of the same bits.
        self._bits = Emitter(emit.builder, 8, emit.lanes)
        self._indices = self._bits.pointer(indices)
        self.integers = ir.VectorType(_I64, emit.lanes)
        counts = ir.VectorType(_I32, emit.lanes)
        self._matches = cgutils.alloca_once_value(emit.builder, ir.Constant(counts, [0] * emit.lanes))

    def add_weighted(self, total: Any, offset: Any, mask: Any, weight: Any) -> None:
        """Add a vector of windows, by weight."""
        value = self.emit.load_some(self.emit.at(self.grad, offset), mask)
        _accumulate(self.emit, total, value, weight)

    def add_named(self, total: Any, offset: Any, mask: Any, pixel: Any) -> None:
        """Add those of a vector of windows whose index is that of the pixel."""
        emit, bld = self.emit, self.emit.builder
        index = bld.bitcast(self._bits.load_some(self._bits.at(self._indices, offset), mask), self.integers)
        here = bld.icmp_signed("==", index, pixel)
        here = here if mask is None else bld.and_(here, mask)
        value, before = emit.load_some(emit.at(self.grad, offset), mask), bld.load(total)
        bld.store(bld.select(here, bld.fadd(before, value), before), total)
        found = bld.load(self._matches)
        one = ir.Constant(found.type, [1] * emit.lanes)
        bld.store(bld.select(here, bld.add(found, one), found), self._matches)

    def matches(self) -> Any:
        """How many indices named their pixel."""
        bld, found = self.emit.builder, self.emit.builder.load(self._matches)
        lanes = [bld.extract_element(found, _I32(lane)) for lane in range(self.emit.lanes)]
        return bld.zext(reduce(bld.add, lanes), _I64)


@dataclass(frozen=True)
class _Blocks:
    """Columns of rows: lane q has the `gap` pixels from ``gap*q - padding`` on, which windows q, q - 1, ... cover."""

    emit: Emitter
    kernel: int
    gap: int
    grad: Any
    row_step: Any
    count: Any
    out: Any
    out_step: Any
    width: Any
    rows: Any
    down: Any
    across: Any

    def write(self, rows: list, q: Any, pixel: Any) -> None:
        """One vector of q, for all rows; masks are for a block that reaches over an end."""
        emit, bld = self.emit, self.emit.builder
        windows_end, end = bld.add(q, _I64(emit.lanes)), bld.add(pixel, _I64(self.gap * emit.lanes))
        inside = bld.icmp_signed("<=", _I64((self.kernel - 1) // self.gap), q)
        for low, high in ((windows_end, self.count), (_I64(0), pixel), (end, self.width)):
            inside = bld.and_(inside, bld.icmp_signed("<=", low, high))
        with bld.if_else(inside) as branches:
            for branch, masked in zip(branches, (False, True), strict=True):
                with branch, cgutils.for_range(bld, rows[1], start=rows[0]) as row:
                    self._block(row.index, q, pixel, masked)

    def _block(self, row: Any, q: Any, pixel: Any, masked: bool) -> None:
        emit, bld = self.emit, self.emit.builder
        # Each pixel of a lane has the same windows, but for the first one more if they do not come out even.
        total, common, more = _total(emit), self.kernel // self.gap, self.kernel % self.gap
        first = total if self.gap == 1 else _total(emit)
        with _each(bld, _pair(emit, self.rows, row)) as i:
            grad = emit.at(emit.pointer(self.grad), bld.mul(i, self.row_step))
            weight = emit.broadcast(emit.at(emit.pointer(self.down), i))
            with cgutils.for_range(bld, _I64(common)) as m:
                self._add(total, grad, weight, bld.sub(q, m.index), masked)
            if more:
                self._add(first, grad, weight, bld.sub(q, _I64(common)), masked)
        values = [bld.load(total)]
        if self.gap == 2:
            values = emit.interleave(bld.fadd(values[0], bld.load(first)) if more else values[0], values[0])
        target = emit.at(emit.pointer(self.out), bld.mul(row, self.out_step))
        for n, value in enumerate(values):
            start = bld.add(pixel, _I64(n * emit.lanes))
            mask = emit.inside(start, self.width) if masked else None
            emit.store_some(value, emit.at(target, start), mask)

    def _add(self, total: Any, grad: Any, weight: Any, j: Any, masked: bool) -> None:
        emit, bld, zero = self.emit, self.emit.builder, self.emit.constant(0.0)
        mask = emit.inside(j, self.count) if masked else None
        value = emit.load_some(emit.at(grad, j), mask, zero)
        across = emit.load_some(emit.at(emit.pointer(self.across), j), mask, zero)
        _accumulate(emit, total, value, bld.fmul(across, weight))


def _total(emit: Emitter) -> Any:
    """A stack slot, which LLVM turns into a register, with a vector of zeros."""
    slot = cgutils.alloca_once(emit.builder, emit.vector)
    emit.builder.store(emit.constant(0.0), slot)
    return slot


def _weight(emit: Emitter, tables: list, window: tuple[Any, Any]) -> Any:
    """The weight of a window, in all lanes."""
    down, across = (emit.builder.load(emit.at(emit.pointer(t), n)) for t, n in zip(tables, window, strict=True))
    return emit.splat(emit.builder.fmul(down, across))


def _accumulate(emit: Emitter, total: Any, value: Any, weight: Any) -> None:
    emit.builder.store(emit.builder.call(emit.fma, [value, weight, emit.builder.load(total)]), total)


def _each(builder: ir.IRBuilder, run: tuple[Any, Any]) -> Any:
    """A loop over `count` numbers from `first` on."""
    first, count = run
    return short_loop(builder, builder.add(first, count), first)


def _pair(emit: Emitter, table: Any, row: Any) -> tuple[Any, Any]:
    """Two int64 of a row of a table that has two columns."""
    words = emit.builder.inttoptr(table, _I64.as_pointer())
    place = emit.at(words, emit.builder.mul(row, _I64(2)))
    return emit.builder.load(place), emit.builder.load(emit.at(place, _I64(1)))

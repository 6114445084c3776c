"""Transposition of a small block in registers: how arrays change between NCHW and channels-last fast."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter
from fastconv.cpu.host import host
from fastconv.cpu.memory import get, lanes_of, put
from fastconv.jit import inline

_I64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def transpose_block(typingctx, source, source_row, out, out_row, rows, columns, ITEM):
    """Write `rows` x `columns` elements, at most LANES each way, to `out` with rows and columns swapped.

    Parameters
    ----------
    source, out : int64
        Addresses. ``out[c*out_row + r] = source[r*source_row + c]``; only these elements are touched.
    source_row, out_row : int64
        Strides in elements.
    rows, columns : int64
        At least 1 each.
    ITEM : literal int
        Element size in bytes.
    """
    itemsize = ITEM.literal_value

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        _emit_transpose(emit, *args[:6])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, ITEM), codegen


def _emit_transpose(
    emit: Emitter, source: Any, source_row: Any, out: Any, out_row: Any, rows: Any, columns: Any
) -> None:
    bld, lanes = emit.builder, _I64(emit.lanes)
    source, out = emit.pointer(source), emit.pointer(out)
    whole = bld.and_(bld.icmp_signed(">=", rows, lanes), bld.icmp_signed(">=", columns, lanes))
    last = bld.sub(rows, _I64(1))
    with bld.if_else(whole) as (full, partial):
        with full:
            loaded = [emit.load(emit.at(source, bld.mul(_I64(r), source_row))) for r in range(emit.lanes)]
            for c, column in enumerate(emit.transpose(loaded)):
                emit.store(column, emit.at(out, bld.mul(_I64(c), out_row)))
        with partial:
            inside = emit.first(columns)
            loaded = []
            for r in range(emit.lanes):
                row = bld.select(bld.icmp_signed("<", _I64(r), rows), _I64(r), last)
                loaded.append(emit.load_masked(emit.at(source, bld.mul(row, source_row)), inside))
            for c, column in enumerate(emit.transpose(loaded)):
                wanted = bld.select(bld.icmp_signed("<", _I64(c), columns), rows, _I64(0))
                emit.store_masked(column, emit.at(out, bld.mul(_I64(c), out_row)), emit.first(wanted))


@intrinsic(prefer_literal=True)
def copy_vector(typingctx, source, target, ITEM):
    """Copy one vector of elements of ITEM bytes from address to address."""
    itemsize = ITEM.literal_value

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        emit.store(emit.load(emit.pointer(args[0])), emit.pointer(args[1]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ITEM), codegen


@inline
def transpose(source, source_row, out, out_row, rows, columns, ITEM):
    """``out[c*out_row + r] = source[r*source_row + c]`` for a matrix of any size, by blocks."""
    lanes = lanes_of(ITEM)
    for r in range(0, rows, lanes):
        for c in range(0, columns, lanes):
            transpose_block(
                source + ITEM * (r * source_row + c), source_row, out + ITEM * (c * out_row + r), out_row,
                rows - r, columns - c, ITEM,
            )  # fmt: skip


@inline
def move(source, source_row, source_column, out, out_row, out_column, rows, columns, ITEM):
    """Copy a matrix of `rows` x `columns` between any strides."""
    if source_column == 1 and out_row == 1:
        transpose(source, source_row, out, out_column, rows, columns, ITEM)
    elif source_row == 1 and out_column == 1:
        transpose(source, source_column, out, out_row, columns, rows, ITEM)
    # Far strides belong into the outer loop: what it skips over should still be in cache the next time.
    elif min(source_row, out_row) < min(source_column, out_column):
        for column in range(columns):
            for row in range(rows):
                value = get(source, row * source_row + column * source_column, ITEM)
                put(out, row * out_row + column * out_column, value, ITEM)
    else:
        for row in range(rows):
            for column in range(columns):
                value = get(source, row * source_row + column * source_column, ITEM)
                put(out, row * out_row + column * out_column, value, ITEM)

"""Where both operands are vectors: a register tile of lane-wise products.

For a tile of ``rows`` x ``columns`` vectors it computes, in every lane by itself::

    out[r, k] = init[r, k] + sum over steps i, taps t of A[r, i, t] * B[k, i, t]

    A[r, i, t] at  a + r*a_row    + i*a_step + taps[t, 0]
    B[k, i, t] at  b + k*b_column + i*b_step + taps[t, 1]

It is the sibling of `fastconv.cpu.contract` for weights that differ from pixel to pixel: lanes are pixels, and
a loaded vector of either operand serves a whole side of the tile. Taps are the inner loop because that is the
order of the weights in memory.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import Emitter, prefetch
from fastconv.cpu.host import host

_I64 = ir.IntType(64)
# B comes in pieces of a cache line that lie far apart, which no hardware prefetcher follows: each load asks for what
# will be loaded in its place so many bytes further on.
_AHEAD = 256


@intrinsic(prefer_literal=True)
def multiply_lanes(typingctx, A, B, taps, init, out, size, ROWS, COLUMNS, ITEM, MASKED):
    """Emit the products described at the top of this module.

    Addresses, strides in elements and counts are int64.

    Parameters
    ----------
    A : (address, row, step)
    B : (address, column, step)
    taps : (address, count, steps)
        A table of `count` pairs of int64 offsets, into A and into B, and the steps of the sum for each of them.
    init, out : (address, row, column)
        Where sums start from and where they go, which may be the same.
    size : (rows, columns, lanes)
        How many of the tile are wanted, at least 1. Rows and columns past the end repeat the last one.
    ROWS, COLUMNS, ITEM : literal int
        The tile and the element size in bytes.
    MASKED : literal int
        1: touch only the first `lanes` lanes, 0: all of them.
    """
    tile = (ROWS.literal_value, COLUMNS.literal_value)
    itemsize, masked = ITEM.literal_value, bool(MASKED.literal_value)
    groups = [types.UniTuple(types.int64, 3)] * 6

    def codegen(context, builder, _signature, args):
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        unpacked = [cgutils.unpack_tuple(builder, value, 3) for value in args[:6]]
        _emit_products(emit, *unpacked, *tile, masked)
        return context.get_dummy_value()

    return types.void(*groups, ROWS, COLUMNS, ITEM, MASKED), codegen


def _emit_products(
    emit: Emitter, A: list, B: list, taps: list, init: list, out: list, size: list, n_rows: int, n_columns: int,
    masked: bool,
) -> None:  # fmt: skip
    bld = emit.builder
    mask = emit.first(size[2]) if masked else None
    rows = [emit.minimum(_I64(r), bld.sub(size[0], _I64(1))) for r in range(n_rows)]
    columns = [emit.minimum(_I64(k), bld.sub(size[1], _I64(1))) for k in range(n_columns)]
    a_offsets = [bld.mul(row, A[1]) for row in rows]
    b_offsets = [bld.mul(column, B[1]) for column in columns]
    tile = [(r, k) for r in range(n_rows) for k in range(n_columns)]
    # Loop-carried values live on the stack, which LLVM turns into registers.
    sums = {rk: cgutils.alloca_once(bld, emit.vector) for rk in tile}
    for slot in sums.values():
        bld.store(emit.constant(0.0), slot)
    table = bld.inttoptr(taps[0], _I64.as_pointer())
    with cgutils.for_range(bld, taps[2]) as step:
        a = emit.at(emit.pointer(A[0]), bld.mul(step.index, A[2]))
        b = emit.at(emit.pointer(B[0]), bld.mul(step.index, B[2]))
        with cgutils.for_range(bld, taps[1]) as tap:
            pair = bld.gep(table, [bld.mul(tap.index, _I64(2))])
            a_tap, b_tap = emit.at(a, bld.load(pair)), emit.at(b, bld.load(bld.gep(pair, [_I64(1)])))
            right = [emit.load_some(emit.at(b_tap, offset), mask) for offset in b_offsets]
            for offset in b_offsets:
                prefetch(bld, emit.at(b_tap, offset, _I64(_AHEAD // emit.itemsize)), write=False, level=2)
            for r, offset in enumerate(a_offsets):
                left = emit.load_some(emit.at(a_tap, offset), mask)
                for k, value in enumerate(right):
                    bld.store(bld.call(emit.fma, [left, value, bld.load(sums[r, k])]), sums[r, k])

    def places(where: list) -> dict:
        start = emit.pointer(where[0])
        return {(r, k): emit.at(start, bld.mul(rows[r], where[1]), bld.mul(columns[k], where[2])) for r, k in tile}

    total = {rk: bld.fadd(emit.load_some(place, mask), bld.load(sums[rk])) for rk, place in places(init).items()}
    for rk, place in places(out).items():
        emit.store_some(total[rk], place, mask)

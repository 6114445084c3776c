"""The microkernel: one register-tiled contraction that every convolution kernel is built on.

For a tile of ``rows`` x ``VECS`` vectors it computes::

    out[r, v] = epilogue(init[r, v] + sum over taps t, steps i of A[r, t, i] * B[v, t, i])

    A[r, t, i] at  a + r*a_row + taps[t, 0] + i*a_step          a scalar, broadcast to all lanes
                                                                 (or a vector per v: A_VECTOR)
    B[v, t, i] at  b + v*LANES + taps[t, 1] + i*b_step          a vector load

The accumulators stay in registers. After every `_PARTIAL` steps they are added to the totals and start
again from zero: a sum of partial sums rounds several times less than one long sum (Higham, 1993), for a
few percent of time. The totals of a sum of more than `_LONG` steps are added to sums in memory, and start
again, too. The cache lines of the result are asked for at the start, for a store to memory that is far
away takes longer than a short sum.

Only the tile (ROWS, VECS) is fixed when the kernel is compiled; everything else is a run-time address,
stride or trip count, so that a short menu of tiles serves every shape, both memory formats and every
pass. The table of taps plays the part of LIBXSMM's batch-reduce GEMM (arXiv:1906.06440): a filter tap
that falls into the padding is simply not in the table.

It is written as an LLVM IR generator because LLVM's vectorizer neither keeps 28 accumulators in
registers nor chooses 512-bit vectors on its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.emit import LINE_BYTES, Emitter, prefetch, short_loop
from fastconv.cpu.host import host

_I64 = ir.IntType(64)
_PARTIAL = 128  # steps of a partial sum: near the square root of long sums, and seldom enough to be cheap
_LONG = 16 * _PARTIAL  # steps of a total; sums of more have several


@intrinsic(prefer_literal=True)
def contract(typingctx, A, B, taps, init, out, epilogue, ROWS, VECS, ITEM, A_VECTOR):
    """Emit the contraction described at the top of this module.

    Addresses, strides in elements and counts are int64.

    Parameters
    ----------
    A : (address, row, step)
        Where it starts, its stride from row to row of the tile, and along the sum.
    B : (address, step)
        Where it starts, and its stride along the sum.
    taps : (address, count, steps)
        A table of `count` pairs of int64 offsets, into A and into B, and the steps of the sum for each
        of them: at least 0 and 1.
    init : (address, row, vector)
        Where the sum starts from, and its strides from row to row and from vector to vector: with
        (bias, 0, LANES) from a bias along the vectors, with (out, out_row, LANES) from a former result.
    out : (address, row, rows, lanes)
        Where the result goes, its stride from row to row, and how many of the ROWS rows and of the
        ``VECS * LANES`` lanes are wanted, at least 1. Rows past the end repeat the last one, so that
        nothing outside is read and no branch is needed; lanes past the end are computed (B and `init`
        must be readable there) and not stored.
    epilogue : address
        Three elements (slope, low, high) of the activation, or 0 for none.
    ROWS, VECS, ITEM : literal int
        The tile and the element size in bytes. Literals keep Numba's disk cache working, which
        closing over a jitted function would not (numba#6264).
    A_VECTOR : literal int
        1: A is a vector that runs along with B's (depthwise convolution), 0: a broadcast scalar.
    """
    n_rows, n_vecs = ROWS.literal_value, VECS.literal_value
    itemsize, a_vector = ITEM.literal_value, A_VECTOR.literal_value
    groups = [types.UniTuple(types.int64, size) for size in (3, 2, 3, 3, 4)]
    signature = types.void(*groups, types.int64, ROWS, VECS, ITEM, A_VECTOR)

    def codegen(context, builder, _signature, args):
        emit = Emitter(builder, itemsize, host().lanes(itemsize))
        unpacked = [cgutils.unpack_tuple(builder, value, kind.count) for value, kind in zip(args, groups, strict=False)]
        _emit_contract(emit, *unpacked, args[5], n_rows, n_vecs, bool(a_vector))
        return context.get_dummy_value()

    return signature, codegen


def _emit_contract(
    emit: Emitter, A: list, B: list, taps: list, init: list, out: list, epilogue: Any, n_rows: int, n_vecs: int,
    a_vector: bool,
) -> None:  # fmt: skip
    a, a_row, a_step = A
    b, b_step = B
    table, n_taps, n_steps = taps
    init, init_row, init_vector = init
    out, out_row, rows, lanes = out
    bld = emit.builder
    tile = [(r, v) for r in range(n_rows) for v in range(n_vecs)]
    a, b, init, out = (emit.pointer(x) for x in (a, b, init, out))
    table = bld.inttoptr(table, _I64.as_pointer())
    last = bld.sub(rows, _I64(1))
    row = [_I64(0)] + [emit.minimum(_I64(r), last) for r in range(1, n_rows)]
    a_offset = [bld.mul(r, a_row) for r in row]
    vector = [_I64(v * emit.lanes) for v in range(n_vecs)]

    pointers = {(r, v): emit.at(out, bld.mul(row[r], out_row), vector[v]) for r, v in tile}
    for (_, v), pointer in pointers.items():
        if v * emit.lanes * emit.itemsize % LINE_BYTES == 0:
            prefetch(bld, pointer, write=True, level=1)
    sums = _Sums(emit, tile, is_long=bld.icmp_signed(">", bld.mul(n_taps, n_steps), _I64(_LONG)))
    for r, v in tile:
        start = emit.load(emit.at(init, bld.mul(row[r], init_row), bld.mul(_I64(v), init_vector)))
        bld.store(start, sums.total[r, v])
    a_now, b_now = (cgutils.alloca_once(bld, kind) for kind in (a.type, b.type))

    pieces = bld.udiv(bld.add(n_steps, _I64(_PARTIAL - 1)), _I64(_PARTIAL))
    with cgutils.for_range(bld, n_taps) as tap:
        pair = bld.gep(table, [bld.mul(tap.index, _I64(2))])
        bld.store(emit.at(a, bld.load(pair)), a_now)
        bld.store(emit.at(b, bld.load(bld.gep(pair, [_I64(1)]))), b_now)
        with cgutils.for_range(bld, pieces) as piece:
            sums.fold()
            left = bld.sub(n_steps, bld.mul(piece.index, _I64(_PARTIAL)))
            count = emit.minimum(left, _I64(_PARTIAL))
            with cgutils.for_range(bld, count):
                a_ptr, b_ptr = bld.load(a_now), bld.load(b_now)
                _multiply_add(emit, sums.acc, a_ptr, a_offset, b_ptr, vector, a_vector)
                bld.store(emit.at(a_ptr, a_step), a_now)
                bld.store(emit.at(b_ptr, b_step), b_now)
            sums.count(count)
    total = activated(emit, sums.result(), epilogue)
    with bld.if_else(bld.icmp_signed("<", lanes, _I64(n_vecs * emit.lanes))) as (partial, whole):
        with partial:
            for r, v in tile:
                emit.store_masked(total[r, v], pointers[r, v], emit.first(bld.sub(lanes, vector[v])))
        with whole:
            for k in tile:
                emit.store(total[k], pointers[k])


class _Sums:
    """The sums of a tile, in parts: accumulators, totals of them, and for long sums a sum of totals.

    LLVM keeps as many as it can in registers; the sums of totals are seldom touched, and stay in memory. The caller
    stores in `total` what each sum starts from, calls `fold` before some steps, never after the last, and `count`
    after them. So a sum that is not long, of at most `_LONG` steps, has no total that is full when it is folded.
    """

    def __init__(self, emit: Emitter, tile: list, is_long: ir.Value) -> None:
        self.emit, self.is_long, self.tile = emit, is_long, tile
        bld = emit.builder
        self.acc, self.total = ({k: cgutils.alloca_once(bld, emit.vector) for k in tile} for _ in range(2))
        self._sums = cgutils.alloca_once(bld, ir.ArrayType(emit.vector, len(tile)))
        self._in_acc, self._in_total = (cgutils.alloca_once_value(bld, _I64(0)) for _ in range(2))
        self._clear(self.acc)
        with bld.if_then(is_long), short_loop(bld, _I64(len(tile))) as n:
            bld.store(emit.constant(0.0), bld.gep(self._sums, [_I64(0), n]))

    def count(self, steps: ir.Value) -> None:
        """Say that the accumulators have grown by so many steps."""
        bld = self.emit.builder
        bld.store(bld.add(bld.load(self._in_acc), steps), self._in_acc)

    def fold(self) -> None:
        """Add the accumulators to the totals if they have enough steps, and totals that have to their sums."""
        bld = self.emit.builder
        with bld.if_then(bld.icmp_signed(">=", bld.load(self._in_acc), _I64(_PARTIAL))):
            self._add(self.total, self.acc)
            self._clear(self.acc)
            bld.store(bld.add(bld.load(self._in_total), bld.load(self._in_acc)), self._in_total)
            bld.store(_I64(0), self._in_acc)
            with bld.if_then(bld.icmp_signed(">=", bld.load(self._in_total), _I64(_LONG)), likely=False):
                self._add(self._in_memory(), self.total)
                self._clear(self.total)
                bld.store(_I64(0), self._in_total)

    def result(self) -> dict:
        """Everything added up."""
        bld = self.emit.builder
        with bld.if_then(self.is_long, likely=False):
            self._add(self.total, self._in_memory())
        return {k: bld.fadd(bld.load(self.total[k]), bld.load(self.acc[k])) for k in self.tile}

    def _in_memory(self) -> dict:
        return {k: self.emit.builder.gep(self._sums, [_I64(0), _I64(n)]) for n, k in enumerate(self.tile)}

    def _add(self, sums: dict, parts: dict) -> None:
        bld = self.emit.builder
        for k in self.tile:
            bld.store(bld.fadd(bld.load(sums[k]), bld.load(parts[k])), sums[k])

    def _clear(self, sums: dict) -> None:
        for k in self.tile:
            self.emit.builder.store(self.emit.constant(0.0), sums[k])


def _multiply_add(emit, acc, a_ptr, a_offset, b_ptr, vector, a_vector):
    """One step of the sum for every accumulator of the tile."""
    bld = emit.builder
    columns = [emit.load(emit.at(b_ptr, offset)) for offset in vector]
    for r, offset in enumerate(a_offset):
        if not a_vector:
            scalar = emit.broadcast(emit.at(a_ptr, offset))
        for v, column in enumerate(columns):
            left = emit.load(emit.at(a_ptr, offset, vector[v])) if a_vector else scalar
            bld.store(bld.call(emit.fma, [left, column, bld.load(acc[r, v])]), acc[r, v])


def activated(emit: Emitter, total: dict, epilogue: Any) -> dict:
    """The tile after the activation, or as it was where `epilogue` is a null address."""
    bld = emit.builder
    plain = bld.block
    activate, after = bld.append_basic_block("activate"), bld.append_basic_block("after")
    bld.cbranch(bld.icmp_unsigned("!=", epilogue, _I64(0)), activate, after)
    bld.position_at_end(activate)
    constants = emit.pointer(epilogue)
    slope, low, high = (emit.broadcast(emit.at(constants, _I64(n))) for n in range(3))
    activated = {k: emit.activate(value, slope, low, high) for k, value in total.items()}
    bld.branch(after)
    bld.position_at_end(after)
    result = {}
    for k, value in total.items():
        result[k] = bld.phi(emit.vector)
        result[k].add_incoming(value, plain)
        result[k].add_incoming(activated[k], activate)
    return result

"""The microkernel of depthwise convolution and of small groups: a row of pixels in registers, inputs used by every tap.

For a tile of PIXELS neighbouring outputs x VECS vectors of channels, in every lane by itself::

    out[p, v] = epilogue(init[v] + sum over rows r, taps s, channels j of X[r, p*STRIDE + s, v, j] * W[r, s, j, v])

It is the sibling of `fastconv.cpu.contract` for filters that see GROUP channels only, as many as there are filters
in a group. A vector then holds whole groups: X[..., j] is the vector of a pixel with channel j of each group in all
the lanes of that group. A pixel is loaded once for all the taps that look at it, so
unlike in `contract`, whose loads would be as many as its multiply-adds, multiply-adds are what takes the time.

Pixels outside of the image are read from zeros: choosing the address costs less than another loop.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu.contract import activated
from fastconv.cpu.emit import Emitter

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LOOP = 8  # channels of a group from which on they are a loop, and a vector holds one group


@intrinsic(prefer_literal=True)
def slide(typingctx, X, inside, W, init, out, epilogue, PIXELS, VECS, TAPS, STRIDE, GROUP, LANES, ITEM):
    """Emit the sum described at the top of this module.

    Addresses, strides in elements and counts are int64.

    Parameters
    ----------
    X : (address, row, pixel, rows)
        The first tap of the first output, the strides between rows and between pixels, and how many rows to sum.
    inside : (first, last, zeros)
        Pixels [first, last) after `address` that exist; the others are read at the address `zeros`.
    W : (address, row, tap, channel)
        Weights of the first row, and their strides; those of neighbouring filters are neighbours.
    init : address
        Where sums start from, for all pixels the same.
    out : (address, pixel, count)
        Where the results go; only `count` pixels of the tile, at least 1, are stored.
    epilogue : address
        As in `fastconv.cpu.contract.contract`.
    PIXELS, VECS, TAPS, STRIDE, GROUP, LANES, ITEM : literal int
        The tile, the taps of a filter row, the stride along it, channels and filters of a group (a divisor of
        LANES, and LANES itself from 8 on), elements of a vector, and bytes of an element.
    """
    literals = (PIXELS, VECS, TAPS, STRIDE, GROUP, LANES, ITEM)
    sizes = [kind.literal_value for kind in literals]
    groups = [types.UniTuple(types.int64, size) for size in (4, 3, 4)]
    last = types.UniTuple(types.int64, 3)

    def codegen(context, builder, _signature, args):
        x, inside, w = (cgutils.unpack_tuple(builder, args[i], len(kind)) for i, kind in enumerate(groups))
        target = cgutils.unpack_tuple(builder, args[4], 3)
        _Slide(Emitter(builder, sizes[6], sizes[5]), *sizes[:5]).emit(x, inside, w, args[3], target, args[5])
        return context.get_dummy_value()

    return types.void(*groups, types.int64, last, types.int64, *literals), codegen


class _Slide:
    """IR of one tile; accumulators are stack slots that LLVM turns into registers."""

    def __init__(self, emit: Emitter, pixels: int, vecs: int, taps: int, stride: int, group: int) -> None:
        self.emitter, self.pixels, self.taps, self.stride, self.group = emit, pixels, taps, stride, group
        self.vectors = [_I64(v * emit.lanes) for v in range(vecs)]
        self.tile = [(p, v) for p in range(pixels) for v in range(vecs)]

    def emit(self, x: list, inside: list, w: list, init: Any, out: list, epilogue: Any) -> None:
        """Sum up, apply the activation and store."""
        emit, bld = self.emitter, self.emitter.builder
        start = [emit.load(emit.at(emit.pointer(init), offset)) for offset in self.vectors]
        sums = {pv: cgutils.alloca_once(bld, emit.vector) for pv in self.tile}
        for (_, v), slot in ((pv, sums[pv]) for pv in self.tile):
            bld.store(start[v], slot)
        address, row, pixel, rows = x
        with cgutils.for_range(bld, rows) as r:
            image = emit.at(emit.pointer(address), bld.mul(r.index, row))
            weights = emit.at(emit.pointer(w[0]), bld.mul(r.index, w[1]))
            self._sum_row(sums, self._pixels(image, pixel, inside), weights, w[2], w[3])
        total = activated(emit, {pv: bld.load(sums[pv]) for pv in self.tile}, epilogue)
        address, pixel, count = out
        for p in range(self.pixels):
            with bld.if_then(bld.icmp_signed("<", _I64(p), count), likely=True):
                place = emit.at(emit.pointer(address), bld.mul(_I64(p), pixel))
                for v, offset in enumerate(self.vectors):
                    emit.store(total[p, v], emit.at(place, offset))

    def _pixels(self, image: Any, pixel: Any, inside: list) -> list:
        """Where each pixel of a row that the tile looks at is read."""
        emit, bld = self.emitter, self.emitter.builder
        first, last, zeros = inside
        found = []
        for q in range((self.pixels - 1) * self.stride + self.taps):
            is_inside = bld.and_(bld.icmp_signed("<=", first, _I64(q)), bld.icmp_signed("<", _I64(q), last))
            found.append(bld.select(is_inside, emit.at(image, bld.mul(_I64(q), pixel)), emit.pointer(zeros)))
        return found

    def _sum_row(self, sums: dict, pixels: list, weights: Any, tap: Any, channel: Any) -> None:
        if self.group < _LOOP:
            for j in range(self.group):
                self._sum_channel(sums, pixels, weights, tap, channel, _I64(j))
        else:  # unrolled, intermediate results of all channels would compete for registers
            with cgutils.for_range(self.emitter.builder, _I64(self.group)) as j:
                self._sum_channel(sums, pixels, weights, tap, channel, j.index)

    def _sum_channel(self, sums: dict, pixels: list, weights: Any, tap: Any, channel: Any, j: Any) -> None:
        emit, bld = self.emitter, self.emitter.builder
        here = emit.at(weights, bld.mul(j, channel))
        taps = [emit.at(here, bld.mul(_I64(s), tap)) for s in range(self.taps)]
        w = {
            (s, v): emit.load(emit.at(tap_at, offset))
            for s, tap_at in enumerate(taps)
            for v, offset in enumerate(self.vectors)
        }
        for q, pointer in enumerate(pixels):
            users = [(p, q - p * self.stride) for p in range(self.pixels) if 0 <= q - p * self.stride < self.taps]
            for v, offset in enumerate(self.vectors):
                value = self._spread(emit.at(pointer, offset), j)
                for p, s in users:
                    bld.store(bld.call(emit.fma, [value, w[s, v], bld.load(sums[p, v])]), sums[p, v])

    def _spread(self, pointer: Any, j: Any) -> Any:
        """Channel `j` of each group in all the lanes of its group."""
        emit, group, lanes = self.emitter, self.group, self.emitter.lanes
        if group == 1:
            return emit.load(pointer)
        if group < _LOOP:  # one shuffle within a few neighbouring lanes
            order = [lane // group * group + j.constant for lane in range(lanes)]
            value = emit.load(pointer)
            return emit.builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_I32, lanes), order))
        return emit.broadcast(emit.at(pointer, j))

"""LLVM IR for vectors of one element type: what the intrinsics of this package are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.cpu.host import host

_I32, _I64 = ir.IntType(32), ir.IntType(64)
LINE_BYTES = 64  # of a cache line
_ELEMENT = {4: ir.FloatType(), 8: ir.DoubleType()}


def prefetch(builder: ir.IRBuilder, pointer: Any, *, write: bool, level: int) -> None:
    """Bring a cache line into the cache of a level, 1 to 3; an address outside of memory does no harm."""
    byte, data = ir.IntType(8).as_pointer(), _I32(1)
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, byte), _I32(int(write)), _I32(4 - level), data])


@contextmanager
def short_loop(builder: ir.IRBuilder, stop: Any, start: Any = None) -> Iterator[Any]:
    """``for index in range(start, stop)`` of few turns: LLVM would unroll it many times, and spill what that takes."""
    with cgutils.for_range(builder, stop, start=start) as loop:
        yield loop.index
        latch = builder.basic_block
    module = builder.module
    node = ir.values.MDValue(module, [], name=str(len(module.metadata)))
    node.operands = (node, module.add_metadata(["llvm.loop.unroll.disable"]))  # what describes a loop names itself
    latch.terminator.set_metadata("llvm.loop", node)


class Emitter:
    """IR for the vectors of one element type: loads, stores, broadcasts, multiply-add."""

    def __init__(self, builder: ir.IRBuilder, itemsize: int, lanes: int) -> None:
        self.builder, self.itemsize, self.lanes = builder, itemsize, lanes
        self.scalar = _ELEMENT[itemsize]
        self.vector = ir.VectorType(self.scalar, lanes)
        self.suffix = f"v{lanes}f{8 * itemsize}"
        # Without the instruction, llvm.fma would be a library call per lane.
        self.fma = self._declare("fma" if host().fma else "fmuladd", [self.vector] * 3)

    def _declare(self, name: str, arguments: list) -> Any:
        # llvmlite's declare_intrinsic refuses vector types, so the name is spelled out.
        kind = ir.FunctionType(self.vector, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{self.suffix}")

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.vector, [value] * self.lanes)

    def pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.scalar.as_pointer())

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """`pointer` moved by a sum of offsets in elements."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer: Any) -> Any:
        as_vector = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(as_vector, align=self.itemsize)

    def store(self, value: Any, pointer: Any) -> None:
        as_vector = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.store(value, as_vector, align=self.itemsize)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def first(self, count: Any) -> Any:
        """A mask of the first `count` lanes (none if it is not positive)."""
        integers = ir.VectorType(_I64, self.lanes)
        index = ir.Constant(integers, list(range(self.lanes)))
        return self.builder.icmp_signed("<", index, self.splat(count, integers))

    def inside(self, start: Any, size: Any) -> Any:
        """A mask of the lanes whose ``start + lane`` is in [0, size), for sizes of a row: 32 bits are enough."""
        b, kind = self.builder, ir.VectorType(_I32, self.lanes)
        places = b.add(self.splat(b.trunc(start, _I32), kind), ir.Constant(kind, list(range(self.lanes))))
        return b.icmp_unsigned("<", places, self.splat(b.trunc(size, _I32), kind))

    def store_masked(self, value: Any, pointer: Any, mask: Any) -> None:
        """Store the lanes of a mask; the others are not touched."""
        b = self.builder
        as_vector = b.bitcast(pointer, self.vector.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [self.vector, as_vector.type, _I32, mask.type])
        name = f"llvm.masked.store.{self.suffix}.p0"
        b.call(cgutils.get_or_insert_function(b.module, kind, name), [value, as_vector, _I32(self.itemsize), mask])

    def load_masked(self, pointer: Any, mask: Any, otherwise: Any = None) -> Any:
        """The lanes of a mask; the others are not read, and those of `otherwise`, or undefined."""
        b = self.builder
        as_vector = b.bitcast(pointer, self.vector.as_pointer())
        kind = ir.FunctionType(self.vector, [as_vector.type, _I32, mask.type, self.vector])
        function = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.{self.suffix}.p0")
        otherwise = otherwise or ir.Constant(self.vector, ir.Undefined)
        return b.call(function, [as_vector, _I32(self.itemsize), mask, otherwise])

    def load_some(self, pointer: Any, mask: Any, otherwise: Any = None) -> Any:
        """`load_masked`, or `load` if there is no mask."""
        return self.load(pointer) if mask is None else self.load_masked(pointer, mask, otherwise)

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        """`store_masked`, or `store` if there is no mask."""
        if mask is None:
            self.store(value, pointer)
        else:
            self.store_masked(value, pointer, mask)

    def in_vectors(self, count: Any, some: Callable[[int, Any, Any], None], sizes: tuple[int, ...] = (4, 1)) -> None:
        """Emit loops over `count` elements: ``some(vectors, start, mask)`` for so many at once, and what is left.

        The mask is None but for the last, which is of one vector.
        """
        b, done = self.builder, _I64(0)
        for vectors in sizes:
            step = _I64(vectors * self.lanes)
            end = b.mul(b.sdiv(count, step), step)
            with cgutils.for_range_slice(b, done, end, step) as (start, _):
                some(vectors, start, None)
            done = end
        with b.if_then(b.icmp_signed("<", done, count)):
            some(1, done, self.first(b.sub(count, done)))

    @contextmanager
    def lines(self, where: tuple, count: Any) -> Iterator[list]:
        """Emit a loop over `count` lines; yields where each is, of the (address, step) of `where`."""
        with cgutils.for_range(self.builder, count) as line:
            yield [self.at(self.pointer(address), self.builder.mul(line.index, step)) for address, step in where]

    def over_lines(self, where: tuple, lines: Any, count: Any, some: Callable, sizes: tuple[int, ...] = (1,)) -> None:
        """Emit ``some(source, target, vectors, start, mask)`` for `count` elements of each line.

        `where` has (address, step) of the sources and of the targets; the rest is as in `in_vectors`.
        """
        with self.lines(where, lines) as (source, target):
            self.in_vectors(count, partial(some, source, target), sizes)

    def transpose(self, rows: list) -> list:
        """As many vectors as there are lanes, with rows and lanes swapped.

        Blocks of 1, 2, 4, ... lanes are exchanged between vectors that lie as far apart.
        """
        lanes = range(self.lanes)
        step = 1
        while step < self.lanes:
            low = [lane if not lane & step else self.lanes + lane - step for lane in lanes]
            high = [lane + step if not lane & step else self.lanes + lane for lane in lanes]
            for i in (n for n in lanes if not n & step):
                pair = rows[i], rows[i + step]
                rows[i], rows[i + step] = self._shuffle(*pair, low), self._shuffle(*pair, high)
            step *= 2
        return rows

    def interleave(self, a: Any, b: Any) -> list:
        """The lanes of two vectors in turn, as two vectors."""
        lanes = self.lanes
        order = [lane for n in range(lanes) for lane in (n, lanes + n)]
        return [self._shuffle(a, b, half) for half in (order[:lanes], order[lanes:])]

    def _shuffle(self, a: Any, b: Any, mask: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, self.lanes), mask))

    def splat(self, scalar: Any, kind: ir.VectorType | None = None) -> Any:
        kind = kind or self.vector
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def broadcast(self, pointer: Any) -> Any:
        return self.splat(self.builder.load(pointer, align=self.itemsize))

    def activate(self, value: Any, slope: Any, low: Any, high: Any) -> Any:
        """x < 0 ? slope*x : x, clamped to [low, high]; comparisons are ordered, so NaN passes through."""
        b = self.builder
        value = b.select(b.fcmp_ordered("<", value, self.constant(0.0)), b.fmul(value, slope), value)
        value = b.select(b.fcmp_ordered("<", value, low), low, value)
        return b.select(b.fcmp_ordered(">", value, high), high, value)

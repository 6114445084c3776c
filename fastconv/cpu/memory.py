"""Raw memory, for the parts of a kernel that are plain loops.

An address is an int64 and an index counts elements. `get` and `put` compile to one load or store, so a
loop over them vectorises as well as one over an array, without Numba's handling of negative indices.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.cpu import emit
from fastconv.cpu.host import host
from fastconv.jit import inline

_HEAD = object.__basicsize__  # of every Python object; ``id`` is its address
_ELEMENT = {1: types.uint8, 4: types.float32, 8: types.float64}


def _at(context: Any, builder: Any, address: Any, index: Any, element: Any) -> Any:
    kind = context.get_value_type(element).as_pointer()
    return builder.gep(builder.inttoptr(address, kind), [index])


@intrinsic(prefer_literal=True)
def get(typingctx, address, index, ITEM):
    """The float of ITEM (4 or 8) bytes, or the uint8, at `address`, `index` elements on."""
    element = _ELEMENT[ITEM.literal_value]

    def codegen(context, builder, signature, args):
        return builder.load(_at(context, builder, args[0], args[1], element))

    return element(types.int64, types.int64, ITEM), codegen


@intrinsic(prefer_literal=True)
def put(typingctx, address, index, value, ITEM):
    """Store `value` as the float of ITEM bytes at `address`, `index` elements on."""
    element = _ELEMENT[ITEM.literal_value]

    def codegen(context, builder, signature, args):
        builder.store(args[2], _at(context, builder, args[0], args[1], element))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, element, ITEM), codegen


@intrinsic(prefer_literal=True)
def prefetch_lines(typingctx, address, count, WRITE):
    """Bring the cache lines of `count` bytes from `address` on near, to be read (WRITE 0) or written (1)."""
    write = bool(WRITE.literal_value)

    def codegen(context, builder, signature, args):
        byte, line = ir.IntType(8).as_pointer(), ir.IntType(64)(emit.LINE_BYTES)
        start = builder.inttoptr(args[0], byte)
        lines = builder.sdiv(builder.add(args[1], line.type(emit.LINE_BYTES - 1)), line)
        with cgutils.for_range(builder, lines) as each:
            emit.prefetch(builder, builder.gep(start, [builder.mul(each.index, line)]), write=write, level=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, WRITE), codegen


@intrinsic
def call(typingctx, function, arguments):
    """Call the C function at an address with a tuple of int64 arguments (pointers are passed as such)."""
    count = len(arguments)
    signature = types.void(types.int64, types.UniTuple(types.int64, count))

    def codegen(context, builder, _signature, values):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * count)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), cgutils.unpack_tuple(builder, values[1], count))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def words(typingctx, address):
    """The int64 words at `address`, to be read or written by index."""
    pointer = types.CPointer(types.int64)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@inline
def ints(address, rows, columns):
    """The int64 table of `rows` x `columns` at `address`."""
    return carray(words(address), (rows, columns))


@inline
def data_of(array):
    """Where the data of an array is, by the array's ``id``: `PyArrayObject.data`, the word after Python's head."""
    return words(array + _HEAD)[0]


@inline
def copy(source, source_step, target, count, ITEM):
    """Copy `count` elements that lie `source_step` apart to neighbouring ones."""
    if source_step == 1:
        for i in range(count):
            put(target, i, get(source, i, ITEM), ITEM)
    else:
        for i in range(count):
            put(target, i, get(source, i * source_step, ITEM), ITEM)


@inline
def fill(target, count, value, ITEM):
    """Set `count` neighbouring elements."""
    for i in range(count):
        put(target, i, value, ITEM)


@intrinsic(prefer_literal=True)
def lanes_of(typingctx, ITEM):
    """Elements of ITEM bytes in one vector register, a compile-time constant."""
    itemsize = ITEM.literal_value

    def codegen(context, builder, signature, args):
        return ir.IntType(64)(host().lanes(itemsize))

    return types.int64(ITEM), codegen


@intrinsic(prefer_literal=True)
def stack(typingctx, COUNT, ITEM):
    """Address of COUNT uninitialised elements of ITEM bytes, which live as long as the calling function."""
    size = COUNT.literal_value * ITEM.literal_value

    def codegen(context, builder, signature, args):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(COUNT, ITEM), codegen

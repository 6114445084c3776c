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

from fastconv.jit import inline

_ELEMENT = {4: types.float32, 8: types.float64}


def _at(context: Any, builder: Any, address: Any, index: Any, element: Any) -> Any:
    kind = context.get_value_type(element).as_pointer()
    return builder.gep(builder.inttoptr(address, kind), [index])


@intrinsic(prefer_literal=True)
def get(typingctx, address, index, ITEM):
    """The float of ITEM (4 or 8) bytes at `address`, `index` elements on."""
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
def _int_pointer(typingctx, address):
    pointer = types.CPointer(types.int64)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@inline
def ints(address, rows, columns):
    """The int64 table of `rows` x `columns` at `address`."""
    return carray(_int_pointer(address), (rows, columns))


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


@inline
def scatter(tile, tile_row, out, out_row, out_column, rows, columns, ITEM):
    """Copy a tile of `rows` x `columns` to `out`, whose columns need not be neighbours in memory."""
    for column in range(columns):
        for row in range(rows):
            put(out, column * out_column + row * out_row, get(tile, row * tile_row + column, ITEM), ITEM)


@inline
def move(source, source_row, source_column, out, out_row, out_column, rows, columns, ITEM):
    """Copy a matrix of `rows` x `columns` between any strides."""
    # Far strides belong into the outer loop: what it skips over should still be in cache the next time.
    if min(source_row, out_row) < min(source_column, out_column):
        for column in range(columns):
            for row in range(rows):
                value = get(source, row * source_row + column * source_column, ITEM)
                put(out, row * out_row + column * out_column, value, ITEM)
    else:
        for row in range(rows):
            for column in range(columns):
                value = get(source, row * source_row + column * source_column, ITEM)
                put(out, row * out_row + column * out_column, value, ITEM)

"""LLVM IR for GPUs: what the intrinsics of `fastconv.cuda.ptx` are written in."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

F32, VOID = ir.FloatType(), ir.VoidType()
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_GLOBAL, _SHARED = 1, 3  # LLVM's address spaces on NVIDIA GPUs


def bytes_of(kind: Any) -> int:
    """Size of an element of an array or a pointer, from its type."""
    return kind.dtype.bitwidth // 8


def need_words(*kinds: Any) -> None:
    """Raise a TypeError unless elements have 4 bytes."""
    for kind in kinds:
        _need(4, kind)


def need_halves(kind: Any) -> None:
    """Raise a TypeError unless elements have 2 bytes."""
    _need(2, kind)


def _need(size: int, kind: Any) -> None:
    if bytes_of(kind) != size:
        raise TypeError(f"elements must have {size} bytes, got {kind.dtype}")


def global_address(builder: Any, pointer: Any, index: Any) -> Any:
    """Pointer to an element of global memory."""
    space = ir.PointerType(pointer.type.pointee, _GLOBAL)
    return builder.gep(builder.addrspacecast(pointer, space), [index])


def shared_address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Address of an element in shared memory, in the 32 bits that instructions take.

    LLVM would compute with 64, and find no constant to make a part of the instruction.
    """
    data = context.make_array(kind)(context, builder, value=array).data
    base = builder.ptrtoint(builder.addrspacecast(data, ir.PointerType(data.type.pointee, _SHARED)), I32)
    return builder.add(base, builder.mul(index, I32(bytes_of(kind))))


def global_vector(builder: Any, pointer: Any, index: Any) -> Any:
    """Pointer to 4 elements of global memory."""
    return _vector(builder, global_address(builder, pointer, index), pointer.type.pointee, 4)


def global_words(builder: Any, count: int, pointer: Any, index: Any) -> Any:
    """Pointer to what begins at an element of global memory as a vector of uint32."""
    return _vector(builder, global_address(builder, pointer, index), I32, count)


def _vector(builder: Any, address: Any, element: Any, count: int) -> Any:
    return builder.bitcast(address, ir.PointerType(ir.VectorType(element, count), _GLOBAL))


def load_vector(context: Any, builder: Any, kind: Any, vector: Any) -> Any:
    """The elements of 4 bytes of the vector at a pointer, as a tuple of a type."""
    count = vector.type.pointee.count
    loaded = builder.load(vector, align=4 * count)
    return context.make_tuple(builder, kind, [builder.extract_element(loaded, I32(i)) for i in range(count)])


def store_vector(builder: Any, values: Any, vector: Any) -> None:
    """Write a tuple of elements of 4 bytes."""
    stored, count = ir.Constant(vector.type.pointee, ir.Undefined), vector.type.pointee.count
    for i in range(count):
        stored = builder.insert_element(stored, builder.extract_value(values, i), I32(i))
    builder.store(stored, vector, align=4 * count)


def instruction(builder: Any, result: Any, text: str, constraints: str, arguments: list, *, pure: bool = False) -> Any:
    """Inline PTX; what is not `pure` stays where it is among its like, with the same lanes of the warp."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    code = ir.InlineAsm(kind, text, constraints, side_effect=not pure)
    return builder.call(code, arguments, attrs=() if pure else ("convergent",))


def registers(context: Any, builder: Any, kind: Any, array: Any, first: Any, count: int) -> list:
    """Pointers to consecutive elements of a local array."""
    data = context.make_array(kind)(context, builder, value=array).data
    return [builder.gep(data, [builder.add(first, I64(i))]) for i in range(count)]


def fill(builder: Any, targets: list, values: Any) -> None:
    """Write the elements of a struct to pointers."""
    for i, target in enumerate(targets):
        builder.store(builder.extract_value(values, i), target)

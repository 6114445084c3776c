"""Instructions of NVIDIA GPUs that Numba has no name for, as functions that kernels call.

Compiled, each is one instruction; in Numba's simulator, `fastconv.cuda.ptx_simulated` does the same in Python. What
they do, and how fragments of matrices lie in the lanes of a warp, is that of NVIDIA's PTX ISA, "Data Movement and
Conversion Instructions" and "Warp Level Matrix Multiply-Accumulate Instructions"; all need compute capability 8.0.

`pointer` is a flat pointer to memory of the GPU, `shared` an array in shared memory; indices count elements. Take
shared memory as ``cuda.shared.array(0, float32)``, whose size is that of the launch and whose start is aligned as any
instruction wants it; arrays of several types made so are views of the same bytes. Fragments live in flat arrays of
``cuda.local.array``, which stay in registers where every index is known once loops are unrolled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cuda import emit
from fastconv.cuda import ptx_simulated as simulated
from fastconv.cuda.toolkit import float32, int32, int64, intrinsic, literal, types, uint32


@intrinsic(simulated.load4)
def load4(typing: Any, pointer: Any, index: Any) -> Any:
    """``load4(pointer, index)``: elements index to index + 3, as a tuple, by one load of 16 bytes ("ld").

    Elements have 4 bytes; the address must be a multiple of 16, so `index` is one of 4 where the pointer is aligned.
    """
    emit.need_words(pointer)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit.load_vector(context, builder, signature.return_type, emit.global_vector(builder, *arguments))

    return types.UniTuple(pointer.dtype, 4)(pointer, int64), code


@intrinsic(simulated.store4)
def store4(typing: Any, pointer: Any, index: Any, values: Any) -> Any:
    """``store4(pointer, index, values)``: write a tuple of 4 elements by one store of 16 bytes ("st"), as `load4`."""
    emit.need_words(pointer)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.store_vector(builder, arguments[2], emit.global_vector(builder, *arguments[:2]))
        return context.get_dummy_value()

    return types.void(pointer, int64, types.UniTuple(pointer.dtype, 4)), code


@intrinsic(simulated.store_words)
def store_words(typing: Any, pointer: Any, index: Any, values: Any) -> Any:
    """``store_words(pointer, index, values)``: write 8 elements of 2 bytes, given as 4 uint32, as `store4`."""
    return _store_halves(4, pointer)


def _store_halves(words: int, pointer: Any) -> Any:
    """Typing and code of a store of elements of 2 bytes, given as so many uint32."""
    emit.need_halves(pointer)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.store_vector(builder, arguments[2], emit.global_words(builder, words, *arguments[:2]))
        return context.get_dummy_value()

    return types.void(pointer, int64, types.UniTuple(uint32, words)), code


@intrinsic(simulated.load_pairs)
def load_pairs(typing: Any, pointer: Any, index: Any) -> Any:
    """``load_pairs(pointer, index)``: 4 elements of 2 bytes, as a tuple of 2 uint32, by one load of 8 bytes ("ld").

    The address must be a multiple of 8.
    """
    emit.need_halves(pointer)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit.load_vector(context, builder, signature.return_type, emit.global_words(builder, 2, *arguments))

    return types.UniTuple(uint32, 2)(pointer, int64), code


@intrinsic(simulated.store_pairs)
def store_pairs(typing: Any, pointer: Any, index: Any, values: Any) -> Any:
    """``store_pairs(pointer, index, values)``: write 4 elements of 2 bytes, given as 2 uint32, as `load_pairs`."""
    return _store_halves(2, pointer)


@intrinsic(simulated.load4)
def shared_load4(typing: Any, shared: Any, at: Any) -> Any:
    """``shared_load4(shared, at)``: `load4` from shared memory."""
    emit.need_words(shared)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = emit.shared_address(context, builder, shared, *arguments)
        element = context.get_data_type(shared.dtype)
        letter = "f" if element == emit.F32 else "r"
        text, constraints = "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", f"={letter}," * 4 + "r,~{memory}"
        four = emit.instruction(builder, ir.LiteralStructType([element] * 4), text, constraints, [address])
        return context.make_tuple(builder, signature.return_type, [builder.extract_value(four, i) for i in range(4)])

    return types.UniTuple(shared.dtype, 4)(shared, int32), code


@intrinsic(simulated.store4)
def shared_store4(typing: Any, shared: Any, at: Any, values: Any) -> Any:
    """``shared_store4(shared, at, values)``: `store4` to shared memory."""
    emit.need_words(shared)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = emit.shared_address(context, builder, shared, *arguments[:2])
        letter = "f" if context.get_data_type(shared.dtype) == emit.F32 else "r"
        four = [builder.extract_value(arguments[2], i) for i in range(4)]
        text, constraints = "st.shared.v4.b32 [$0], {$1, $2, $3, $4};", "r" + f",{letter}" * 4 + ",~{memory}"
        emit.instruction(builder, emit.VOID, text, constraints, [address, *four])
        return context.get_dummy_value()

    return types.void(shared, int32, types.UniTuple(shared.dtype, 4)), code


def _copy_async(size: int, cache: str, shared: Any, pointer: Any) -> Any:
    """Typing and code of a copy of `size` bytes."""
    if shared.dtype != pointer.dtype:
        raise TypeError(f"a copy keeps the type of elements, got {pointer.dtype} to {shared.dtype}")
    if size % emit.bytes_of(shared):
        raise TypeError(f"elements of {shared.dtype} do not fill {size} bytes")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, source, index, valid = arguments
        target = emit.shared_address(context, builder, shared, array, at)
        origin = builder.ptrtoint(emit.global_address(builder, source, index), emit.I64)
        some = builder.zext(valid, emit.I32)
        copy = f"cp.async.{cache}.shared.global [$0], [$1], {size}, none;"  # what is ignored is written as zeros
        text = f"{{ .reg .pred none; setp.eq.u32 none, $2, 0; {copy} }}"
        emit.instruction(builder, emit.VOID, text, "r,l,r,~{memory}", [target, origin, some])
        return context.get_dummy_value()

    return types.void(shared, int32, pointer, int64, types.boolean), code


@intrinsic(simulated.copy_async4)
def copy_async4(typing: Any, shared: Any, at: Any, pointer: Any, index: Any, valid: Any) -> Any:
    """``copy_async4(shared, at, pointer, index, valid)``: start to copy 4 bytes to shared memory ("cp.async.ca").

    Where `valid` is 0 it writes zeros and reads nothing. The elements arrive before a `wait` for their group returns;
    other threads see them after a barrier that follows.
    """
    return _copy_async(4, "ca", shared, pointer)


@intrinsic(simulated.copy_async16)
def copy_async16(typing: Any, shared: Any, at: Any, pointer: Any, index: Any, valid: Any) -> Any:
    """``copy_async16(shared, at, pointer, index, valid)``: as `copy_async4`, 16 bytes ("cp.async.cg").

    They pass the L1 cache by. Both addresses must be multiples of 16.
    """
    return _copy_async(16, "cg", shared, pointer)


@intrinsic(simulated.copy_async16)
def copy_async16_cached(typing: Any, shared: Any, at: Any, pointer: Any, index: Any, valid: Any) -> Any:
    """``copy_async16_cached(shared, at, pointer, index, valid)``: as `copy_async16`, and what this multiprocessor
    copies again soon is found in its L1 cache ("cp.async.ca").
    """
    return _copy_async(16, "ca", shared, pointer)


@intrinsic(simulated.commit)
def commit(typing: Any) -> Any:
    """``commit()``: what this thread has started to copy since the last call is a group ("cp.async.commit_group")."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.instruction(builder, emit.VOID, "cp.async.commit_group;", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic(simulated.wait)
def wait(typing: Any, pending: Any) -> Any:
    """``wait(pending)``: until at most so many groups of this thread are left ("cp.async.wait_group"); a literal."""
    groups = literal(pending)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.instruction(builder, emit.VOID, f"cp.async.wait_group {groups};", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(pending), code


@intrinsic(simulated.kept)
def kept(typing: Any, value: Any) -> Any:
    """``kept(value)``: an int32 that stays in a register, which the compiler might compute anew in each turn of a loop
    ("mov").
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit.instruction(builder, emit.I32, "mov.b32 $0, $1;", "=r,r", [arguments[0]])

    return int32(int32), code


@intrinsic(simulated.sync_warp)
def sync_warp(typing: Any) -> Any:
    """``sync_warp()``: all lanes of the warp meet, and see what the others wrote ("bar.warp.sync")."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.instruction(builder, emit.VOID, "bar.warp.sync 0xffffffff;", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), code


def _load_matrices(order: str, fragments: Any, shared: Any) -> Any:
    """Typing and code of ldmatrix, as it is ("") or transposed (".trans")."""
    emit.need_words(fragments)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, first, source, at = arguments
        address = emit.shared_address(context, builder, shared, source, at)
        text = f"ldmatrix.sync.aligned.m8n8.x4{order}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
        result = emit.instruction(
            builder, ir.LiteralStructType([emit.I32] * 4), text, "=r,=r,=r,=r,r,~{memory}", [address]
        )
        emit.fill(builder, emit.registers(context, builder, fragments, array, first, 4), result)
        return context.get_dummy_value()

    return types.void(fragments, int64, shared, int32), code


@intrinsic(simulated.load_matrices)
def load_matrices(typing: Any, fragments: Any, first: Any, shared: Any, at: Any) -> Any:
    """``load_matrices(fragments, first, shared, at)``: four matrices of 8 rows of 16 bytes ("ldmatrix.x4").

    Lane l says with `at` where row l % 8 of matrix l // 8 starts, at a multiple of 16 bytes, and gets bytes 4 (l % 4)
    to 4 (l % 4) + 3 of row l // 4 of matrix i in element first + i of `fragments`, an array of uint32. Rows are 8
    elements of 16 bits or 4 of 32. All lanes of the warp must take part.
    """
    return _load_matrices("", fragments, shared)


@intrinsic(simulated.load_matrices_transposed)
def load_matrices_transposed(typing: Any, fragments: Any, first: Any, shared: Any, at: Any) -> Any:
    """``load_matrices_transposed(fragments, first, shared, at)``: matrices of 16-bit elements ("ldmatrix.trans").

    As `load_matrices`, but lane l gets the elements of column l // 4 in rows 2 (l % 4) and 2 (l % 4) + 1.
    """
    return _load_matrices(".trans", fragments, shared)


def _mma(shape: str, element: str, c: Any, a: Any, b: Any) -> Any:
    """Typing and code of mma.sync with float32 accumulators: 4 registers of A, 2 of B, 4 of C."""
    emit.need_words(c, a, b)
    text = (
        f"mma.sync.aligned.{shape}.row.col.f32.{element}.{element}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_c, at_c, array_a, at_a, array_b, at_b = arguments
        sums = emit.registers(context, builder, c, array_c, at_c, 4)
        left = emit.registers(context, builder, a, array_a, at_a, 4)
        right = emit.registers(context, builder, b, array_b, at_b, 2)
        values = [builder.load(register) for register in (*left, *right, *sums)]
        constraints = "=f,=f,=f,=f,r,r,r,r,r,r,0,1,2,3"
        result = emit.instruction(builder, ir.LiteralStructType([emit.F32] * 4), text, constraints, values)
        emit.fill(builder, sums, result)
        return context.get_dummy_value()

    return types.void(c, int64, a, int64, b, int64), code


@intrinsic(simulated.mma_tf32)
def mma_tf32(typing: Any, c: Any, first_c: Any, a: Any, first_a: Any, b: Any, first_b: Any) -> Any:
    """``mma_tf32(c, first_c, a, first_a, b, first_b)``: C (16, 8) += A (16, 8) @ B (8, 8) ("mma.m16n8k8", tf32).

    Lane l, with g = l // 4 and m = l % 4, holds in consecutive elements from `first_c`, `first_a` and `first_b` on

    - of C, float32: (g, 2m), (g, 2m + 1), (g + 8, 2m), (g + 8, 2m + 1);
    - of A, uint32: (g, m), (g + 8, m), (g, m + 4), (g + 8, m + 4), each from `to_tf32`;
    - of B, uint32: (m, g), (m + 4, g).

    All lanes of the warp must take part.
    """
    return _mma("m16n8k8", "tf32", c, a, b)


@intrinsic(simulated.mma_bf16)
def mma_bf16(typing: Any, c: Any, first_c: Any, a: Any, first_a: Any, b: Any, first_b: Any) -> Any:
    """``mma_bf16(c, first_c, a, first_a, b, first_b)``: C (16, 8) += A (16, 16) @ B (16, 8) ("mma.m16n8k16", bf16).

    C as in `mma_tf32`. A uint32 holds two elements, that of the lower column of A or row of B in its low half:

    - of A: (g, 2m), (g + 8, 2m), (g, 2m + 8), (g + 8, 2m + 8), each with the next column;
    - of B: (2m, g), (2m + 8, g), each with the next row.
    """
    return _mma("m16n8k16", "bf16", c, a, b)


@intrinsic(simulated.mma_f16)
def mma_f16(typing: Any, c: Any, first_c: Any, a: Any, first_a: Any, b: Any, first_b: Any) -> Any:
    """``mma_f16(c, first_c, a, first_a, b, first_b)``: as `mma_bf16`, of float16 elements."""
    return _mma("m16n8k16", "f16", c, a, b)


@intrinsic(simulated.to_tf32)
def to_tf32(typing: Any, value: Any) -> Any:
    """``to_tf32(value)``: a float32, or its bits as a uint32, rounded to 10 bits of mantissa; the bits as a uint32.

    To the nearest, ties away from zero. What tensor cores do not see, the low 13 bits, is anything; subnormal numbers
    are cut to bits that they see, not rounded.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _rounded(builder, arguments[0])

    return uint32(value if value == uint32 else float32), code


@intrinsic(simulated.round_tf32)
def round_tf32(typing: Any, value: Any) -> Any:
    """``round_tf32(value)``: `to_tf32` as a float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(_rounded(builder, arguments[0]), emit.F32)

    return float32(float32), code


def _rounded(builder: Any, value: Any) -> Any:
    """Bits of a value, half of its last bit as TF32 added.

    "cvt.rna.tf32.f32" does it in the register that has the value, which costs a move where another one is wanted.
    """
    power = builder.bitcast(builder.and_(builder.bitcast(value, emit.I32), emit.I32(0xFF800000)), emit.F32)
    moved = builder.fma(power, emit.F32(2.0**-11), builder.bitcast(value, emit.F32))
    return builder.bitcast(moved, emit.I32)


@intrinsic(simulated.from_bf16)
def from_bf16(typing: Any, bits: Any) -> Any:
    """``from_bf16(bits)``: the float32 with the value of a bfloat16, whose bits are the low half of a uint32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.shl(arguments[0], emit.I32(16)), emit.F32)

    return float32(uint32), code


@intrinsic(simulated.from_f16)
def from_f16(typing: Any, bits: Any) -> Any:
    """``from_f16(bits)``: the float32 with the value of a float16, as `from_bf16` ("cvt.f32.f16")."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.trunc(arguments[0], emit.I16)
        return emit.instruction(builder, emit.F32, "cvt.f32.f16 $0, $1;", "=f,h", [half], pure=True)

    return float32(uint32), code


def _pack(kind: str) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = arguments
        return emit.instruction(builder, emit.I32, f"cvt.rn.{kind}x2.f32 $0, $1, $2;", "=r,f,f", [high, low], pure=True)

    return uint32(float32, float32), code


@intrinsic(simulated.pack_bf16)
def pack_bf16(typing: Any, low: Any, high: Any) -> Any:
    """``pack_bf16(low, high)``: two float32, rounded to nearest, as bfloat16 halves of a uint32 ("cvt.rn.bf16x2")."""
    return _pack("bf16")


@intrinsic(simulated.pack_f16)
def pack_f16(typing: Any, low: Any, high: Any) -> Any:
    """``pack_f16(low, high)``: two float32, rounded to the nearest, as float16 halves of a uint32 ("cvt.rn.f16x2")."""
    return _pack("f16")

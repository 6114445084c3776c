"""Instructions of GPUs of compute capability 9.0 alone, as functions that kernels call, like those of `ptx`.

Four warps, a warpgroup, multiply matrices that lie in shared memory while the warps do something else. What the
instructions do is that of NVIDIA's PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
Kernels that use them are compiled for "sm_90a"; `fastconv.cuda.ptx_hopper_simulated` does the same in Python.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastconv.cuda import emit
from fastconv.cuda import ptx_hopper_simulated as simulated
from fastconv.cuda.ptx_hopper_simulated import EIGHT_ROWS, SWIZZLE_128
from fastconv.cuda.toolkit import int32, intrinsic, literal, types

_FIXED = SWIZZLE_128 << 62 | EIGHT_ROWS >> 4 << 32 | 1 << 16  # the 1 is not used by swizzled matrices


def _plain(text: str) -> Any:
    """Typing and code of an instruction without operands."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit.instruction(builder, emit.VOID, text, "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic(simulated.fence_async)
def fence_async(typing: Any) -> Any:
    """``fence_async()``: what this thread wrote to shared memory can be multiplied ("fence.proxy.async").

    Each thread that wrote calls it, after a `wait` for its copies and before the barrier that the others meet at.
    """
    return _plain("fence.proxy.async.shared::cta;")


@intrinsic(simulated.wgmma_fence)
def wgmma_fence(typing: Any) -> Any:
    """``wgmma_fence()``: before the first product after other instructions used the sums ("wgmma.fence")."""
    return _plain("wgmma.fence.sync.aligned;")


@intrinsic(simulated.wgmma_commit)
def wgmma_commit(typing: Any) -> Any:
    """``wgmma_commit()``: the products started since the last call are a group ("wgmma.commit_group")."""
    return _plain("wgmma.commit_group.sync.aligned;")


@intrinsic(simulated.wgmma_wait)
def wgmma_wait(typing: Any, pending: Any) -> Any:
    """``wgmma_wait(pending)``: until at most so many groups are left ("wgmma.wait_group"); a literal.

    The sums may be read only after `wgmma_finish`.
    """
    groups = literal(pending)
    _, code = _plain(f"wgmma.wait_group.sync.aligned {groups};")
    return types.void(pending), code


@intrinsic(simulated.wgmma_finish)
def wgmma_finish(typing: Any, sums: Any, count: Any) -> Any:
    """``wgmma_finish(sums, count)``: wait for all groups; `count`, a literal, sums can be read from here on."""
    size = literal(count)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # The sums go through the instruction, or the compiler could read them before it.
        registers = emit.registers(context, builder, sums, arguments[0], emit.I64(0), size)
        constraints = ",".join(["=f"] * size + [str(i) for i in range(size)] + ["~{memory}"])
        values = [builder.load(register) for register in registers]
        result = ir.LiteralStructType([emit.F32] * size)
        text = "wgmma.wait_group.sync.aligned 0;"
        emit.fill(builder, registers, emit.instruction(builder, result, text, constraints, values))
        return context.get_dummy_value()

    return types.void(sums, count), code


@intrinsic(simulated.descriptor)
def descriptor(typing: Any, shared: Any, at: Any) -> Any:
    """``descriptor(shared, at)``: where a matrix for `wgmma_bf16` begins, as a uint64 ("matrix descriptor").

    Rows have 128 bytes, one after the other; unit u of 16 bytes of row r is at place ``u ^ (r % 8)`` ("128-byte
    swizzle mode"). The first row is at a multiple of 1024 bytes; 32 bytes further along the rows, the terms of a
    product, the descriptor is greater by 2.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = emit.shared_address(context, builder, shared, *arguments)
        units = builder.and_(builder.lshr(address, emit.I32(4)), emit.I32(0x3FFF))
        return builder.or_(builder.zext(units, emit.I64), emit.I64(_FIXED))

    return types.uint64(shared, int32), code


def _wgmma(terms: str, element: str, sums: Any, columns: Any, shared: Any) -> Any:
    """Typing and code of a product of 64 rows, terms of 32 bytes and a literal number of columns."""
    emit.need_words(sums)
    width = literal(columns)
    count = width // 2
    orders = ", 0, 0" if terms == "k16" else ""  # rows of A and of B transposed; other elements know no other

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        registers = emit.registers(context, builder, sums, arguments[0], emit.I64(0), count)
        places = ", ".join(f"${i}" for i in range(count))
        text = (
            f"{{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n{width}{terms}.f32."
            f"{element}.{element} {{{places}}}, ${2 * count}, ${2 * count + 1}, add, 1, 1{orders}; }}"
        )
        constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["l", "l", "~{memory}"])
        values = [*(builder.load(register) for register in registers), *arguments[3:]]
        result = ir.LiteralStructType([emit.F32] * count)
        emit.fill(builder, registers, emit.instruction(builder, result, text, constraints, values))
        return context.get_dummy_value()

    return types.void(sums, columns, shared, types.uint64, types.uint64), code


@intrinsic(simulated.wgmma_bf16)
def wgmma_bf16(typing: Any, sums: Any, columns: Any, shared: Any, left: Any, right: Any) -> Any:
    """``wgmma_bf16(sums, columns, shared, left, right)``: start C (64, columns) += A (64, 16) @ B (16, columns).

    "wgmma.mma_async", bfloat16 with float32 sums. `left` and `right` are descriptors of A and of B transposed, whose
    rows are columns of B, in `shared`; `columns` is a literal, a multiple of 8 up to 256. Lane l of warp w of the
    warpgroup holds, in elements 4 j to 4 j + 3 of `sums`, with g = 16 w + l // 4 and m = 8 j + 2 (l % 4), elements
    (g, m), (g, m + 1), (g + 8, m), (g + 8, m + 1). All lanes of the warpgroup must take part, and the sums must not be
    touched before `wgmma_finish`.
    """
    return _wgmma("k16", "bf16", sums, columns, shared)


@intrinsic(simulated.wgmma_f16)
def wgmma_f16(typing: Any, sums: Any, columns: Any, shared: Any, left: Any, right: Any) -> Any:
    """``wgmma_f16(sums, columns, shared, left, right)``: as `wgmma_bf16`, of float16 elements."""
    return _wgmma("k16", "f16", sums, columns, shared)


@intrinsic(simulated.wgmma_tf32)
def wgmma_tf32(typing: Any, sums: Any, columns: Any, shared: Any, left: Any, right: Any) -> Any:
    """``wgmma_tf32(sums, columns, shared, left, right)``: as `wgmma_bf16`, of 8 float32 terms, C += A (64, 8) @ B.

    The lowest 13 bits of the elements are ignored.
    """
    return _wgmma("k8", "tf32", sums, columns, shared)

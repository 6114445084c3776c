"""Copies of whole blocks of memory by GPUs of compute capability 9.0: one thread asks, an engine of its own copies.

Who waits for the bytes waits at a barrier in shared memory, an element of ``cuda.shared.array(0, uint64)`` that nothing
else uses. What the instructions do is that of NVIDIA's PTX ISA, "Asynchronous copy: cp.async.bulk" and "mbarrier";
`fastconv.cuda.ptx_bulk_simulated` does the same in Python.
"""

from __future__ import annotations

from typing import Any

from fastconv.cuda import emit
from fastconv.cuda import ptx_bulk_simulated as simulated
from fastconv.cuda.toolkit import int32, int64, intrinsic, types


def _need_barriers(kind: Any) -> None:
    if kind.dtype != types.uint64:
        raise TypeError(f"barriers are elements of uint64, got {kind.dtype}")


def _of_barrier(text: str, barriers: Any) -> Any:
    """Typing and code of an instruction with a barrier and a number as its operands."""
    _need_barriers(barriers)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = emit.shared_address(context, builder, barriers, *arguments[:2])
        emit.instruction(builder, emit.VOID, text, "r,r,~{memory}", [address, arguments[2]])
        return context.get_dummy_value()

    return types.void(barriers, int32, int32), code


@intrinsic(simulated.barrier_init)
def barrier_init(typing: Any, barriers: Any, at: Any, calls: Any) -> Any:
    """``barrier_init(barriers, at, calls)``: its phases end after so many calls of `barrier_expect` ("mbarrier.init").

    One thread calls it, and `fence_async` after it; others use the barrier after the block met.
    """
    return _of_barrier("mbarrier.init.shared::cta.b64 [$0], $1;", barriers)


@intrinsic(simulated.barrier_expect)
def barrier_expect(typing: Any, barriers: Any, at: Any, size: Any) -> Any:
    """``barrier_expect(barriers, at, size)``: the phase ends when so many bytes more came ("arrive.expect_tx")."""
    return _of_barrier("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", barriers)


@intrinsic(simulated.barrier_wait)
def barrier_wait(typing: Any, barriers: Any, at: Any, parity: Any) -> Any:
    """``barrier_wait(barriers, at, parity)``: until its first, third, ... phase ended if `parity` is 0, else
    its second, ... ("mbarrier.try_wait.parity"). What was copied for the phase can then be read, and multiplied.
    """
    text = "{ .reg .pred ended; again: mbarrier.try_wait.parity.shared::cta.b64 ended, [$0], $1; @!ended bra again; }"
    return _of_barrier(text.replace("again", "again_${:uid}"), barriers)


@intrinsic(simulated.copy_bulk)
def copy_bulk(
    typing: Any, shared: Any, at: Any, pointer: Any, index: Any, size: Any, barriers: Any, barrier: Any
) -> Any:
    """``copy_bulk(shared, at, pointer, index, size, barriers, barrier)``: start to copy `size` bytes to shared memory.

    "cp.async.bulk". They count for the barrier's phase. Size and both addresses are multiples of 16.
    """
    _need_barriers(barriers)
    if shared.dtype != pointer.dtype:
        raise TypeError(f"a copy keeps the type of elements, got {pointer.dtype} to {shared.dtype}")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, to, source, first, count, ends, which = arguments
        target = emit.shared_address(context, builder, shared, array, to)
        origin = builder.ptrtoint(emit.global_address(builder, source, first), emit.I64)
        end = emit.shared_address(context, builder, barriers, ends, which)
        text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
        emit.instruction(builder, emit.VOID, text, "r,l,r,r,~{memory}", [target, origin, count, end])
        return context.get_dummy_value()

    return types.void(shared, int32, pointer, int64, int32, barriers, int32), code

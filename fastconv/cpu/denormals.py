"""Whether kernels flush denormal numbers to zero: a thread's control word, while it runs jobs.

A thread that computes has the mode of `set_flush_denormal` and no other, whatever it or its creator was set to:
which thread does a job must not change the result. Afterwards the control word is what it was before.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.jit import inline
from fastconv.sizes import shown

# Of each machine, the bits that flush: results and operands in MXCSR (FTZ, DAZ), both by one bit in FPCR (FZ).
_BITS = {"x86_64": 1 << 15 | 1 << 6, "aarch64": 1 << 24, "arm64": 1 << 24}
# As Python names the machine, which is known sooner, or as LLVM does.
_MACHINE = platform.machine() if platform.machine() in _BITS else llvm.get_process_triple().split("-")[0]
BITS = _BITS.get(_MACHINE, 0)
_BYTE, _I32, _I64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


class Mode:
    """What kernels run with: `BITS`, or 0 for denormal numbers as IEEE 754 has them."""

    bits = 0


def set_flush_denormal(mode: bool) -> bool:
    """Say whether the CPU's kernels take denormal numbers for zero, and write zero in place of them.

    A denormal number is less than 1.2e-38 in float32, 2.2e-308 in float64. Arithmetic with them is slower on most
    CPUs, in places many times. The setting is of the whole process: it counts for every later call of functions,
    plans and layers, on all threads that they use, until it is set again. Kernels run with this setting alone, also
    where ``torch.set_flush_denormal`` or other code has set the calling thread otherwise; after a call, every thread
    is as it was.

    Parameters
    ----------
    mode : bool
        True: flush. False, as it is at first: IEEE 754.

    Returns
    -------
    bool
        Whether the CPU can do it (x86-64 and AArch64 can); if not, nothing has changed.

    Raises
    ------
    TypeError
        If `mode` is not a bool.

    Notes
    -----
    What is computed by NumPy, softmax and losses, and by the algorithm ``reference`` is not affected: that goes by
    the calling thread. Nor is a GPU.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.full((1, 1, 1, 1), 1e-30, np.float32), np.full((1, 1, 1, 1), 1e-10, np.float32)
    >>> fastconv.conv2d(x, w).item() > 0
    True
    >>> supported = fastconv.set_flush_denormal(True)
    >>> fastconv.conv2d(x, w).item() > 0
    False
    >>> supported = fastconv.set_flush_denormal(False)
    """
    if not isinstance(mode, bool):
        raise TypeError(f"mode must be a bool, got {shown(mode)}")
    Mode.bits = BITS if mode else 0
    return BITS != 0


@inline
def enter(bits):
    """Have this thread flush as the bits of a `Mode` say; returns its control word of before, for `leave`."""
    before = control_word()
    wanted = before & ~BITS | bits
    if wanted != before:
        set_control_word(wanted)
    return before


@inline
def leave(bits, before):
    """Undo `enter`."""
    if before & BITS != bits:
        set_control_word(before)


@intrinsic
def control_word(typingctx):
    """MXCSR or FPCR of this thread; 0 on other machines."""

    def codegen(context, builder, signature, args):
        return _read(builder, _MACHINE)

    return types.int64(), codegen


@intrinsic
def set_control_word(typingctx, word):
    """Set MXCSR or FPCR of this thread. Only calls of functions that are not inlined stay on their side of it."""

    def codegen(context, builder, signature, args):
        _write(builder, args[0], _MACHINE)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read(builder: ir.IRBuilder, machine: str) -> Any:
    if machine == "x86_64":
        memory = cgutils.alloca_once(builder, _I32)
        _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(memory, _BYTE))
        return builder.zext(builder.load(memory), _I64)
    if machine in _BITS:  # an intrinsic, for Numba does not initialize what inline assembly needs
        return _call(builder, "llvm.aarch64.get.fpcr", _I64)
    return _I64(0)


def _write(builder: ir.IRBuilder, word: Any, machine: str) -> None:
    if machine == "x86_64":
        memory = cgutils.alloca_once(builder, _I32)
        builder.store(builder.trunc(word, _I32), memory)
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(memory, _BYTE))
    elif machine in _BITS:
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), word)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

"""Each intrinsic of the GPU kernels becomes the instruction that it stands for, on the oldest GPU and on a new one."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from machine_code import disassemble, main_loop, missing, opcodes, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv.cuda import emit, ptx
from fastconv.cuda.ptx_simulated import to_tf32
from fastconv.cuda.toolkit import cubin, cuda, float32, float64, int32, int64, pointer, types, uint32

X, BITS, HALVES = pointer(float32), pointer(uint32), pointer(types.uint16)


def vectors(x, y):
    shared, t = cuda.shared.array(0, float32), int32(cuda.threadIdx.x)
    ptx.shared_store4(shared, t * 4, ptx.load4(x, t * 4))
    ptx.sync_warp()
    ptx.store4(y, t * 4, ptx.shared_load4(shared, (t ^ 1) * 4))


def pairs(x, y):
    t = int32(cuda.threadIdx.x)
    low, high = ptx.load_pairs(x, t * 4)
    ptx.store_pairs(y, t * 4, (high, low))


def copies(x, y):
    shared, t = cuda.shared.array(0, float32), int32(cuda.threadIdx.x)
    ptx.copy_async4(shared, t, x, t, t & 1)
    ptx.commit()
    ptx.copy_async16(shared, t * 4 + 1024, x, t * 4, t < 7)
    ptx.commit()
    ptx.wait(1)
    y[t] = shared[t]


def matrices(x, y):
    shared, t = cuda.shared.array(0, types.uint16), int32(cuda.threadIdx.x)
    found = cuda.local.array(8, uint32)
    ptx.load_matrices(found, 0, shared, t * 8)
    ptx.load_matrices_transposed(found, 4, shared, t * 8)
    for i in range(8):
        y[t * 8 + i] = found[i]


def conversions(x, y):
    t = cuda.threadIdx.x
    y[t] = ptx.to_tf32(x[t])
    y[t + 32] = ptx.pack_bf16(x[t], x[t + 1])
    y[t + 64] = ptx.pack_f16(x[t], x[t + 1])


def products(x, y):
    t = cuda.threadIdx.x
    a, b, c = cuda.local.array(4, uint32), cuda.local.array(2, uint32), cuda.local.array(12, float32)
    for i in range(4):
        a[i] = y[t + i]
    for i in range(2):
        b[i] = y[t + 4 + i]
    for i in range(12):
        c[i] = x[t + i]
    ptx.mma_tf32(c, 0, a, 0, b, 0)
    ptx.mma_bf16(c, 4, a, 0, b, 0)
    ptx.mma_f16(c, 8, a, 0, b, 0)
    for i in range(12):
        x[t + i] = c[i]


def tile(x, w, y, slices):
    """The loop of a product of matrices: 64 x 32 sums of each of 8 warps, slices of 8 terms, two of them in turn."""
    shared, thread = cuda.shared.array(0, float32), int32(cuda.threadIdx.x)
    a, b, c = cuda.local.array(16, uint32), cuda.local.array(8, uint32), cuda.local.array(64, float32)
    for i in range(64):
        c[i] = float32(0)
    lane, warp = thread & 31, thread >> 5
    row, column, part = (warp & 1) * 64 + (lane & 15), (warp >> 1) * 32 + (lane & 15), (lane >> 4) * 4
    for k in range(slices):
        now = (k & 1) * 2048
        ptx.copy_async16(shared, 2048 - now + thread * 4, x, int64(k) * 1024 + thread * 4, True)
        ptx.copy_async16(shared, 3072 - now + thread * 4, w, int64(k) * 1024 + thread * 4, True)
        ptx.commit()
        for i in range(4):
            ptx.load_matrices(a, i * 4, shared, now + (row + i * 16) * 8 + part)
        for j in range(2):
            ptx.load_matrices(b, j * 4, shared, now + 1024 + (column + j * 16) * 8 + part)
        for i in range(16):
            a[i] = ptx.to_tf32(a[i])
        for i in range(8):
            b[i] = ptx.to_tf32(b[i])
        for i in range(4):
            for j in range(4):
                ptx.mma_tf32(c, (i * 4 + j) * 4, a, i * 4, b, j * 2)
        ptx.wait(0)
        cuda.syncthreads()
    for i in range(16):
        ptx.store4(y, (thread + i * 256) * 4, (c[i * 4], c[i * 4 + 1], c[i * 4 + 2], c[i * 4 + 3]))


TARGETS = pytest.mark.parametrize("target", [(8, 0), (9, 0, "a")], ids=["sm_80", "sm_90a"])


@TARGETS
@pytest.mark.parametrize(
    ("kernel", "kinds", "names"),
    [(vectors, (X, X), ["LDG.E.128", "STS.128", "LDS.128", "STG.E.128"]),
     (pairs, (HALVES, HALVES), ["LDG.E.64", "STG.E.64"]),
     (copies, (X, X), ["LDGSTS.E", "LDGSTS.E.BYPASS.128", "LDGDEPBAR", "LDGDEPBAR", "DEPBAR.LE", "LDS", "STG.E"]),
     (matrices, (X, BITS), ["LDSM.16.M88.4", "LDSM.16.MT88.4"] + 8 * ["STG.E"]),
     (products, (X, BITS), ["HMMA.1688.F32.TF32", "HMMA.16816.F32.BF16", "HMMA.16816.F32"] + 12 * ["STG.E"])],
    ids=["vectors", "pairs", "copies", "matrices", "products"],
)  # fmt: skip
def test_intrinsics_are_single_instructions(kernel: Callable, kinds: tuple, names: list[str], target: Any) -> None:
    code = cubin(kernel, kinds, target, name=kernel.__name__)
    found = opcodes(disassemble(code))
    assert {name: found[name] for name in names} == Counter(names)
    assert not [name for name in found if name.startswith(("LDL", "STL"))]
    assert registers(code).stack == 0


@TARGETS
def test_conversions_are_few_instructions(target: Any) -> None:
    found = opcodes(disassemble(cubin(conversions, (X, BITS), target, name="conversions")))
    assert sum(count for name, count in found.items() if name.startswith("F2FP")) == 2
    assert found.total() - found["NOP"] < 30


def test_rounding_to_tf32_is_that_of_the_simulator() -> None:
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(emit.I32, [emit.I32]), "rounded")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(ptx._rounded(builder, function.args[0]))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    with llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine) as engine:
        engine.finalize_object()
        rounded = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32)(engine.get_function_address("rounded"))
        edges = [e << 23 | m for e in range(1, 256) for m in (0, 0xFFF, 0x1000, 0x2FFF, 0x3000, 0x7FEFFF, 0x7FFFFF)]
        bits = [*edges, *np.random.default_rng(0).integers(1 << 23, 1 << 31, 20_000).tolist(), 0]
        bits += [value | 1 << 31 for value in bits]
        found = np.array([rounded(value) for value in bits], np.uint32) & np.uint32(0xFFFFE000)
    expected = np.array([to_tf32(np.uint32(value)) for value in bits])
    nan = np.isnan(expected.view(np.float32))
    assert nan.any() and np.isnan(found.view(np.float32)[nan]).all()
    np.testing.assert_array_equal(found[~nan], expected[~nan])


@TARGETS
def test_sums_of_a_tile_stay_in_registers(target: Any) -> None:
    code = cubin(tile, (X, X, X, int32), target, name="tile", launch_bounds=(256, 2))
    text = disassemble(code)
    loop = main_loop(text, "HMMA")
    assert loop.hits == 16
    assert loop.instructions < 150  # 24 values are rounded with two instructions each
    found = opcodes(text)
    assert found["LDSM.16.M88.4"] == 6
    assert found["STG.E.128"] == 16
    assert registers(code).stack == 0
    assert 64 < registers(code).count <= 128


def wide(x):
    ptx.load4(x, 0)


def narrow(x):
    ptx.load_pairs(x, 0)


def unlike(x):
    ptx.copy_async16(cuda.shared.array(0, types.uint16), 0, x, 0, True)


def too_wide(x):
    ptx.copy_async4(cuda.shared.array(0, float64), 0, x, 0, True)


def unsettled(x):
    ptx.wait(cuda.threadIdx.x)


@pytest.mark.parametrize(
    ("kernel", "kind", "message"),
    [(wide, float64, "4 bytes, got float64"), (narrow, float32, "2 bytes, got float32"),
     (unlike, float32, "float32 to uint16"), (too_wide, float64, "float64 do not fill 4 bytes"),
     (unsettled, float32, "RequireLiteralValue")],
)  # fmt: skip
def test_what_no_instruction_does_is_refused(kernel: Callable, kind: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        cubin(kernel, (pointer(kind),), (8, 0), name="refused")

"""The kernels of the GPU compile for old and new chips, and what comes out is what they were written for."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
from machine_code import disassemble, main_loop, missing, opcodes, parameters, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv import algorithms
from fastconv.cuda import (
    adaptive,
    elementwise,
    local,
    local_backward,
    norm_kernels,
    pack,
    pool,
    pool_backward,
    reference,
    reference_backward,
    softmax,
    tiled,
    updates,
)  # fmt: skip
from fastconv.cuda.driver import _scalars
from fastconv.cuda.gemm import Tile
from fastconv.cuda.kernel import Kernel
from fastconv.cuda.toolkit import types
from fastconv.descriptor import parse

TARGETS = [(8, 0), (9, 0, "a")]
SHARED_MEMORY = 99 << 10  # bytes of a block on the smallest GPUs that copy asynchronously, compute capability 8.6


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("rows_columns", tiled.TILES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
def test_implicit_gemm_multiplies_most_of_the_time(rows_columns: tuple[int, int], channels_last: bool, target: Any):
    tile = Tile(*rows_columns)
    code = tiled.compiled(tile, channels_last).cubin(target)
    text, used = disassemble(code), registers(code)
    loop = main_loop(text, "FFMA")
    assert loop.hits == 512 and loop.hits / loop.instructions > (0.75 if channels_last else 0.6)
    assert used.count * tile.threads * tiled.blocks_at_once(tile) <= 65536
    assert used.stack <= 32  # a few values that only the end of the kernel needs
    assert opcodes(text)["LDS.128"] >= 32 and opcodes(text)["LDGSTS.E.BYPASS.128"] and opcodes(text)["STG.E.128"]
    assert tile.shared_bytes <= SHARED_MEMORY


OPERATIONS = ["n1c4h9w9k6r3s3p1_bias_relu", "n1c4h9w9k6r3s3p1_dgrad", "n1c4h9w9k6r3s3p1_wgrad", "n1c4h9w9_max3u2p1"]


@pytest.mark.parametrize("text", OPERATIONS)
def test_every_operation_has_a_kernel_that_takes_all(text: str) -> None:
    problem = parse(f"{text}_cuda")
    assert algorithms.supporting(problem)[-1] == "reference"
    fastest = algorithms.candidates(problem)[0]
    assert algorithms.predicted_ns(problem, fastest) > 0


def plain_kernels(dtype: str) -> list[Kernel]:
    """Every kernel that is no implicit GEMM, for one type of elements."""
    found = [reference._convolve(dtype), reference_backward._convolve_input(dtype)]
    found += [reference_backward._convolve_weight(dtype), pool._pool(dtype, 0, True)]
    for mode in range(4):
        found += [pool._pool(dtype, mode, False), pool_backward._pool_input(dtype, mode)]
        found += [reference._convolve_pooled(dtype, mode)]
    found += [local._local(dtype), local_backward._local_input(dtype), local_backward._local_weight(dtype)]
    found += [norm_kernels.piece_moments_kernel(dtype), norm_kernels.merge_moments_kernel(dtype)]
    found += [norm_kernels.update_running_kernel(dtype, dtype), norm_kernels.normalize_kernel(dtype, dtype)]
    found += [norm_kernels.piece_products_kernel(dtype, dtype), norm_kernels.merge_products_kernel(dtype, dtype)]
    found += [norm_kernels.input_gradient_kernel(dtype, dtype, dtype), norm_kernels.fold_kernel(dtype)]
    found += [norm_kernels.piece_sums_kernel(dtype), norm_kernels.merge_sums_kernel(dtype)]
    found += [elementwise.elementwise_kernel(op, dtype) for op in elementwise.OPERATIONS]
    found += [elementwise.copy_kernel("float64", dtype), elementwise.squared_error_kernel(dtype)]
    found += [softmax.softmax_kernel(dtype), softmax.softmax_backward_kernel(dtype)]
    found += [softmax.cross_entropy_kernel(dtype, "int64")]
    found += [adaptive.adaptive_kernel(dtype, backward) for backward in (False, True)]
    found += [updates.update_kernel(rule, dtype) for rule in updates.RULES]
    return [*found, *map(pack._compiled, ("float32", "bfloat16", "float16"))] if dtype == "float32" else found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_kernels_compile(dtype: str) -> None:
    for kernel in plain_kernels(dtype):
        code = kernel.cubin((8, 0))
        assert kernel.name.encode() in code, "the entry has another name than the one that it is loaded by"
        assert registers(code).stack <= 64, kernel.name
        assert parameters(code) == passed(kernel), kernel.name


def passed(kernel: Kernel) -> list[int]:
    """Bytes of each argument that a launch passes to the driver."""
    found = []
    for kind in kernel.arguments:
        if isinstance(kind, types.CPointer):
            found.append(8)
        else:
            count, real = (kind.count, kind.dtype) if isinstance(kind, types.NamedUniTuple) else (1, kind)
            value = (0,) * count if isinstance(kind, types.NamedUniTuple) else 0
            sizes = [ctypes.sizeof(number) for number in _scalars((kind,), (value,))]
            assert sizes == [real.bitwidth // 8] * count
            found += sizes
    return found

"""The kernels of a convolution's gradients compile for old and new GPUs, and mostly multiply."""

from __future__ import annotations

import os
from typing import Any

import pytest
from machine_code import disassemble, main_loop, missing, opcodes, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv.cuda import sum_splits, tiled, tiled_weight
from fastconv.cuda.gemm import PAD, Tile
from fastconv.cuda.product_cost import blocks_at_once
from fastconv.cuda.weight_slices import Copies

VECTORS, CHANNELS, PLANES = Copies(True, True, True), Copies(True), Copies(False)
STEM = Copies(True, grad_vectors=True)
KERNELS = [
    ((128, 128), VECTORS, 630, (8, 0)), ((128, 128), VECTORS, 640, (9, 0, "a")), ((128, 128), PLANES, 680, (9, 0, "a")),
    ((64, 64), CHANNELS, 710, (9, 0, "a")), ((64, 32), STEM, 680, (8, 0)),
]  # fmt: skip
SHARED_MEMORY = 99 << 10  # bytes of a block on the smallest GPUs that copy asynchronously, compute capability 8.6


@pytest.mark.parametrize(("rows_columns", "copies", "most", "target"), KERNELS, ids=str)
def test_weight_gradients_multiply_most_of_the_time(
    rows_columns: tuple[int, int], copies: Copies, most: int, target: Any
) -> None:
    tile = Tile(*rows_columns, PAD)
    code = tiled_weight.compiled(tile, copies).cubin(target)
    text, used = disassemble(code), registers(code)
    loop = main_loop(text, "FFMA")
    assert loop.hits == 512 and loop.instructions <= most
    assert used.count * tile.threads * blocks_at_once(tile) <= 65536
    assert used.stack <= 32  # a few values that only the end of the kernel needs
    assert bool(opcodes(text)["LDGSTS.E.BYPASS.128"]) == (copies.grad_vectors or copies.x_vectors)
    assert bool(opcodes(text)["LDGSTS.E"]) != (copies.grad_vectors and copies.x_vectors)
    assert tile.shared_bytes <= SHARED_MEMORY


@pytest.mark.parametrize(("rows_columns", "most"), list(zip(tiled.NARROW, (760, 780), strict=True)), ids=str)
def test_few_filters_have_a_narrow_tile(rows_columns: tuple[int, int], most: int) -> None:
    tile = Tile(*rows_columns)
    code = tiled.compiled(tile, True).cubin((8, 0))
    loop, used = main_loop(disassemble(code), "FFMA"), registers(code)
    assert loop.hits == 512 and loop.instructions <= most
    assert used.count * tile.threads * blocks_at_once(tile) <= 65536 and used.stack <= 32
    assert tile.shared_bytes <= SHARED_MEMORY


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_splits_are_added_with_no_memory_but_registers(dtype: str) -> None:
    code = sum_splits._compiled(dtype).cubin((8, 0))
    assert registers(code).stack == 0

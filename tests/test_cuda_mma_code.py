"""The kernels for tensor cores compile for old and new chips, and multiply most of the time."""

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

from fastconv.cuda import image_units, mma, mma_weight, pack_units, sum_maps
from fastconv.cuda.mma_kernel import convolution, pooled_convolution, split_convolution
from fastconv.cuda.mma_tile import MmaTile
from fastconv.cuda.patches import patch_pixel
from fastconv.cuda.window import AVERAGE, MAX, POWERS

SHARED_MEMORY = 99 << 10  # bytes of a block on the smallest GPUs that copy asynchronously, compute capability 8.6
INSTRUCTIONS = {"float32": 4.7, "bfloat16": 3.6, "float16": 3.6}  # per multiplication, of the largest tiles
WEIGHT_INSTRUCTIONS = {"float32": 5.2, "bfloat16": 2.9, "float16": 2.9}  # two of them round a value of TF32


@pytest.mark.parametrize("target", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows_columns", mma.TILES, ids=str)
def test_tensor_cores_multiply_most_of_the_time(rows_columns: tuple[int, int], dtype: str, target: Any) -> None:
    tile = MmaTile(*rows_columns)
    check(tile, dtype, convolution(mma.product(tile, dtype)).cubin(target))


POOLED = [
    ((128, 128), "float32", MAX, (9, 0)), ((128, 64), "float16", POWERS, (9, 0)),
    ((64, 64), "bfloat16", AVERAGE, (8, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("rows_columns", "dtype", "mode", "target"), POOLED, ids=str)
def test_so_they_do_where_they_pool(rows_columns: tuple[int, int], dtype: str, mode: int, target: Any) -> None:
    tile = MmaTile(*rows_columns)
    check(tile, dtype, pooled_convolution(mma.product(tile, dtype, patch_pixel), mode).cubin(target))


def test_so_they_do_where_terms_are_split() -> None:
    tile = MmaTile(64, 64)
    check(tile, "bfloat16", split_convolution(mma.product(tile, "bfloat16")).cubin((8, 0)))
    assert tile.shared_bytes("float32") <= SHARED_MEMORY


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maps_are_added_by_vectors(dtype: str) -> None:
    code = sum_maps._compiled(dtype).cubin((8, 0))
    found = opcodes(disassemble(code))
    assert found["LDG.E.128"] and found["STG.E.128" if dtype == "float32" else "STG.E.64"]
    assert registers(code).stack == 0


def check(tile: MmaTile, dtype: str, code: bytes) -> None:
    """Raise unless a kernel multiplies most of the time, within its registers."""
    text, used = disassemble(code), registers(code)
    loop, found = main_loop(text, "HMMA"), opcodes(text)
    steps = 2 * tile.warp_rows // 16 * (tile.warp_columns // 8)  # products of 16 x 8 sums in a slice
    assert loop.hits == steps
    if tile.sums == 128:
        assert loop.instructions / loop.hits < INSTRUCTIONS[dtype]
    assert used.stack == 0 and not any(name.startswith(("LDL", "STL")) for name in found)
    assert used.count * tile.threads * mma.blocks_at_once(tile) <= 65536
    assert (
        sum(n for name, n in found.items() if name.startswith("LDSM")) == 2 * (tile.warp_rows + tile.warp_columns) // 16
    )
    assert found["LDGSTS.E.BYPASS.128"] and found["LDGSTS.E.128"] and found["STG.E.128"]
    assert tile.shared_bytes(dtype) <= SHARED_MEMORY


@pytest.mark.parametrize("target", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows_columns", mma_weight.TILES, ids=str)
def test_weight_gradients_multiply_most_of_the_time(rows_columns: tuple[int, int], dtype: str, target: Any) -> None:
    tile = mma_weight.tile_of(*rows_columns, dtype)
    code = mma_weight.compiled(tile, dtype).cubin(target)
    text, used = disassemble(code), registers(code)
    loop, found = main_loop(text, "HMMA"), opcodes(text)
    assert loop.hits == 2 * tile.warp_rows // 16 * (tile.warp_columns // 8)
    if tile.sums == 128:
        assert loop.instructions / loop.hits < WEIGHT_INSTRUCTIONS[dtype]
    if dtype == "float32":  # a few values that only the end of the kernel needs
        assert used.stack <= 32 and not main_loop(text, "LDL").hits and not main_loop(text, "STL").hits
    else:
        assert used.stack == 0 and not any(name.startswith(("LDL", "STL")) for name in found)
    assert used.count * tile.threads * mma.blocks_at_once(tile) <= 65536
    loads = "LDS.128" if dtype == "float32" else "LDSM.16.MT88.4"
    assert found[loads] == 2 * (tile.warp_rows + tile.warp_columns) // 16
    assert found["LDGSTS.E.BYPASS.128"] and not found["LDGSTS.E"]
    assert bool(found["STG.E.128"]) == (dtype == "float32")
    assert tile.shared_bytes(dtype) <= SHARED_MEMORY


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_packing_compiles(dtype: str) -> None:
    for kernel in (pack_units._pack_filters(dtype), image_units._fill_up(dtype)):
        code = kernel.cubin((8, 0))
        assert kernel.name.encode() in code and registers(code).stack == 0

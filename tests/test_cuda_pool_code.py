"""Convolution fused with pooling compiles for old and new GPUs, and mostly multiplies."""

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

from fastconv.cuda import tiled, tiled_pool
from fastconv.cuda.gemm import Tile
from fastconv.cuda.pool_tile import pooled_bytes
from fastconv.cuda.window import AVERAGE, MAX, POWERS, SQUARES

SHARED_MEMORY = 99 << 10  # bytes of a block on the smallest GPUs that copy asynchronously, compute capability 8.6
KERNELS = [
    ((128, 128), True, MAX, (8, 0)), ((128, 128), False, MAX, (9, 0, "a")), ((128, 64), True, AVERAGE, (9, 0, "a")),
    ((64, 64), True, SQUARES, (8, 0)), ((64, 64), False, POWERS, (8, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("rows_columns", "channels_last", "mode", "target"), KERNELS, ids=str)
def test_fused_pooling_multiplies_most_of_the_time(
    rows_columns: tuple[int, int], channels_last: bool, mode: int, target: Any
) -> None:
    tile = Tile(*rows_columns)
    code = tiled_pool.compiled(tile, channels_last, mode).cubin(target)
    text, used = disassemble(code), registers(code)
    loop = main_loop(text, "FFMA")
    assert loop.hits == 512 and loop.hits / loop.instructions > (0.75 if channels_last else 0.6)
    assert used.count * tile.threads * tiled.blocks_at_once(tile) <= 65536
    assert used.stack <= 32  # a few values that only the end of the kernel needs
    assert opcodes(text)["STS.128"] and opcodes(text)["STG.E.128"]
    assert pooled_bytes(tile) <= SHARED_MEMORY

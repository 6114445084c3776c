"""The kernels for Hopper's tensor cores multiply without waits between the products, and nothing spills."""

from __future__ import annotations

import os

import pytest
from machine_code import disassemble, main_loop, missing, opcodes, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv.cuda import wgmma

SHARED_MEMORY = 227 << 10  # bytes of a block, compute capability 9.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("bulk", [0, 1])
@pytest.mark.parametrize("sizes", wgmma.TILES, ids=str)
def test_products_follow_each_other(sizes: tuple[int, int, int], bulk: int, dtype: str) -> None:
    tile = wgmma.WgmmaTile(*sizes, bulk)
    code = wgmma.compiled(tile, dtype).cubin((9, 0, "a"))
    text, used = disassemble(code), registers(code)
    loop, found = main_loop(text, "HGMMA"), opcodes(text)
    assert loop.hits == sum(count for name, count in found.items() if name.startswith("HGMMA")) == 4
    assert loop.instructions < 180
    assert found["WARPGROUP.DEPBAR.LE"] == 2  # one in the loop, one behind it: products are not serialised
    assert found["WARPGROUP.ARRIVE"] == 1 and found["FENCE.VIEW.ASYNC.S"] == 1 + 2 * bulk
    assert found["UBLKCP.S.G"] == bulk * found["SYNCS.ARRIVE.TRANS64"] and bool(found["UBLKCP.S.G"]) == bool(bulk)
    assert found["LDGSTS.E.128"] and bool(found["LDGSTS.E.BYPASS.128"]) != bool(bulk)
    assert used.stack == 0 and not any(name.startswith(("LDL", "STL")) for name in found)
    assert used.count * tile.threads * tile.blocks_at_once(dtype) <= 65536
    assert tile.shared_bytes(dtype) <= SHARED_MEMORY

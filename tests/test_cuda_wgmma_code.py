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
from fastconv.cuda.mma_kernel import convolution, pooled_convolution, split_convolution
from fastconv.cuda.patches import patch_pixel
from fastconv.cuda.window import MAX, SQUARES

SHARED_MEMORY = 227 << 10  # bytes of a block, compute capability 9.0


# In bulk or not; in bulk, float16 is bfloat16 but for the name of the product.
KINDS = [(0, "bfloat16"), (0, "float16"), (0, "float32"), (1, "bfloat16")]
KERNELS = [((*sizes, bulk), dtype) for sizes in wgmma.TILES for bulk, dtype in KINDS]
KERNELS += [((*wgmma.TILES[0], 1), "float32")]


@pytest.mark.parametrize(("sizes", "dtype"), KERNELS, ids=str)
def test_products_follow_each_other(sizes: tuple[int, int, int, int], dtype: str) -> None:
    tile = wgmma.WgmmaTile(*sizes)
    check(tile, dtype, convolution(wgmma.product(tile, dtype)).cubin((9, 0, "a")))


POOLED = [
    ((128, 256, 4, 0), "float32", MAX), ((128, 128, 3, 1), "bfloat16", SQUARES), ((128, 64, 4, 0), "float16", MAX),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "dtype", "mode"), POOLED, ids=str)
def test_so_they_do_where_they_are_pooled(sizes: tuple[int, int, int, int], dtype: str, mode: int) -> None:
    tile = wgmma.WgmmaTile(*sizes)
    check(tile, dtype, pooled_convolution(wgmma.product(tile, dtype, patch_pixel), mode).cubin((9, 0, "a")))


def test_so_they_do_where_terms_are_split() -> None:
    tile = wgmma.WgmmaTile(128, 128, 6, 1)
    check(tile, "bfloat16", split_convolution(wgmma.product(tile, "bfloat16")).cubin((9, 0, "a")))


def check(tile: wgmma.WgmmaTile, dtype: str, code: bytes) -> None:
    """Raise unless a kernel's products follow each other, within its registers."""
    text, used = disassemble(code), registers(code)
    loop, found = main_loop(text, "HGMMA"), opcodes(text)
    assert loop.hits == sum(count for name, count in found.items() if name.startswith("HGMMA")) == 4
    assert loop.instructions < 180
    assert found["WARPGROUP.DEPBAR.LE"] == 2  # one in the loop, one behind it: products are not serialised
    assert found["WARPGROUP.ARRIVE"] == 1 and found["FENCE.VIEW.ASYNC.S"] == 1 + 2 * tile.bulk
    assert (
        found["UBLKCP.S.G"] == tile.bulk * found["SYNCS.ARRIVE.TRANS64"]
        and bool(found["UBLKCP.S.G"]) == tile.bulk_copies
    )
    assert found["LDGSTS.E.128"] and bool(found["LDGSTS.E.BYPASS.128"]) != tile.bulk_copies
    assert used.stack == 0 and not any(name.startswith(("LDL", "STL")) for name in found)
    assert used.count * tile.threads * tile.blocks_at_once(dtype) <= 65536
    assert tile.shared_bytes(dtype) <= SHARED_MEMORY

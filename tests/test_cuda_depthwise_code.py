"""The kernels of depthwise filters and small groups, for old and new GPUs: sums in registers, whole vectors."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from machine_code import disassemble, main_loop, missing, opcodes, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv.cuda import depthwise, depthwise_weight, grouped
from fastconv.cuda.strip_access import APART, ONE, VECTOR, access
from fastconv.cuda.strips import Strip

STRIPS = [Strip(4, 3, 1), Strip(2, 3, 1), Strip(4, 2, 1), Strip(4, 3, 2), Strip(4, 5, 1), Strip(4, 1, 1)]
TARGETS = pytest.mark.parametrize("capability", [(8, 0), (9, 0, "a")], ids=str)


def count(found: Counter[str], prefix: str) -> int:
    """Instructions whose names begin so."""
    return sum(n for name, n in found.items() if name.startswith(prefix))


@TARGETS
@pytest.mark.parametrize("strip", STRIPS, ids=str)
def test_sums_stay_in_registers(strip: Strip, capability: tuple) -> None:
    for kind, load, store in ((VECTOR, "LDG.E.128", "STG.E.128"), (ONE, "LDG.E", "STG.E")):
        code = depthwise.compiled(strip, access(kind, "float32")).cubin(capability)
        used, text = registers(code), disassemble(code)
        found = opcodes(text)
        assert used.stack <= 8  # a value that only the end of the kernel needs
        assert used.count <= 96  # five blocks on a multiprocessor, which hide the time of loads
        assert count(found, load) >= strip.columns + strip.span
        assert count(found, store) == strip.pixels


@TARGETS
def test_taps_of_a_row_share_its_pixels(capability: tuple) -> None:
    text = disassemble(depthwise.compiled(Strip(4, 3, 1), access(VECTOR, "float32")).cubin(capability))
    loop = main_loop(text, "FFMA")
    assert not count(opcodes(text), "CALL")  # as divisions of 64 bits are
    assert loop.hits == 48 and loop.instructions <= 125  # 9 loads for 12 taps of 4 channels


@TARGETS
@pytest.mark.parametrize("strip", [Strip(4, 3, 1), Strip(2, 3, 2)], ids=str)
def test_gradients_of_depthwise_weights_keep_the_sums_of_nine_taps(strip: Strip, capability: tuple) -> None:
    images = access(VECTOR, "float32")
    code = depthwise_weight.compiled(strip, 3, images, depthwise_weight.LANES).cubin(capability)
    used, text = registers(code), disassemble(code)
    assert used.stack <= 32 and used.count * depthwise_weight.THREADS * depthwise_weight.BLOCKS <= 65536
    loop = main_loop(text, "FFMA")
    assert loop.hits == 9 * 4 * strip.pixels and loop.instructions <= 480
    assert main_loop(text, "LDG.E.128").hits == 3 * strip.columns + strip.pixels


@TARGETS
@pytest.mark.parametrize(
    ("strip", "most"), [(Strip(8, 3, 1), 620), (Strip(4, 3, 1), 370), (Strip(4, 3, 2), 400)], ids=str
)
def test_small_groups_mostly_multiply(strip: Strip, most: int, capability: tuple) -> None:
    for kind in (VECTOR, APART):
        code = grouped.compiled(strip, access(kind, "float32")).cubin(capability)
        used, text = registers(code), disassemble(code)
        assert used.stack <= 8 and used.count <= 136
        loop = main_loop(text, "FFMA")
        assert loop.hits == 3 * 4 * 4 * strip.pixels  # taps of a row, channels and filters
        if kind == VECTOR:
            assert loop.instructions <= most and count(opcodes(text), "STG.E.128") == strip.pixels
            assert main_loop(text, "LDG.E.128").hits == strip.columns + 12


@TARGETS
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_come_by_8_bytes_and_take_an_instruction_each(dtype: str, capability: tuple) -> None:
    strip = Strip(4, 3, 1)
    code = depthwise.compiled(strip, access(VECTOR, dtype)).cubin(capability)
    used, text = registers(code), disassemble(code)
    assert used.stack == 0 and used.count <= 96
    assert main_loop(text, "LDG.E.64").hits == strip.columns
    assert main_loop(text, "LDG.E.128").hits == strip.span  # weights are packed as float32
    assert count(opcodes(text), "STG.E.64") == strip.pixels
    loop = main_loop(text, "FFMA")
    assert loop.hits == 48 and loop.instructions <= 125 + 4 * strip.columns + 8


@TARGETS
def test_gradients_of_weights_by_halves(capability: tuple) -> None:
    strip = Strip(4, 3, 1)
    code = depthwise_weight.compiled(strip, 3, access(VECTOR, "bfloat16"), depthwise_weight.LANES).cubin(capability)
    used, text = registers(code), disassemble(code)
    assert used.stack <= 32 and used.count * depthwise_weight.THREADS * depthwise_weight.BLOCKS <= 65536
    loaded = 3 * strip.columns + strip.pixels
    assert main_loop(text, "LDG.E.64").hits == loaded
    loop = main_loop(text, "FFMA")
    assert loop.hits == 9 * 4 * strip.pixels and loop.instructions <= 480 + 4 * loaded + 8


@TARGETS
def test_small_groups_of_halves_mostly_multiply(capability: tuple) -> None:
    strip = Strip(8, 3, 1)
    for kind, most in ((VECTOR, 136), (APART, 168)):  # registers: three blocks on a multiprocessor
        code = grouped.compiled(strip, access(kind, "bfloat16")).cubin(capability)
        used, text = registers(code), disassemble(code)
        assert used.stack <= 8 and used.count <= most
        loop = main_loop(text, "FFMA")
        assert loop.hits == 3 * 4 * 4 * strip.pixels
        if kind == VECTOR:
            assert loop.instructions <= 620 + 4 * strip.columns + 8
            assert main_loop(text, "LDG.E.64").hits == strip.columns and main_loop(text, "LDG.E.128").hits == 12

"""The depthwise kernels compile for old and new GPUs, keep sums in registers and load whole vectors."""

from __future__ import annotations

import os
from typing import Any

import pytest
from machine_code import disassemble, missing, opcodes, registers

pytest.importorskip("numba_cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)
if missing():
    pytest.skip(missing(), allow_module_level=True)

from fastconv.cuda import depthwise, depthwise_input


@pytest.mark.parametrize("capability", [(8, 0), (9, 0, "a")], ids=str)
@pytest.mark.parametrize("strip", [1, 2, 4])
@pytest.mark.parametrize("module", [depthwise, depthwise_input], ids=lambda module: module.__name__)
def test_sums_stay_in_registers(module: Any, strip: int, capability: tuple) -> None:
    for kernel, load, store in (
        (module._by_vectors(strip), "LDG.E.128", "STG.E.128"), (module._by_elements(strip), "LDG.E", "STG.E"),
    ):  # fmt: skip
        code = kernel.cubin(capability)
        used, text = registers(code), disassemble(code)
        found = opcodes(text)
        assert used.stack == 0 and not any(name.startswith(("LDL", "STL")) for name in found)
        assert used.count <= 96  # five blocks on a multiprocessor, which hide the time of loads
        assert sum(n for name, n in found.items() if name.startswith(load)) > strip
        assert sum(n for name, n in found.items() if name.startswith(store)) == strip

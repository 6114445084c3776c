"""The cache of compiled kernels among processes that write at once and are killed, with damaged files and without."""

from __future__ import annotations

import os

import pytest
from crowds import run, scenario

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the scenarios fork")


@pytest.mark.parametrize(
    ("name", "count"), [("race", 0), ("killed", 10), ("damaged", 10), ("together", 4), ("unwritable", 0), ("full", 0)]
)
def test_every_kernel_is_the_right_one(name: str, count: int) -> None:
    found = scenario(name, script="caches.py", count=count)  # asserts that nothing is wrong
    assert found.get("killed", count) == count


def test_kernels_are_loaded_by_the_next_process(tmp_path) -> None:
    code = "from fastconv.cpu.launch import image_launcher as l; print(len(l().serial.stats.cache_hits))"
    found = [run("-c", code, NUMBA_CACHE_DIR=str(tmp_path)).stdout.strip() for _ in range(2)]
    assert found == ["0", "1"]

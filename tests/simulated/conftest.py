"""Tests of the GPU kernels in Numba's simulator; `tests/test_cuda_simulated.py` runs them in a process of their own."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all where the simulator is off: it is on for a whole process or not at all."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="needs NUMBA_ENABLE_CUDASIM=1"))

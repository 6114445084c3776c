"""Processes that are forked or spawned after, or while, their parent uses fastconv."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crowds import LAYERS, run, scenario

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# A child that must have 2 threads, or only one; and how to fork it.
PRELUDE = """
import os, threading, warnings
import numpy as np, numba, fastconv
from fastconv.cpu.threads import usable_threads
x, w = np.ones((2, 32, 60, 60), np.float32), np.ones((32, 32, 3, 3), np.float32)
def warned():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert (fastconv.conv2d(x, w) == 288).all()
    return [str(warning.message) for warning in seen]
def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_forked_pool(layer: str) -> None:
    assert scenario("fork", layer)["warnings"] == 1


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_pools(method: str) -> None:
    assert scenario(method)["warnings"] == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_forks_amid_threads(layer: str) -> None:
    assert scenario("fork_amid_threads", layer)["wrong"] == 0


@pytest.mark.parametrize("name", ["dataloader", "fork_after_torch"])
def test_torch(name: str) -> None:
    pytest.importorskip("torch")
    assert scenario(name, "omp")["wrong"] == 0


def test_a_child_says_once_what_to_do_and_so_does_its_own() -> None:
    code = """
def child():
    message, = warned()
    assert "multiprocessing.get_context('spawn')" in message and usable_threads(2) == 1
    assert not warned()
def silent():
    with fastconv.threads(1):
        assert not warned()
    fork(child)
assert not warned()
fork(child)
fork(silent)
with fastconv.threads(1):
    fork(lambda: warned() and os._exit(1))
assert not warned() and usable_threads(2) == 2
"""
    assert run("-c", PRELUDE + code).returncode == 0


def test_a_child_of_a_parent_without_threads_has_them() -> None:
    code = """
def child():
    assert not warned() and usable_threads(2) == 2
fork(child)
fork(child)
"""
    assert run("-c", PRELUDE + code).returncode == 0


def test_a_fork_waits_for_the_compiler(tmp_path: Path) -> None:
    code = """
doubled = x.astype(float)
fastconv.conv2d(doubled, w.astype(float)), fastconv.avg_pool2d(doubled, 2)  # imports, which no fork waits for
compiling = threading.Thread(target=fastconv.conv2d, args=(x, w))
compiling.start()
for _ in range(20):
    fork(lambda: fastconv.avg_pool2d(x, 2))
compiling.join()
"""
    assert run("-c", PRELUDE + code, NUMBA_CACHE_DIR=str(tmp_path)).returncode == 0

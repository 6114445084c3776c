"""Calls from many Python threads at once, and the limit of each."""

from __future__ import annotations

import threading
from typing import Any

import numba
import numpy as np
import pytest
from crowds import LAYERS, run, scenario

import fastconv
from fastconv.cpu.launch import Launcher

X, WEIGHT = np.ones((2, 32, 60, 60), np.float32), np.ones((32, 32, 3, 3), np.float32)


@pytest.mark.parametrize("name", ["threads", "limited"])
@pytest.mark.parametrize("layer", LAYERS)
def test_many_threads(layer: str, name: str) -> None:
    assert scenario(name, layer)["layer"] == layer


@pytest.mark.parametrize("layer", LAYERS)
def test_many_threads_that_are_shared_by_more_callers(layer: str) -> None:
    assert scenario("threads", layer, threads=8)["wrong"] == 0


def test_many_threads_where_there_is_one() -> None:
    assert scenario("threads", threads=1)["wrong"] == 0


@pytest.mark.parametrize("name", ["joblib", "dask", "torch"])
def test_beside_others(name: str) -> None:
    pytest.importorskip(name)
    assert scenario(name)["wrong"] == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_the_limit_is_that_of_a_python_thread(layer: str) -> None:
    code = """
import threading, numba, fastconv
def limit():
    found.append(numba.get_num_threads())
found = []
with fastconv.threads(1):
    limit()
    other = threading.Thread(target=limit)
    other.start()
    other.join()
limit()
assert found == [1, 2, 2], found
"""
    assert run("-c", code, layer=layer).returncode == 0


MEETING = """
import numpy as np
from fastconv.cpu.kernel import fields
from fastconv.cpu.launch import run_jobs
from fastconv.cpu.region import fetch_add
from numba import carray
from fastconv.jit import record_kernel
record = np.zeros(1, fields("came", "met"))
@record_kernel(record.dtype)
def meet(scratch, record, index):
    g, turns = carray(record, 1)[0], 0
    came = g.came
    fetch_add(came, 1)
    while fetch_add(came, 0) < 2 and turns < 100_000_000:
        turns += 1
    if fetch_add(came, 0) >= 2 and turns < 100_000_000:
        fetch_add(g.met, 1)
counts = np.zeros(2, np.int64)
record["came"], record["met"] = counts.ctypes.data, counts.ctypes.data + 8
run_jobs(meet, record, 2)
assert counts.tolist() == [2, 2], counts
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_two_jobs_run_at_once_though_there_are_more_threads(layer: str) -> None:
    assert run("-c", MEETING, layer=layer, threads=4).returncode == 0


CROWD = """
import threading, time
import numpy as np
from fastconv.cpu import launch
from fastconv.cpu.kernel import fields
from fastconv.cpu.memory import words
from fastconv.cpu.region import fetch_add
from numba import carray
from fastconv.jit import record_kernel
SLAB, JOBS, memories = 64, 8, []
def kept(slab, threads):
    memories.append(workspace(slab, threads))
    return memories[-1]
workspace, launch.workspace = launch.workspace, kept
record = np.zeros(1, fields("came", "leave", "places"))
@record_kernel(record.dtype)
def note(scratch, record, index):
    g, turns = carray(record, 1)[0], 0
    words(g.places)[index] = scratch
    came, leave = g.came, g.leave
    fetch_add(came, 1)
    while fetch_add(leave, 0) == 0 and turns < 1_000_000_000:
        turns += 1
class Launch:
    def __init__(self, leave):
        self.counts, self.places = np.array([0, leave]), np.zeros(JOBS, np.int64)
        came, places = self.counts.ctypes.data, self.places.ctypes.data
        self.record = np.array([(came, came + 8, places)], record.dtype)
    def run(self):
        launch.run_jobs(note, self.record, JOBS, SLAB)
        self.memory = memories[-1].ctypes.data
    def offsets(self):
        return set((self.places - self.memory).tolist())
def slabs(threads):  # where they are in memory: behind the head and the counters, if there are several threads
    return {128 + 64 * threads + SLAB * thread for thread in range(threads)} if threads > 1 else {0}
def alone():
    one = Launch(leave=1)
    one.run()
    assert one.offsets() <= slabs(THREADS), one.offsets()
alone()
held = Launch(leave=0)
other = threading.Thread(target=held.run, daemon=True)
other.start()
end = time.monotonic() + 60
while held.counts[0] == 0 and time.monotonic() < end:
    pass
assert held.counts[0] > 0
beside = Launch(leave=1)
try:
    beside.run()
finally:
    held.counts[1] = 1
assert beside.offsets() <= slabs(THREADS // 2), beside.offsets()
other.join()
alone()
"""


@pytest.mark.parametrize("layer", ["omp", "tbb"])
@pytest.mark.parametrize("threads", [2, 4])
def test_callers_share_the_threads(threads: int, layer: str) -> None:
    assert run("-c", f"THREADS = {threads}{CROWD}", layer=layer, threads=threads).returncode == 0


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of every launch that might take more than one."""
    found: list[int] = []
    launch = Launcher.__call__

    def spy(self: Launcher, *arguments: Any) -> None:
        found.append(arguments[-1])
        launch(self, *arguments)

    monkeypatch.setattr(Launcher, "__call__", spy)
    return found


@pytest.fixture
def most() -> int:
    if numba.config.NUMBA_NUM_THREADS == 1:
        pytest.skip("Numba has one thread")
    return numba.config.NUMBA_NUM_THREADS


def test_a_plan_made_before_keeps_the_limit(launches: list[int], most: int) -> None:
    plan = fastconv.plan(X.shape, WEIGHT, algorithm="direct", memory_format="channels_last")
    expected = plan(X)
    assert launches[-1] > 1
    with fastconv.threads(1):
        np.testing.assert_array_equal(plan(X), expected)
        assert launches[-1] == 1
        other = threading.Thread(target=plan, args=(X,))
        other.start()
        other.join()
        assert launches[-1] > 1


def test_the_innermost_limit_counts_and_ends(launches: list[int], most: int) -> None:
    with fastconv.threads(1):
        with fastconv.threads(10**6):
            assert numba.get_num_threads() == most
        fastconv.max_pool2d(X, 2)
        with pytest.raises(ZeroDivisionError), fastconv.threads(2):
            raise ZeroDivisionError
        assert numba.get_num_threads() == 1
    assert set(launches) <= {1}
    assert numba.get_num_threads() == most


@pytest.mark.parametrize("n", [0, -1, np.int64(0)])
def test_a_limit_is_at_least_one(n: Any) -> None:
    with pytest.raises(ValueError, match=f"n must be at least 1, got .*{n}"), fastconv.threads(n):
        pass


@pytest.mark.parametrize("n", [None, 1.0, "2", True])
def test_a_limit_is_an_integer(n: Any) -> None:
    with pytest.raises(TypeError, match=f"n must be an int, got {n!r}"), fastconv.threads(n):
        pass

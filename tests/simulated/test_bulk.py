"""Copies of blocks of memory, and the barriers that wait for them, in Python."""

from __future__ import annotations

import numpy as np
import pytest
from test_ptx import launch

from fastconv.cuda.ptx_bulk import barrier_expect, barrier_init, barrier_wait, copy_bulk
from fastconv.cuda.ptx_hopper import fence_async
from fastconv.cuda.toolkit import cuda, float32, int32, types


def test_phases_follow_each_other() -> None:
    def kernel(x, out):
        shared, barriers, t = cuda.shared.array(0, float32), cuda.shared.array(0, types.uint64), cuda.threadIdx.x
        if t == 0:
            barrier_init(barriers, 8, 1)
            fence_async()
        cuda.syncthreads()
        for phase in range(3):
            if t == 0:
                barrier_expect(barriers, 8, 64)
                copy_bulk(shared, 0, x, phase * 16, 32, barriers, 8)
                copy_bulk(shared, 8, x, phase * 16 + 8, 32, barriers, 8)
            cuda.syncthreads()
            before = shared[t]
            barrier_wait(barriers, 8, phase & 1)
            out[phase * 32 + t], out[phase * 32 + 16 + t] = before, shared[t]
            cuda.syncthreads()

    x, out = np.arange(48, dtype=np.float32), np.zeros(96, np.float32)
    launch(kernel, x, out, threads=16, shared=72)
    early, late = out.reshape(3, 2, 16).transpose(1, 0, 2)
    np.testing.assert_array_equal(late, x.reshape(3, 16))
    assert np.isnan(early[:, :]).any(1).all()


def waits(size: int, expected: int, parity: int = 0, calls: int = 1) -> None:
    def kernel(x):
        shared, barriers = cuda.shared.array(0, float32), cuda.shared.array(0, types.uint64)
        barrier_init(barriers, 8, calls)
        barrier_expect(barriers, 8, expected)
        copy_bulk(shared, 0, x, 0, size, barriers, 8)
        barrier_wait(barriers, 8, int32(parity))

    launch(kernel, np.zeros(16, np.float32), threads=1, shared=72)


def test_a_wait_that_never_ends_is_an_error() -> None:
    waits(64, 64)
    waits(64, 64, parity=1)  # the phase before the first counts as one that ended
    for size, expected, calls in [(32, 64, 1), (64, 64, 2)]:
        with pytest.raises(RuntimeError, match="bytes that nobody copies"):
            waits(size, expected, calls=calls)
    with pytest.raises(RuntimeError, match="32 bytes came that the phase does not expect"):
        waits(64, 32)


def test_blocks_are_aligned_and_inside() -> None:
    with pytest.raises(ValueError, match="24 bytes at byte 0, which is not aligned to 16 bytes"):
        waits(24, 24)
    with pytest.raises(IndexError, match="bytes 0 to 79 of"):
        waits(80, 80)

"""How slices of weights come to shared memory for `fastconv.cuda.wgmma`: by units, of all threads, or in bulk, of one.

In bulk, a slice is packed as it lies there, and the engine for copies of blocks of memory (`fastconv.cuda.ptx_bulk`)
brings it; barriers behind the slices, one for each stage, tell when it has come.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.mma_tile import placing
from fastconv.cuda.ptx import copy_async16, sync_warp
from fastconv.cuda.ptx_bulk import barrier_expect, barrier_init, barrier_wait, copy_bulk
from fastconv.cuda.ptx_hopper import fence_async
from fastconv.cuda.toolkit import cuda, device, int32


class WeightCopies(NamedTuple):
    """Device functions.

    ``start(barriers, thread)`` comes first; ``first(g, thread, group, first_filter, first_slice)`` is the element of
    which ``copy(shared, barriers, stage, weight, element, g, thread)`` starts to copy a slice, the next of which is
    `apart` elements further on; ``ready(barriers, stage, parity)`` waits for those that no `fastconv.cuda.ptx.wait`
    waits for, with parity 0 in the first round of stages, 1 in the next one, and so on.
    """

    start: Any
    first: Any
    copy: Any
    ready: Any
    apart: int


@cache
def by_units(tile: Any, width: int) -> WeightCopies:
    """Those of a `fastconv.cuda.wgmma.WgmmaTile` by all threads, for `width` elements in a unit."""
    UNITS, WIDTH, place = tile.units, width, placing(tile.units)
    ROW, STEP, COPIES = UNITS * width, tile.threads // UNITS, tile.columns * UNITS // tile.threads
    LEFT, SLICE = tile.rows * ROW, (tile.rows + tile.columns) * ROW

    @device
    def start(barriers, thread):
        pass

    @device
    def first(g, thread, group, first_filter, first_slice):
        row = int32((group * g.padded_filters + first_filter + thread // UNITS) * g.slices + first_slice)
        return int32((row * UNITS + thread % UNITS) * WIDTH)

    @device
    def copy(shared, barriers, stage, weight, element, g, thread):
        at = int32(stage * SLICE + LEFT + place(int32(thread // UNITS), int32(thread % UNITS)) * WIDTH)
        for i in range(COPIES):
            source = int32(element + i * STEP * g.slices * ROW)
            copy_async16(shared, int32(at + i * STEP * ROW), weight, source, True)

    @device
    def ready(barriers, stage, parity):
        pass

    return WeightCopies(start, first, copy, ready, ROW)


@cache
def in_bulk(tile: Any, width: int) -> WeightCopies:
    """Those by one thread."""
    ROW, COLUMNS, STAGES, BARRIERS = tile.units * width, tile.columns, tile.stages, tile.slices_bytes // 8
    LEFT, SLICE, BYTES = tile.rows * ROW, (tile.rows + COLUMNS) * ROW, 16 * tile.units * COLUMNS

    @device
    def start(barriers, thread):
        if thread == 0:
            for stage in range(STAGES):
                barrier_init(barriers, int32(BARRIERS + stage), int32(1))
            fence_async()
        cuda.syncthreads()

    @device
    def first(g, thread, group, first_filter, first_slice):
        return int32(((group * g.padded_filters + first_filter) * g.slices + first_slice * COLUMNS) * ROW)

    @device
    def copy(shared, barriers, stage, weight, element, g, thread):
        if thread == 0:
            barrier, at = int32(BARRIERS + stage), int32(stage * SLICE + LEFT)
            barrier_expect(barriers, barrier, int32(BYTES))
            copy_bulk(shared, at, weight, element, int32(BYTES), barriers, barrier)
        sync_warp()  # products want the lanes together again

    @device
    def ready(barriers, stage, parity):
        barrier_wait(barriers, int32(BARRIERS + stage), parity)

    return WeightCopies(start, first, copy, ready, COLUMNS * ROW)

"""The menu of register tiles, and what one step of a tile costs."""

from __future__ import annotations

from fastconv.cpu.host import host

# (rows, vectors) by number of vector registers: accumulators, one column of vectors and a broadcast fit.
_MENU = {
    32: [(6, 4), (4, 4), (7, 2), (7, 3), (14, 2), (5, 4), (1, 8)],
    16: [(6, 2), (4, 2), (3, 3), (4, 1), (12, 1), (1, 8)],
}

FMA_NS = 0.28  # a vector multiply-add at 3.6 GHz; only ratios of costs matter


def menu() -> list[tuple[int, int]]:
    """Tiles (rows, vectors) worth compiling for this CPU."""
    return _MENU[host().registers]


def step_ns(rows: int, vectors: int) -> float:
    """Time of one step of the contraction: multiply-adds, unless loads or their latency bind."""
    accumulators, loads = rows * vectors, rows + vectors
    return FMA_NS * max(accumulators, loads / 2, 4)


def per_tile_ns(rows: int, vectors: int) -> float:
    """Time to start and to store one tile."""
    return FMA_NS * (10 + 3 * rows * vectors)

"""How long products of matrices take, as the cost models of all implicit GEMMs in float32 predict it."""

from __future__ import annotations

from functools import cache

from fastconv.cuda.gemm import DEPTH, Tile
from fastconv.cuda.properties import first

LAUNCH_NS = 5_000.0
CAUTION = 1.1  # a factor for what has not been measured
PROCESSORS = 132  # of the large GPU that predictions are for
_FLOP_NS = 1 / 40_000  # of a large GPU


def blocks_at_once(tile: Tile) -> int:
    """Blocks that a multiprocessor holds: fewer threads of a narrow tile, for each copies more and needs registers."""
    threads = 512 if tile.columns >= 128 else 384 if tile.columns >= 32 else 256
    return threads // tile.threads


@cache
def multiprocessors() -> int:
    """Those of the GPU, for as many blocks; `PROCESSORS` where there is none."""
    gpu = first()
    return PROCESSORS if gpu is None or gpu.multiprocessors == 1 else gpu.multiprocessors  # the simulator has one


def product_ns(tile: Tile, rows: int, columns: int, terms: int, products: int) -> float:
    """Nanoseconds of a launch for so many products: whole waves of blocks, with what of their tiles is empty."""
    at_once = PROCESSORS * blocks_at_once(tile)
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * products
    shared = 1 + 8 / tile.rows + 8 / tile.columns  # copies that fewer sums share
    filled = -(-terms // DEPTH) * DEPTH
    return LAUNCH_NS + -(-blocks // at_once) * at_once * tile.threads * 64 * 2 * filled * shared * _FLOP_NS

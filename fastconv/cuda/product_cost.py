"""How long products of matrices take, as the cost models of all implicit GEMMs in float32 predict it."""

from __future__ import annotations

from fastconv.cuda.gemm import DEPTH, Tile

LAUNCH_NS = 5_000.0
PROCESSORS = 132
_FLOP_NS = 1 / 40_000  # of a large GPU


def blocks_at_once(tile: Tile) -> int:
    """Blocks that a multiprocessor holds: fewer threads of a narrow tile, for each copies more and needs registers."""
    threads = 512 if tile.columns >= 128 else 384 if tile.columns >= 32 else 256
    return threads // tile.threads


def product_ns(tile: Tile, rows: int, columns: int, terms: int, products: int) -> float:
    """Nanoseconds of a launch for so many products: whole waves of blocks, with what of their tiles is empty."""
    at_once = PROCESSORS * blocks_at_once(tile)
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * products
    shared = 1 + 8 / tile.rows + 8 / tile.columns  # copies that fewer sums share
    filled = -(-terms // DEPTH) * DEPTH
    return LAUNCH_NS + -(-blocks // at_once) * at_once * tile.threads * 64 * 2 * filled * shared * _FLOP_NS

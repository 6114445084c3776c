"""Weights in blocks of filters: the layout that gives the microkernel unit-stride vectors."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import prange, types

from fastconv.cpu.kernel import Packed
from fastconv.jit import jit
from fastconv.problem import ConvProblem


def filter_blocks(problem: ConvProblem, block: int) -> int:
    """Blocks of `block` filters in one group."""
    return -(-(problem.out_channels // problem.groups) // block)


def packing_ns(problem: ConvProblem) -> float:
    """Predicted time to pack the weights at each call: 0 where a plan has done it."""
    return 0.7 * math.prod(problem.weight_shape) if problem.raw else 0.0


def _pack(weight, packed, groups, block):
    filters, channels, height, width = weight.shape
    per_group = filters // groups
    blocks = (per_group + block - 1) // block
    size = height * width * channels * block
    for job in prange(groups * blocks):
        group, b = job // blocks, job % blocks
        first = group * per_group + b * block
        used = min(block, per_group - b * block)
        for r in range(height):
            for s in range(width):
                for c in range(channels):
                    start = job * size + ((r * width + s) * channels + c) * block
                    for k in range(used):
                        packed[start + k] = weight[first + k, c, r, s]
                    for k in range(used, block):
                        packed[start + k] = 0


@cache
def _packer(dtype: str, parallel: bool) -> Any:
    real = getattr(types, dtype)
    source = types.Array(real, 4, "A", readonly=True)
    return jit(types.void(source, types.Array(real, 1, "C"), types.int64, types.int64), parallel=parallel)(_pack)


def pack_weight(weight: np.ndarray, groups: int, block: int) -> np.ndarray:
    """(K, C, R, S) -> flat (group, filter block, R, S, C, block), zeros after the last filter."""
    filters, *rest = weight.shape
    blocks = groups * -(-(filters // groups) // block)
    packed = np.empty(blocks * block * int(np.prod(rest)), weight.dtype)
    _packer(str(weight.dtype), packed.size > 1 << 16)(weight, packed, groups, block)
    return packed


def pack_filters(problem: ConvProblem, weight: np.ndarray, bias: np.ndarray | None, block: int) -> Packed:
    """Weights and bias for tiles whose vectors are filters: (group, filter block, ..., block)."""
    groups, per_group = problem.groups, problem.out_channels // problem.groups
    padded = np.zeros((groups, filter_blocks(problem, block) * block), problem.dtype)
    if bias is not None:
        padded[:, :per_group] = bias.reshape(groups, per_group)
    return Packed(pack_weight(weight, groups, block), padded.reshape(-1))


def pack_rows(problem: ConvProblem, weight: np.ndarray, bias: np.ndarray | None, block: int, lanes: int) -> Packed:
    """Weights and bias for tiles whose rows are filters; weights that come raw stay as they are.

    The bias of each filter fills one vector of `lanes`, from which its row of the tile starts.
    """
    spread = np.zeros(problem.out_channels * lanes, problem.dtype)
    if bias is not None:
        spread.reshape(-1, lanes)[:] = bias[:, None]
    if problem.raw:
        return Packed(np.ascontiguousarray(weight).reshape(-1), spread)
    return Packed(pack_weight(weight, problem.groups, block), spread)


def row_strides(problem: ConvProblem, block: int) -> dict[str, int]:
    """Strides of the weights of `pack_rows`: between channels, taps, filters of a block, blocks and groups."""
    _, channels, height, width = problem.weight_shape
    length = channels * height * width
    if problem.raw:  # (filter, c, r, s)
        filters = problem.out_channels // problem.groups
        return {
            "a_channel": height * width, "a_tap": 1, "a_row": length,
            "a_block": block * length, "a_group": filters * length,
        }  # fmt: skip
    return {  # (block, r, s, c, filter)
        "a_channel": block, "a_tap": channels * block, "a_row": 1,
        "a_block": block * length, "a_group": filter_blocks(problem, block) * block * length,
    }  # fmt: skip

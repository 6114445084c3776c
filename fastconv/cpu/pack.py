"""Weights and bias in the layouts that the microkernel reads.

As vectors, filters come in blocks as wide as a tile: (group, block, r, s, c, filter in block), zeros after
the last one. A plan packs them once; raw weights are packed by each job, a block at a time, into scratch
that stays in its own cache. As rows of a tile, filters are broadcast, so raw weights are read as they are
and a plan's have the same layout with blocks as high as a tile.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import numpy as np
from numba import types

from fastconv.arrays import aligned
from fastconv.cpu.host import host
from fastconv.cpu.memory import copy, fill, lanes_of, stack
from fastconv.cpu.transpose import copy_vector, transpose, transpose_block
from fastconv.jit import inline, jit, source_stamp
from fastconv.problem import ConvProblem

# Weights, with 4 axes for the launcher's sake, and a flat bias, in the layout that one kernel reads.
Packed = tuple[np.ndarray, np.ndarray]


def filter_blocks(problem: ConvProblem, block: int) -> int:
    """Blocks of `block` filters in one group."""
    return -(-(problem.out_channels // problem.groups) // block)


def packing_ns(problem: ConvProblem) -> float:
    """Predicted time to pack raw weights, once for each half L2 of input; 0 where a plan has done it."""
    if not problem.raw:
        return 0.0
    input_bytes = problem.itemsize * math.prod(problem.in_shape)
    return 0.2 * math.prod(problem.weight_shape) * (1 + 2 * input_bytes // host().l2)


@inline
def _pack_block(weight, packed, length, taps, filters, block, ITEM):
    """One block of packed weights, from `filters` filters of `length` elements."""
    if taps == 1 and filters == block:
        transpose(weight, length, packed, block, filters, length, ITEM)
        return
    lanes, channels = lanes_of(ITEM), length // taps
    scratch = stack(256, ITEM)  # a transposed block of at most 16 x 16
    if filters % lanes:
        fill(scratch, lanes * lanes, 0.0, ITEM)  # the lanes after the last filter
    for k in range(0, block, lanes):
        if k >= filters:
            fill(scratch, lanes * lanes, 0.0, ITEM)
        c, tap = 0, 0
        for u in range(0, length, lanes):
            some = min(lanes, length - u)
            if k < filters:
                transpose_block(weight + ITEM * (k * length + u), length, scratch, lanes, filters - k, some, ITEM)
            for i in range(some):
                source, target = scratch + ITEM * i * lanes, packed + ITEM * ((tap * channels + c) * block + k)
                if k + lanes <= block:
                    copy_vector(source, target, ITEM)
                else:
                    copy(source, 1, target, block - k, ITEM)
                tap += 1
                if tap == taps:
                    c, tap = c + 1, 0


@inline
def weights_of_block(weight, g, group, block, scratch, BLOCK, ITEM):
    """Address of the packed weights of one filter block; raw ones are packed into `scratch` first.

    `g` is a geometry record with the fields ``raw``, ``length`` (elements of a filter), ``kernel_taps``,
    ``filters`` (of a group) and ``blocks``.
    """
    if g.raw == 0:
        return weight + ITEM * (group * g.blocks + block) * g.length * BLOCK
    filters = min(BLOCK, g.filters - block * BLOCK)
    source = weight + ITEM * (group * g.filters + block * BLOCK) * g.length
    _pack_block(source, scratch, g.length, g.kernel_taps, filters, BLOCK, ITEM)
    return scratch


@cache
def _packer(ITEM: int, LANES: int, stamp: str) -> Any:
    """The compiled ``pack(weight, packed, groups, filters, length, block, taps)``, of contiguous weights by address."""

    def pack(weight, packed, groups, filters, length, block, taps):
        _ = stamp, LANES
        for group in range(groups):
            for first in range(0, filters, block):
                weights = weight + ITEM * (group * filters + first) * length
                _pack_block(weights, packed, length, taps, min(block, filters - first), block, ITEM)
                packed += ITEM * length * block

    return jit(pack, types.void(*[types.int64] * 7))


def padded_bias(bias: np.ndarray, groups: int, width: int) -> np.ndarray:
    """The bias with every group filled up to `width` elements."""
    per_group = len(bias) // groups
    if per_group == width:
        return np.ascontiguousarray(bias)
    padded = np.zeros((groups, width), bias.dtype)
    padded[:, :per_group] = bias.reshape(groups, per_group)
    return padded.reshape(-1)


class Packer(ABC):
    """Brings weights (K, C/groups, R, S) and bias (K,) or None, of any strides, into a kernel's layout."""

    @abstractmethod
    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        """The packed arrays, which may share memory with the given ones."""


class ChannelPacker(Packer):
    """Weights for vectors of filters that see few channels: (K, C/groups, R, S) as (block, R, S, C/groups, filter).

    What a tile reads lies together. With all filters side by side, a power of two of them would put every tap
    into the same few sets of the cache. The last block ends with the last filter and may overlap the one before.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Filters of a tile.
    """

    def __init__(self, problem: ConvProblem, block: int) -> None:
        filters = problem.out_channels
        starts = [*range(0, filters - block, block), filters - block]
        place = np.arange(math.prod(problem.weight_shape)).reshape(problem.weight_shape).transpose(2, 3, 1, 0)
        _, width, channels, _ = place.shape
        order = np.stack([place[..., start : start + block] for start in starts])
        self.order = order.reshape(-1, width, channels, block)  # launchers take 4 axes
        self.no_bias = np.zeros(filters, problem.dtype)

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        packed = weight.reshape(-1).take(self.order)
        return packed, self.no_bias if bias is None else np.ascontiguousarray(bias)


class FilterPacker(Packer):
    """Packs weights and bias for tiles whose vectors are filters; raw weights stay as they are.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Filters of a tile.
    lanes : int
        Elements of a vector.
    """

    def __init__(self, problem: ConvProblem, block: int, lanes: int) -> None:
        self.block, self.groups, self.dtype = block, problem.groups, np.dtype(problem.dtype)
        self.blocks, self.taps = filter_blocks(problem, block), math.prod(problem.kernel_size)
        self.size = problem.groups * self.blocks * block * math.prod(problem.weight_shape[1:])
        self.no_bias = np.zeros(problem.groups * self.blocks * block, problem.dtype)
        self.raw, self.lanes = problem.raw, lanes

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        padded = self.no_bias if bias is None else padded_bias(bias, self.groups, self.blocks * self.block)
        weight = np.ascontiguousarray(weight)
        if self.raw:
            return weight, padded
        packed = aligned((1, 1, 1, self.size), self.dtype)
        pack = _packer(self.dtype.itemsize, self.lanes, source_stamp())
        filters, length = len(weight) // self.groups, math.prod(weight.shape[1:])
        pack(weight.ctypes.data, packed.ctypes.data, self.groups, filters, length, self.block, self.taps)
        return packed, padded


class RowPacker(Packer):
    """Packs weights and bias for tiles whose rows are filters.

    The bias of each filter fills one vector, from which its row of the tile starts. Parameters are those of
    `FilterPacker`.
    """

    def __init__(self, problem: ConvProblem, block: int, lanes: int) -> None:
        self.lanes = lanes
        self.no_bias = np.zeros(problem.out_channels * lanes, problem.dtype)
        self.pack = FilterPacker(problem, block, lanes)

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        spread = self.no_bias if bias is None else np.repeat(bias, self.lanes)
        return self.pack(weight, None)[0], spread


def row_strides(problem: ConvProblem, block: int) -> dict[str, int]:
    """Strides of the weights of `RowPacker`: between channels, taps, filters of a block, blocks and groups."""
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


def packing_fields(problem: ConvProblem) -> dict[str, int]:
    """The fields of a geometry record that `weights_of_block` reads, but for the blocks."""
    taps = math.prod(problem.kernel_size)
    length = taps * problem.in_channels // problem.groups
    filters = problem.out_channels // problem.groups
    return {"raw": int(problem.raw), "length": length, "kernel_taps": taps, "filters": filters}


def packing_elements(problem: ConvProblem, block: int) -> int:
    """Scratch that `weights_of_block` needs."""
    return whole_lines(math.prod(problem.weight_shape[1:]) * block) if problem.raw else 0


def whole_lines(elements: int) -> int:
    """At least so many elements, such that what follows them in aligned scratch is aligned too."""
    return -(-elements // 16) * 16

"""Weights and bias in the layouts that the microkernel reads.

As vectors, filters come in blocks as wide as a tile: (group, block, r, s, c, filter in block). As rows of
a tile they are broadcast, so weights that come raw stay as they are and others get the same layout with
blocks as high as a tile. Filters past the last one are zeros.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types

from fastconv.cpu.memory import copy, fill, lanes_of, stack
from fastconv.cpu.transpose import transpose, transpose_block
from fastconv.jit import inline, jit, source_stamp
from fastconv.problem import ConvProblem

_CHUNK = 256  # elements of each filter that one thread packs at a time
_SMALL = 1 << 15  # elements that are not worth a second thread


class Packed(NamedTuple):
    """Weights and bias in the layout that one kernel reads, both flat."""

    weight: np.ndarray
    bias: np.ndarray


def filter_blocks(problem: ConvProblem, block: int) -> int:
    """Blocks of `block` filters in one group."""
    return -(-(problem.out_channels // problem.groups) // block)


def packing_ns(problem: ConvProblem) -> float:
    """Predicted time to pack the weights at each call: 0 where a plan has done it."""
    return 1500 + 0.3 * math.prod(problem.weight_shape) if problem.raw else 0.0


@inline
def _pack_chunk(weight, packed, length, taps, first, count, filters, block, ITEM):
    """Elements [first, first + count) of `filters` filters into one block of the packed weights."""
    lanes, channels = lanes_of(ITEM), length // taps
    if taps == 1:
        transpose(weight + ITEM * first, length, packed + ITEM * first * block, block, filters, count, ITEM)
        return
    scratch = stack(256, ITEM)  # a transposed block of at most 16 x 16
    for k in range(0, filters, lanes):
        for u in range(first, first + count, lanes):
            some = min(lanes, first + count - u)
            transpose_block(weight + ITEM * (k * length + u), length, scratch, lanes, filters - k, some, ITEM)
            for i in range(some):
                c, tap = (u + i) // taps, (u + i) % taps
                target = packed + ITEM * ((tap * channels + c) * block + k)
                copy(scratch + ITEM * i * lanes, 1, target, min(lanes, filters - k), ITEM)


@cache
def _packer(dtype: str, parallel: bool, ITEM: int, LANES: int, stamp: str) -> Any:
    """The compiled ``pack(weight, packed, groups, block, taps)`` for contiguous weights."""

    def pack(weight, packed, groups, block, taps):
        _ = stamp, LANES
        source, target = np.int64(weight.ctypes.data), np.int64(packed.ctypes.data)
        per_group, length = weight.shape[0] // groups, weight.shape[1] * taps
        blocks, chunks = (per_group + block - 1) // block, (length + _CHUNK - 1) // _CHUNK
        for job in prange(groups * blocks * chunks):
            index = np.int64(job)
            first, b = index % chunks * _CHUNK, index // chunks
            group, filters = b // blocks, min(block, per_group - b % blocks * block)
            count = min(_CHUNK, length - first)
            slab = target + ITEM * b * length * block
            if filters < block:
                for u in range(first, first + count):
                    row = u % taps * (length // taps) + u // taps
                    fill(slab + ITEM * (row * block + filters), block - filters, 0.0, ITEM)
            weights = source + ITEM * (group * per_group + b % blocks * block) * length
            _pack_chunk(weights, slab, length, taps, first, count, filters, block, ITEM)

    real, word = getattr(types, dtype), types.int64
    signature = types.void(types.Array(real, 4, "C", readonly=True), types.Array(real, 1, "C"), word, word, word)
    return jit(signature, parallel=parallel)(pack)


class Packer(ABC):
    """Brings weights (K, C/groups, R, S) and bias (K,) or None, of any strides, into a kernel's layout."""

    @abstractmethod
    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        """The packed arrays, which may share memory with the given ones."""

    def recycle(self, packed: Packed) -> None:  # noqa: B027 (to forget it is right for most)
        """Take back what a call returned and nobody uses any more."""


class ChannelPacker(Packer):
    """Depthwise weights for vectors of channels: (C, 1, R, S) as (R, S, C)."""

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        packed = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1)
        return Packed(packed, np.zeros(len(weight), weight.dtype) if bias is None else np.ascontiguousarray(bias))


class FilterPacker(Packer):
    """Packs weights and bias for tiles whose vectors are filters.

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
        # Fresh memory of this size would be mapped, page by page, at each call.
        self._spare: deque[np.ndarray] = deque(maxlen=2)
        self.no_bias = np.zeros(problem.groups * self.blocks * block, problem.dtype)
        self.pack = _packer(problem.dtype, self.size > _SMALL, problem.itemsize, lanes, source_stamp())

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        try:
            packed = self._spare.pop()
        except IndexError:
            packed = np.empty(self.size, self.dtype)
        self.pack(np.ascontiguousarray(weight), packed, self.groups, self.block, self.taps)
        return Packed(packed, self.no_bias if bias is None else self._padded(bias))

    def recycle(self, packed: Packed) -> None:
        self._spare.append(packed.weight)

    def _padded(self, bias: np.ndarray) -> np.ndarray:
        per_group = len(bias) // self.groups
        if per_group == self.blocks * self.block:
            return np.ascontiguousarray(bias)
        padded = np.zeros((self.groups, self.blocks * self.block), self.dtype)
        padded[:, :per_group] = bias.reshape(self.groups, per_group)
        return padded.reshape(-1)


class RowPacker(Packer):
    """Packs weights and bias for tiles whose rows are filters.

    The bias of each filter fills one vector, from which its row of the tile starts. Parameters are those of
    `FilterPacker`.
    """

    def __init__(self, problem: ConvProblem, block: int, lanes: int) -> None:
        self.lanes = lanes
        self.no_bias = np.zeros(problem.out_channels * lanes, problem.dtype)
        self.pack = None if problem.raw else FilterPacker(problem, block, lanes)

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        # Raw weights are copied only if they are not contiguous.
        spread = self.no_bias if bias is None else np.repeat(bias, self.lanes)
        flat = self.pack(weight, None).weight if self.pack else np.ascontiguousarray(weight).reshape(-1)
        return Packed(flat, spread)


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

"""Weights for the gradient of the input, whose vectors are input channels.

Packed, they are (group, block, r, s, k, channel in block), zeros after the last channel of a group.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import carray

from fastconv.arrays import aligned
from fastconv.cpu.kernel import Launch, fields, record
from fastconv.cpu.memory import copy, fill, ints, lanes_of, prefetch_lines, stack
from fastconv.cpu.pack import Packed, Packer, padded_bias
from fastconv.cpu.transpose import copy_vector, transpose_block
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "blocks", "block", "filters", "filters_per_job", "jobs_per_block", "channels", "taps", "places", "kept"
)

_AHEAD = 2  # filters
_JOB_BYTES = 64 << 10  # of weights


@cache
def _compiled(ITEM: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def pack_input(_x, weight, _bias, out, _scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        first, rest = index % g.jobs_per_block * g.filters_per_job, index // g.jobs_per_block
        block, group = rest % g.blocks, rest // g.blocks
        channels = min(g.block, g.channels - block * g.block)
        for k in range(first, min(first + g.filters_per_job, g.filters)):
            source = weight + ITEM * ((group * g.filters + k) * g.channels + block * g.block) * g.taps
            target = out + ITEM * (rest * g.kept * g.filters * g.block + k * g.block)
            if g.taps == 1:
                copy(source, 1, target, channels, ITEM)
                fill(target + ITEM * channels, g.block - channels, 0.0, ITEM)
            else:
                ahead = source + ITEM * _AHEAD * g.channels * g.taps, target + ITEM * _AHEAD * g.block
                _prefetch_filter(*ahead, g, channels, ITEM)
                _pack_filter(source, target, g, channels, ITEM)

    return pack_input


@inline
def _prefetch_filter(source, target, g, channels, ITEM):
    """Ask for what `_pack_filter` will touch: pieces so far apart that no hardware prefetcher follows."""
    places = ints(g.places, g.taps, 1)
    prefetch_lines(source, ITEM * channels * g.taps, 0)
    for t in range(g.taps):
        if places[t, 0] >= 0:
            prefetch_lines(target + ITEM * places[t, 0] * g.filters * g.block, ITEM * g.block, 1)


@inline
def _pack_filter(source, target, g, channels, ITEM):
    """The taps of one filter, which are neighbours, as vectors of channels, each tap to its place."""
    lanes, places = lanes_of(ITEM), ints(g.places, g.taps, 1)
    scratch = stack(256, ITEM)  # a transposed block of at most 16 x 16
    for c in range(0, g.block, lanes):
        count = min(lanes, channels - c)
        if count < lanes:
            fill(scratch, lanes * lanes, 0.0, ITEM)
        for t in range(0, g.taps, lanes):
            some = min(lanes, g.taps - t)
            if count > 0:
                transpose_block(source + ITEM * (c * g.taps + t), g.taps, scratch, lanes, count, some, ITEM)
            for i in range(some):
                place = places[t + i, 0]
                if place >= 0:
                    to = target + ITEM * (place * g.filters * g.block + c)
                    if c + lanes <= g.block:
                        copy_vector(scratch + ITEM * i * lanes, to, ITEM)
                    else:
                        copy(scratch + ITEM * i * lanes, 1, to, g.block - c, ITEM)


class InputPacker(Packer):
    """Packs weights and bias for tiles whose vectors, or rows, are input channels.

    Parameters
    ----------
    problem : ConvProblem
    block : int
        Channels of a tile.
    threads : int
        How many may share the work.
    order : list of int, optional
        The taps ``r*S + s`` that are kept, in the order that they are packed in; all of them if not given.
    spread : int, default 1
        How often each element of the bias is repeated.
    """

    def __init__(
        self, problem: ConvProblem, block: int, threads: int, order: list[int] | None = None, spread: int = 1
    ) -> None:
        filters, channels = problem.out_channels // problem.groups, problem.in_channels // problem.groups
        taps = math.prod(problem.kernel_size)
        order = list(range(taps)) if order is None else order
        self.groups, self.blocks, self.dtype = problem.groups, -(-channels // block), np.dtype(problem.dtype)
        self.width = self.blocks * block if spread == 1 else channels
        self.size, self.spread = problem.groups * self.blocks * block * filters * len(order), spread
        self.no_bias = np.zeros(self.groups * self.width * spread, problem.dtype)
        per_job = max(1, _JOB_BYTES // (block * taps * problem.itemsize))
        places = np.full(taps, -1)
        places[order] = np.arange(len(order))
        self.geometry = record(
            GEOMETRY, self.groups * self.blocks * -(-filters // per_job), 0, {"places": places},
            blocks=self.blocks, block=block, filters=filters, filters_per_job=per_job,
            jobs_per_block=-(-filters // per_job), channels=channels, taps=taps, kept=len(order),
        )  # fmt: skip
        self.function = _compiled(problem.itemsize, source_stamp())
        self.threads = threads if self.size * problem.itemsize > _JOB_BYTES else 1

    @cached_property
    def launch(self) -> Launch:
        """What packs the weights."""
        return Launch(self.function.address, self.geometry, self.threads)

    @property
    def nbytes(self) -> int:
        """Size of the packed weights."""
        return self.size * self.dtype.itemsize

    def __call__(self, weight: np.ndarray, bias: np.ndarray | None) -> Packed:
        weight, packed = np.ascontiguousarray(weight), aligned((1, 1, 1, self.size), self.dtype)
        self.launch(weight, weight, self.no_bias, packed)
        if bias is None:
            return packed, self.no_bias
        return packed, np.repeat(padded_bias(bias, self.groups, self.width), self.spread)

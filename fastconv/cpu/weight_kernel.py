"""What every CPU kernel for the gradient of the weights is to its callers, and the sum of partial results."""

from __future__ import annotations

import math
import os
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import carray

from fastconv.arrays import aligned, empty
from fastconv.cpu.kernel import Kernel, Launch, Params, fields, record
from fastconv.cpu.memory import copy, get, prefetch_lines, put
from fastconv.cpu.panels import copy_pixels
from fastconv.cpu.transpose import transpose
from fastconv.jit import inline, job_kernel, source_stamp
from fastconv.problem import ConvProblem

_LEAST_JOBS, _JOBS_PER_CORE = 16, 4  # jobs wanted; the former for any number of cores
_SPLIT_PIXELS, _SPLIT_BYTES = 256, 64 << 20  # a split more must be worth adding up, and not take too much memory
COPY_NS = 0.1  # for a byte of a band, to copy it to where a kernel wants it

_SUM = fields("elements", "splits", "per_job")
_SUM_ELEMENTS = 1 << 13  # of the result, in one job


@cache
def _summing(ITEM: int, stamp: str) -> Any:
    @job_kernel(_SUM)
    def sum_splits(splits, _second, _third, out, _scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        first = ITEM * index * g.per_job
        count = min(g.per_job, g.elements - index * g.per_job)
        copy(splits + first, 1, out + first, count, ITEM)
        for split in range(1, g.splits):
            source = splits + ITEM * split * g.elements + first
            for i in range(count):
                put(out + first, i, get(out + first, i, ITEM) + get(source, i, ITEM), ITEM)

    return sum_splits


@inline
def copy_gradient(grad, g, first, last, filters, panel, pixel, ITEM):
    """Output rows [first, last) of a gradient as pixels `pixel` elements apart, filters side by side."""
    for row in range(last - first):
        copy_pixels(
            grad + ITEM * (first + row) * g.grad_row, g.grad_column, g.grad_channel,
            panel + ITEM * row * g.out_width * pixel, pixel, g.out_width, filters, ITEM,
        )  # fmt: skip


@inline
def prefetch_share(x, grad, g, band, channels, filters, turn, turns, ITEM):
    """Ask for one of `turns` equal parts of the pixels of a band, while another band is computed.

    `x` and `grad` are the first channels wanted of channels-last arrays. A part at a time, for all requests at
    once would wait for each other. Of the input, it is one pixel for each output pixel: most of what 1x1 kernels
    read, who wait for memory most.
    """
    n, first = band // g.bands, band % g.bands * g.band
    pixels = min(g.band, g.out_height - first) * g.out_width
    for pixel in range(turn * pixels // turns, (turn + 1) * pixels // turns):
        i, j = first + pixel // g.out_width, pixel % g.out_width
        in_grad = n * g.grad_batch + i * g.grad_row + j * g.grad_column
        in_x = n * g.x_batch + i * g.stride_h * g.x_row + j * g.stride_w * g.x_column
        prefetch_lines(grad + ITEM * in_grad, ITEM * filters, 0)
        prefetch_lines(x + ITEM * in_x, ITEM * channels, 0)


@inline
def store_block(block, rows, wide, filters, channels, out, out_channels, taps, ITEM):
    """A block (tap, `rows` filters, `wide` channels), as far as it is filled, to weights (filter, channel, tap)."""
    for k in range(filters):
        source, target = block + ITEM * k * wide, out + ITEM * k * out_channels * taps
        if taps == 1:
            copy(source, 1, target, channels, ITEM)
        else:
            transpose(source, rows * wide, target, taps, taps, channels, ITEM)


def equal_blocks(size: int, most: int, unit: int) -> tuple[int, int]:
    """Blocks that are multiples of `unit`, at most `most` if that allows one, and how many cover `size`."""
    blocks = -(-size // max(unit, most // unit * unit))
    block = -(-size // (blocks * unit)) * unit
    return block, -(-size // block)


def odd_lines(elements: int, lanes: int) -> int:
    """The next odd number of vectors."""
    lines = -(-elements // lanes)
    return lanes * (lines + 1 - lines % 2)


class WeightKernel(Kernel):
    """An algorithm for the gradient of the weights, bound to a problem.

    Its jobs read the input and the gradient of the output, whose strides `geometry` takes, and write
    contiguous weights (K, C/groups, R, S). With several `splits`, each of them writes weights of its own, which
    are then added in order.
    """

    splits = 1

    def __init__(self, problem: ConvProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self.elements = math.prod(problem.weight_shape)
        self._no_bias = np.empty(0, problem.dtype)

    def split_sum(self, parts: int, blocks: int) -> None:
        """Cut a sum of so many parts, for each of `blocks` of the result, where there are few jobs otherwise.

        It depends on the cores of the machine, but not on the threads of this run, for the result must not.
        """
        pixels = self.problem.batch * math.prod(self.problem.conv_size)
        most = min(pixels // _SPLIT_PIXELS, _SPLIT_BYTES // (self.elements * self.item))
        for_cores = min(most, -(-_JOBS_PER_CORE * (os.cpu_count() or 1) // blocks))
        self.splits = max(1, min(parts, max(for_cores, -(-_LEAST_JOBS // blocks))))

    @cached_property
    def sum(self) -> Launch:
        """Adds the results of the splits up in order."""
        self.summing = _summing(self.item, source_stamp())
        jobs = -(-self.elements // _SUM_ELEMENTS)
        geometry = record(_SUM, jobs, 0, {}, elements=self.elements, splits=self.splits, per_job=_SUM_ELEMENTS)
        return Launch(self.summing.address, geometry, self.threads)

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one run on arrays in the problem's own memory format."""
        return super().workspace_bytes + (self.splits * self.elements * self.item if self.splits > 1 else 0)

    def run(self, x: np.ndarray, grad_output: np.ndarray, out: np.ndarray) -> None:
        """Compute `out` (K, C/groups, R, S) from `x` (N, C, H, W) and `grad_output` (N, K, Ho, Wo).

        Safe to call from several threads at once.
        """
        if not grad_output.size:
            out[...] = 0
            return
        launch = self.launch(x, grad_output)
        if launch is None:
            dense = empty(x.shape, x.dtype, self.problem.memory_format)
            np.copyto(dense, x)
            self.run(dense, grad_output, out)
            return
        shape = self.problem.weight_shape
        result = out if out.flags.c_contiguous else np.empty(shape, out.dtype)
        if self.splits == 1:
            launch(x, grad_output, self._no_bias, result)
        else:
            partial = aligned((self.splits * shape[0], *shape[1:]), out.dtype)
            launch(x, grad_output, self._no_bias, partial)
            self.sum(partial, partial, self._no_bias, result)
        if result is not out:
            np.copyto(out, result)

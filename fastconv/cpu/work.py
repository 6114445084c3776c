"""How a kernel cuts its work into jobs, counted from the record that the jobs read, and how long threads take for them.

A machine with many cores is seldom at hand, but whether a cut would keep its cores busy can be counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from fastconv.cpu import (
    bands,
    depthwise,
    direct,
    im2col,
    pool,
    sliding,
    weight_depthwise,
    weight_direct,
    weight_im2col,
    weight_tiled,
)
from fastconv.cpu.input_phases import InputPhases
from fastconv.cpu.kernel import Geometry, Kernel
from fastconv.cpu.two_pass import TwoPass

Values = dict[str, int]
Axis = tuple[np.ndarray, np.ndarray]  # factors of the results that a job writes, and of its operations


@dataclass(frozen=True)
class Work:
    """The jobs of one launch, in order.

    Attributes
    ----------
    results : int64 array
        Elements that each job writes.
    operations : int64 array
        Multiply-adds of each job; a pooling's elements of windows.
    """

    results: np.ndarray
    operations: np.ndarray

    def busiest(self, threads: int) -> int:
        """Operations that are over when the last thread is done, if all threads are equally fast.

        As in `fastconv.cpu.region`, each begins with a range of neighbouring jobs and then takes the others'.
        """
        jobs = len(self.operations)
        threads = max(1, min(threads, jobs))
        first = [jobs * thread // threads for thread in range(threads + 1)]
        following = first[:-1]
        ready, done = [(0, thread) for thread in range(threads)], 0
        while ready:
            now, thread = heapq.heappop(ready)
            turns = ((thread + turn) % threads for turn in range(threads))
            owner = next((other for other in turns if following[other] < first[other + 1]), None)
            if owner is not None:
                done = max(done, now + int(self.operations[following[owner]]))
                heapq.heappush(ready, (now + int(self.operations[following[owner]]), thread))
                following[owner] += 1
        return done


def split_of_work(kernel: Any) -> list[Work]:
    """The launches of a kernel on arrays in the problem's own memory format, one after the other.

    Parameters
    ----------
    kernel : Kernel, InputPhases or TwoPass
        Made for some threads; it is not compiled.

    Raises
    ------
    ValueError
        If the kernel's jobs cannot be counted.
    """
    if isinstance(kernel, InputPhases):
        return [work for _, phase in kernel.kernels for work in split_of_work(phase)]
    if isinstance(kernel, TwoPass):
        return (split_of_work(kernel.convolution) + split_of_work(kernel.pooling)) * len(kernel.starts)
    geometry = kernel.dense_geometry() if isinstance(kernel, Kernel) else None
    count = _AXES.get(geometry.fields) if geometry else None
    if geometry is None or count is None:
        raise ValueError(f"kernel must be of a convolution, its gradients or a pooling, got {type(kernel).__name__}")
    # From the outermost axis of the jobs to the innermost.
    axes = zip(*count(kernel, geometry), strict=True)
    results, operations = (reduce(np.multiply.outer, factors).ravel() for factors in axes)
    return [Work(results, operations)]


def efficiency(works: list[Work], threads: int) -> float:
    """Share of the time of `threads` threads that is work, while these launches run one after the other."""
    total = sum(int(work.operations.sum()) for work in works)
    return total / (threads * sum(work.busiest(threads) for work in works)) if total else 1.0


def _pieces(total: int, each: int) -> np.ndarray:
    """Sizes of the pieces of `total`, all but the last of size `each`."""
    starts = np.arange(0, total, each)
    return np.minimum(each, total - starts)


def _shares(total: int, parts: int) -> np.ndarray:
    """Sizes of so many about equal parts."""
    return np.diff(total * np.arange(parts + 1) // parts)


def _both(sizes: Any) -> Axis:
    """An axis along which a job writes as much as it computes."""
    return np.asarray(sizes), np.asarray(sizes)


def _alike(count: int) -> Axis:
    return _both(np.ones(count, np.int64))


def _lines(table: np.ndarray, per_job: int) -> Axis:
    """Pixels, and taps of them, of runs of lines (`geometry.Lines.lines`)."""
    starts, pixels = np.arange(0, len(table), per_job), table[:, 2]
    return np.add.reduceat(pixels, starts), np.add.reduceat(pixels * table[:, 6] * table[:, 7], starts)


def _direct(kernel: Any, geometry: Geometry) -> list[Axis]:
    g, table = geometry.values, geometry.tables[0]
    every = np.concatenate([np.tile(table[: g["of_image"]], (g["images"], 1)), table[g["of_image"] :]])
    filters = _pieces(g["filters"], g["blocks_per_job"] * kernel.block)
    return [_alike(g["groups"]), _both(filters), _lines(every, g["lines_per_job"])]


def _depthwise(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    results, operations = _lines(geometry.tables[0], g["lines_per_job"])
    return [_alike(kernel.problem.batch), (results * g["channels"], operations * g["channels"])]


def _sliding(kernel: Any, geometry: Geometry) -> list[Axis]:
    g, taps = geometry.values, int(np.prod(kernel.problem.weight_shape[1:]))
    rows, channels = _pieces(g["out_height"], g["rows_per_job"]), g["blocks_per_job"] * kernel.block
    each = g["out_width"] * rows
    return [_alike(kernel.problem.batch), (each, each * taps), _both(_pieces(g["channels"], channels))]


def _im2col(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    pixels, filters = _pieces(g["pixels"], g["panel"]), _pieces(g["filters"], g["blocks_per_job"] * kernel.block)
    return [_alike(kernel.problem.batch * g["groups"]), (pixels, pixels * g["length"]), _both(filters)]


def _bands(kernel: Any, geometry: Geometry) -> list[Axis]:
    g, p = geometry.values, kernel.problem
    rows = conv_rows = _pieces(g["out_height"], g["height"])
    if p.pool:
        first = np.arange(0, g["out_height"], g["height"]) * g["pool_stride"] - g["pool_padding"]
        last = first + (rows - 1) * g["pool_stride"] + g["pool_span"]
        conv_rows = np.minimum(last, g["conv_height"]) - np.maximum(first, 0)
    filters = _pieces(g["filters"], g["blocks_per_job"] * kernel.block)
    bands = rows * p.out_size[1], conv_rows * g["conv_width"] * g["length"]
    return [_alike(p.batch * g["groups"]), bands, _both(filters)]


def _split_sum(kernel: Any, g: Values, parts: int) -> Axis:
    """Splits of a sum over all outputs, cut at `parts` places; each writes a result of its own."""
    pixels = kernel.problem.batch * int(np.prod(kernel.problem.conv_size))
    return np.ones(g["splits"], np.int64), _shares(parts, g["splits"]) * pixels // parts


def _weight_direct(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    channels = np.full(g["channel_tiles"], kernel.wide * g["kernel_taps"])
    blocks = _both(channels), _both(_pieces(g["filters"], g["filter_block"]))
    return [_alike(kernel.problem.groups), *blocks, _split_sum(kernel, g, g["chunks"])]


def _weight_tiled(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    filters = _pieces(g["filters"], g["filter_block"]) * g["kernel_taps"]
    blocks = _both(filters), _both(_pieces(g["channels"], g["channel_block"]))
    return [_alike(kernel.problem.groups), *blocks, _split_sum(kernel, g, g["images"] * g["bands"])]


def _weight_im2col(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    filters = _pieces(g["filters"], g["filter_block"]) * g["runs"] * g["run"]
    return [_alike(kernel.problem.groups), _both(filters), _split_sum(kernel, g, g["images"] * g["bands"])]


def _weight_depthwise(kernel: Any, geometry: Geometry) -> list[Axis]:
    g = geometry.values
    channels = _pieces(g["channels"], kernel.wide) * g["kernel_h"] * g["kernel_w"]
    return [_both(channels), _split_sum(kernel, g, g["images"] * g["bands"])]


def _pool(kernel: Any, geometry: Geometry) -> list[Axis]:
    g, p = geometry.values, kernel.problem
    rows = _pieces(g["out_height"], g["rows_per_job"]) * p.out_size[1]
    taps = int(np.prod(p.pool.kernel_size))
    return [_alike(p.batch), _both(_pieces(g["channels"], g["channels_per_job"])), (rows, rows * taps)]


_AXES: dict[np.dtype, Callable[[Kernel, Geometry], list[Axis]]] = {
    direct.GEOMETRY: _direct, depthwise.GEOMETRY: _depthwise, sliding.GEOMETRY: _sliding, im2col.GEOMETRY: _im2col,
    bands.GEOMETRY: _bands, weight_direct.GEOMETRY: _weight_direct, weight_tiled.GEOMETRY: _weight_tiled,
    weight_im2col.GEOMETRY: _weight_im2col, weight_depthwise.GEOMETRY: _weight_depthwise, pool.GEOMETRY: _pool,
}  # fmt: skip

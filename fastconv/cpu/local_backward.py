"""Gradients of a locally-connected convolution.

Both are lane-wise products (`fastconv.cpu.lanewise`) along the pixels of the result, like the convolution itself.
That of the input sums over filters: a job adds, for some channels of a group of images, the products of each tap
into the panel that the convolution would read (`fastconv.cpu.panels.TapPanels`), and then the panel into the image.
That of the weights sums over images, of panels and gradients that a job has in cache.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.host import host
from fastconv.cpu.kernel import Geometry, Params, fields, record
from fastconv.cpu.lanewise import multiply_lanes
from fastconv.cpu.local_kernel import (
    MOST_IMAGES,
    STEPS,
    LocalKernel,
    as_planes,
    cost,
    image_groups,
    tile,
    unsupported,
    whole,
    with_contiguous_rows,
)
from fastconv.cpu.memory import fill, get, ints, put
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.panels import PANEL_FIELDS, pad_vectors
from fastconv.jit import inline, job_kernel
from fastconv.local_problem import LocalProblem

__all__ = ["cost", "make", "space", "unsupported"]

_MOST_BYTES = 8 << 20  # of panels that one thread adds into

GEOMETRY = fields(
    *PANEL_FIELDS, "grad_batch", "grad_filter", "batch", "channels", "filters", "out_height", "out_width",
    "kernel_taps", "taps", "origin", "groups", "images", "bands", "height", "channels_per_job", "channel_jobs",
    "filters_per_job", "row",
)  # fmt: skip


def space(problem: LocalProblem) -> list[Params]:
    """One tile: there is nothing to try."""
    return [tile(problem.batch if problem.direction == "backward_input" else problem.conv.in_channels)]


def make(problem: LocalProblem, params: Params, threads: int) -> LocalInput | LocalWeight:
    """The kernel, to be compiled or loaded when it is first run."""
    if problem.direction == "backward_input":
        return LocalInput(problem, params, threads, _input)
    return LocalWeight(problem, params, threads, _weight)


@inline
def _add_row(panel, h, row, out, g, ITEM):
    """Write row `h` of one channel's image: what its panel has for it, in all columns of the filter, added up."""
    fill(row, g.in_width, 0.0, ITEM)
    q, phase = (h + g.top) // g.stride_h, (h + g.top) % g.stride_h
    if phase < g.phases_h and q < g.out_height - 1 + g.panel_rows:
        for s in range(g.phases_w):
            line = panel + ITEM * ((phase * g.phases_w + s) * g.panel_phase + q * g.pitch)
            # Columns j whose pixel j*stride + first is inside the image.
            first = s * g.phase_step - g.left
            begin = min(g.pitch, max(0, -(first // g.stride_w)))
            end = max(begin, min(g.pitch, -((first - g.in_width) // g.stride_w)))
            for j in range(begin, end):
                w = j * g.stride_w + first
                put(row, w, get(row, w, ITEM) + get(line, j, ITEM), ITEM)
    for w in range(g.in_width):
        put(out, w * g.x_column, get(row, w, ITEM), ITEM)


@cache
def _input(ROWS: int, COLUMNS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    """A job does some channels of a group of images; a tile is images x channels."""

    @job_kernel(GEOMETRY)
    def local_input(grad, weight, _third, out, panels, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, first = index % g.groups * g.images, index // g.groups * g.channels_per_job
        images, area, starts = min(g.images, g.batch - n), g.out_height * g.out_width, ints(g.taps, g.kernel_taps, 2)
        plane, filter_size = g.kernel_taps * area, g.channels * g.kernel_taps * area
        last = min(first + g.channels_per_job, g.channels)
        for c in range(first, last, COLUMNS):
            channels = min(COLUMNS, last - c)
            fill(panels, images * g.panel_image, 0.0, ITEM)
            for begin in range(0, area, g.height * g.out_width):
                end = min(begin + g.height * g.out_width, area)
                for k in range(0, g.filters, STEPS):
                    taps = (g.origin, 1, min(STEPS, g.filters - k))
                    for tap in range(g.kernel_taps):
                        w = weight + ITEM * (k * filter_size + c * plane + tap * area)
                        for image in range(0, images, ROWS):
                            gradient = grad + ITEM * ((n + image) * g.grad_batch + k * g.grad_filter)
                            target = panels + ITEM * (image * g.panel_image + starts[tap, 0])
                            size = (min(ROWS, images - image), channels)
                            for p in range(begin, end, LANES):
                                A = (gradient + ITEM * p, g.grad_batch, g.grad_filter)
                                B = (w + ITEM * p, plane, filter_size)
                                sums = (target + ITEM * p, g.panel_image, g.panel_channel)
                                if end - p >= LANES:
                                    multiply_lanes(A, B, taps, sums, sums, (*size, LANES), ROWS, COLUMNS, ITEM, 0)
                                else:
                                    multiply_lanes(A, B, taps, sums, sums, (*size, end - p), ROWS, COLUMNS, ITEM, 1)
            for image in range(images):
                for channel in range(channels):
                    panel = panels + ITEM * (image * g.panel_image + channel * g.panel_channel)
                    target = out + ITEM * ((n + image) * g.x_batch + (c + channel) * g.x_channel)
                    for h in range(g.in_height):
                        _add_row(panel, h, panels + ITEM * g.row, target + ITEM * h * g.x_row, g, ITEM)

    return local_input


@cache
def _weight(ROWS: int, COLUMNS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    """A job does a band of pixels of some channels and filters; a tile is channels x filters."""

    @job_kernel(GEOMETRY)
    def local_weight(x, grad, zeros, out, panels, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        first, rest = index % g.channel_jobs * g.channels_per_job, index // g.channel_jobs
        top, first_filter = rest % g.bands * g.height, rest // g.bands * g.filters_per_job
        bottom, channels = min(top + g.height, g.out_height), min(g.channels_per_job, g.channels - first)
        area, pixels, begin = g.out_height * g.out_width, (bottom - top) * g.out_width, top * g.out_width
        plane, filter_size = g.kernel_taps * area, g.channels * g.kernel_taps * area
        for image in range(g.batch):
            source = x + ITEM * (image * g.x_batch + first * g.x_channel)
            pad_vectors(source, g, top, bottom, channels, panels + ITEM * image * g.panel_image, ITEM)
        last_filter = min(first_filter + g.filters_per_job, g.filters)
        for k in range(first_filter, last_filter, COLUMNS):
            gradient = grad + ITEM * (k * g.grad_filter + begin)
            for c in range(0, channels, ROWS):
                size = (min(ROWS, channels - c), min(COLUMNS, last_filter - k))
                panel = panels + ITEM * c * g.panel_channel
                for tap in range(g.kernel_taps):
                    target = out + ITEM * (k * filter_size + (first + c) * plane + tap * area + begin)
                    taps = (g.taps + 16 * tap, 1, g.batch)
                    for p in range(0, pixels, LANES):
                        A = (panel + ITEM * p, g.panel_channel, g.panel_image)
                        B = (gradient + ITEM * p, g.grad_filter, g.grad_batch)
                        sums, init = (target + ITEM * p, plane, filter_size), (zeros, 0, 0)
                        if pixels - p >= LANES:
                            multiply_lanes(A, B, taps, init, sums, (*size, LANES), ROWS, COLUMNS, ITEM, 0)
                        else:
                            multiply_lanes(A, B, taps, init, sums, (*size, pixels - p), ROWS, COLUMNS, ITEM, 1)

    return local_weight


class _LocalGrad(LocalKernel):
    """What both gradients share."""

    def planes(self, grad_output: np.ndarray) -> np.ndarray:
        """The gradient of the result, copied if its planes are not contiguous."""
        height, width = self.problem.out_size
        rows, columns = grad_output.strides[2:]
        contiguous = columns == self.item and (rows == self.item * width or height == 1)
        return grad_output if contiguous else np.ascontiguousarray(grad_output)

    def fill(self, grad: tuple, jobs: int, scratch: int, tables: dict, fields: dict, **values: int) -> Geometry:
        """The record of what both gradients need, and of what is given."""
        conv, (out_height, out_width) = self.problem.conv, self.problem.out_size
        return record(
            GEOMETRY, jobs, scratch * self.item, tables, **fields, grad_batch=grad[0], grad_filter=grad[1],
            batch=conv.batch, channels=conv.in_channels, filters=conv.out_channels, out_height=out_height,
            out_width=out_width, kernel_taps=math.prod(conv.kernel_size), **values,
        )  # fmt: skip


class LocalInput(_LocalGrad):
    """The gradient of the input."""

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        return self.problem.out_shape, self.problem.in_shape

    def run(self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
        """Compute `out` (N, C, H, W) from `grad_output` (N, K, OH, OW) and weights (K, C, R, S, OH, OW).

        Any strides are taken; weights that are not contiguous, and gradients whose planes are not, are copied.
        Safe to call from several threads at once.
        """
        gradient = self.planes(grad_output)
        launch = self.launch(gradient, out)
        if launch is not None:
            launch(gradient, as_planes(weight), self.zeros, out)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        conv, (out_height, out_width) = self.problem.conv, self.problem.out_size
        panel = self.columns * self.panels.channel(out_height)
        most = min(conv.batch, MOST_IMAGES, _MOST_BYTES // (panel * self.item))
        # Gradients and panels of a band stay in half of L2 while the weights of a tile of channels pass. Sums are
        # taken band by band, so threads must have no say in this.
        pixel = max(1, most) * self.item * (STEPS + panel // (out_height * out_width))
        bands = -(-out_height * out_width * pixel // (host().l2 // 2))
        height = -(-out_height // min(out_height, bands))
        # Smaller groups read the weights more often, so only if there are not enough channels for all threads.
        least = -(-self.threads // -(-conv.in_channels // self.columns))
        groups, images = image_groups(conv.batch, max(1, min(most, -(-conv.batch // least))))
        wanted = -(-self.wanted_jobs(2) // groups)
        per_job = whole(-(-conv.in_channels // wanted), self.columns)
        tables = {"taps": self.panels.taps(out_height, 0), "origin": np.zeros((1, 2), np.int64)}
        row = whole_lines(images * panel)
        return self.fill(
            x, groups * -(-conv.in_channels // per_job), row + whole_lines(conv.in_size[1]), tables,
            self.panels.fields(out_height, out, panel), groups=groups, images=images, height=height,
            channels_per_job=per_job, row=row,
        )  # fmt: skip


class LocalWeight(_LocalGrad):
    """The gradient of the weights."""

    def run(self, x: np.ndarray, grad_output: np.ndarray, out: np.ndarray) -> None:
        """Compute `out` (K, C, R, S, OH, OW) from `x` (N, C, H, W) and `grad_output` (N, K, OH, OW).

        Any strides are taken; images whose rows and gradients whose planes are not contiguous are copied, and the
        result is if it is not. Safe to call from several threads at once.
        """
        gradient, result = self.planes(grad_output), out if out.flags.c_contiguous else np.empty_like(out, order="C")
        x = with_contiguous_rows(x)
        launch = self.launch(x, gradient)
        if launch is not None:
            launch(x, gradient, self.zeros, as_planes(result))
        if result is not out:
            np.copyto(out, result)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        conv, out_height, grad = self.problem.conv, self.problem.out_size[0], out
        room = host().l2 // 2 // (max(1, conv.batch) * self.item)
        height = self.panels.height(room // self.rows)
        in_cache = max(self.rows, room // self.panels.channel(height) // self.rows * self.rows)
        channel_jobs, bands = -(-conv.in_channels // in_cache), -(-out_height // height)
        channels_per_job = whole(-(-conv.in_channels // channel_jobs), self.rows)
        wanted = -(-self.wanted_jobs(2) // (channel_jobs * bands))
        filters_per_job = whole(-(-conv.out_channels // wanted), self.columns)
        jobs = channel_jobs * bands * -(-conv.out_channels // filters_per_job)
        image = channels_per_job * self.panels.channel(height)
        return self.fill(
            grad, jobs, max(1, conv.batch) * image, {"taps": self.panels.taps(height, 0)},
            self.panels.fields(height, x, image), bands=bands, height=height, channels_per_job=channels_per_job,
            channel_jobs=channel_jobs, filters_per_job=filters_per_job,
        )  # fmt: skip

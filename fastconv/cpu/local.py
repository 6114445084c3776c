"""Locally-connected convolution: every pixel of the result has weights of its own.

The weights are most of what moves, so a register tile passes each vector of them over several images, and each
vector of input over several filters (`fastconv.cpu.lanewise`). A job takes a band of rows and some filters of a
group of images. A few channels at a time, it copies the input, padded, into scratch where every tap reads its pixels
as they lie in the weights (`fastconv.cpu.panels.TapPanels`), and adds to results that stay in cache until the
last channels have been added.
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
from fastconv.cpu.pack import whole_lines
from fastconv.cpu.panels import PANEL_FIELDS, pad_vectors
from fastconv.cpu.transpose import move
from fastconv.jit import job_kernel
from fastconv.local_problem import LocalProblem

__all__ = ["cost", "make", "space", "unsupported"]

GEOMETRY = fields(
    *PANEL_FIELDS, "out_batch", "out_filter", "out_row", "out_column", "batch", "channels", "filters", "out_height",
    "out_width", "kernel_taps", "taps", "biased", "groups", "images", "bands", "height", "channel_block",
    "filters_per_job", "maps", "map_image",
)  # fmt: skip


def space(problem: LocalProblem) -> list[Params]:
    """One tile: there is nothing to try."""
    return [tile(problem.batch)]


def make(problem: LocalProblem, params: Params, threads: int) -> Local:
    """The kernel, to be compiled or loaded when it is first run."""
    return Local(problem, params, threads, _compiled)


@cache
def _compiled(ROWS: int, COLUMNS: int, ITEM: int, LANES: int, stamp: str) -> Any:
    @job_kernel(GEOMETRY)
    def local(x, weight, bias, out, scratch, geometry, index):
        _ = stamp
        g = carray(geometry, 1)[0]
        n, rest = index % g.groups * g.images, index // g.groups
        top, first = rest % g.bands * g.height, rest // g.bands * g.filters_per_job
        bottom, last = min(top + g.height, g.out_height), min(first + g.filters_per_job, g.filters)
        images, pixels, area = min(g.images, g.batch - n), (bottom - top) * g.out_width, g.out_height * g.out_width
        maps, filter_size = scratch + ITEM * g.maps, g.channels * g.kernel_taps * area
        for c in range(0, g.channels, g.channel_block):
            channels = min(g.channel_block, g.channels - c)
            for image in range(images):
                source = x + ITEM * ((n + image) * g.x_batch + c * g.x_channel)
                pad_vectors(source, g, top, bottom, channels, scratch + ITEM * image * g.panel_image, ITEM)
            for k in range(first, last, COLUMNS):
                w = weight + ITEM * (k * filter_size + c * g.kernel_taps * area + top * g.out_width)
                start = bias + ITEM * g.biased * (k * area + top * g.out_width)
                for image in range(0, images, ROWS):
                    o = maps + ITEM * ((k - first) * g.images + image) * g.map_image
                    size = (min(ROWS, images - image), min(COLUMNS, last - k))
                    for p in range(0, pixels, LANES):
                        A = (scratch + ITEM * (image * g.panel_image + p), g.panel_image, g.panel_channel)
                        B = (w + ITEM * p, filter_size, g.kernel_taps * area)
                        taps = (g.taps, g.kernel_taps, channels)
                        sums = (o + ITEM * p, g.map_image, g.images * g.map_image)
                        init = sums if c else (start + ITEM * g.biased * p, 0, g.biased * area)
                        if pixels - p >= LANES:
                            multiply_lanes(A, B, taps, init, sums, (*size, LANES), ROWS, COLUMNS, ITEM, 0)
                        else:
                            multiply_lanes(A, B, taps, init, sums, (*size, pixels - p), ROWS, COLUMNS, ITEM, 1)
        for image in range(images):
            result = out + ITEM * ((n + image) * g.out_batch + first * g.out_filter)
            for row in range(top, bottom):
                move(
                    maps + ITEM * (image * g.map_image + (row - top) * g.out_width), g.images * g.map_image, 1,
                    result + ITEM * row * g.out_row, g.out_filter, g.out_column, last - first, g.out_width, ITEM,
                )  # fmt: skip

    return local


class Local(LocalKernel):
    """Locally-connected convolution of one problem."""

    layout_copies = "input, padded, a band of rows at a time; a channels-last one as a whole before"

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """Compute `out` from `x` (N, C, H, W), weights (K, C, R, S, OH, OW) and bias (K, OH, OW).

        Any strides are taken; weights that are not contiguous, and images whose rows are not, are copied. Safe to call
        from several threads at once.
        """
        x = with_contiguous_rows(x)
        launch = self.launch(x, out)
        if launch is not None:  # any strides are taken
            flat = self.zeros if bias is None else np.ascontiguousarray(bias).reshape(-1)
            launch(x, as_planes(weight), flat, out)

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        conv, (out_height, out_width) = self.problem.conv, self.problem.out_size
        groups, images = image_groups(conv.batch, MOST_IMAGES)
        room = host().l2 // 2 // (images * self.item)
        height = self.panels.height(room)
        taps = math.prod(conv.kernel_size)
        channel_block = max(1, min(room // self.panels.channel(height), conv.in_channels, -(-STEPS // taps)))
        bands, map_image = -(-out_height // height), whole_lines(height * out_width)
        in_cache = max(1, host().l2 // (images * map_image * self.item))
        wanted = -(-self.wanted_jobs(2) // (groups * bands))
        filters_per_job = min(in_cache, whole(-(-conv.out_channels // wanted), self.columns))
        chunks = -(-conv.out_channels // filters_per_job)
        image = channel_block * self.panels.channel(height)
        maps = whole_lines(images * image)
        return record(
            GEOMETRY, groups * bands * chunks, self.item * (maps + filters_per_job * images * map_image),
            {"taps": self.panels.taps(height, out_height * out_width)}, **self.panels.fields(height, x, image),
            out_batch=out[0], out_filter=out[1], out_row=out[2], out_column=out[3],
            batch=conv.batch, channels=conv.in_channels, filters=conv.out_channels, out_height=out_height,
            out_width=out_width, kernel_taps=taps, biased=conv.bias, groups=groups, images=images, bands=bands,
            height=height, channel_block=channel_block, filters_per_job=filters_per_job, maps=maps,
            map_image=map_image,
        )  # fmt: skip

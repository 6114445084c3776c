"""How tiled convolution cuts a problem into bands of rows, and where everything lies in its scratch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np

from fastconv.cpu.emit import LINE_BYTES
from fastconv.cpu.geometry import axis_segments
from fastconv.cpu.host import host
from fastconv.cpu.kernel import ConvKernel, Geometry, Params, fields, record, split
from fastconv.cpu.pack import (
    FilterPacker,
    RowPacker,
    filter_blocks,
    packing_elements,
    packing_fields,
    packing_ns,
    row_strides,
    whole_lines,
)
from fastconv.cpu.tiles import per_tile_ns, step_ns
from fastconv.cpu.window import window_record
from fastconv.cpu.windows import pooling, way
from fastconv.jit import CFunction, source_stamp
from fastconv.problem import ConvProblem

GEOMETRY = fields(
    "x_batch", "x_channel", "x_row", "x_column", "out_batch", "out_filter", "out_row", "out_column",
    "in_height", "in_width", "conv_height", "conv_width", "out_height", "channels", "filters", "groups",
    "kernel_h", "stride_h", "stride_w", "dilation_h", "top", "left", "span_h", "channel_block", "merged",
    "taps", "n_taps",
    "height", "bands", "blocks", "blocks_per_job", "chunks", "straight", "epilogue",
    "panel_size", "panel_row", "panel_rows", "panel_channel", "panel_phase", "phases_h", "phases_w", "phase_step",
    "pitch", "map_size", "map_row", "map_column", "map_filter", "packed_size", "raw", "length",
    "kernel_taps", "a_row", "a_step", "a_block", "a_group",
    "window", "pool", "pool_stride", "pool_padding", "pool_span",
)  # fmt: skip


def channel_blocks(problem: ConvProblem, rows: int, vectors: int, pixel_vectors: int) -> list[int]:
    """All channels at once, and as many as keep the weights of a filter block in half of L2."""
    channels = problem.in_channels // problem.groups
    wide = rows if pixel_vectors else vectors * host().lanes(problem.itemsize)
    fitting = host().l2 // 2 // (math.prod(problem.kernel_size) * wide * problem.itemsize)
    whole = fitting >= channels or fitting < 8 or (problem.raw and not pixel_vectors)  # jobs pack whole filters
    return [channels] if whole else [channels, fitting // 8 * 8]


def cost(problem: ConvProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread."""
    rows, vectors = params["rows"], params["vectors"]
    wide, filters = vectors * host().lanes(problem.itemsize), problem.out_channels // problem.groups
    height, width = problem.conv_size
    channels = problem.in_channels // problem.groups
    length: float = math.prod(problem.weight_shape[1:])
    if params["pixel_vectors"]:
        pitch = width + ((problem.kernel_size[1] - 1) * problem.dilation[1]) // problem.stride[1]
        # Vectors that straddle two cache lines load at half the speed.
        tiles, packing = 1.4 * -(-height * pitch // wide) * -(-filters // rows), 0.0
    else:
        tiles, packing = height * -(-width // rows) * -(-filters // wide), packing_ns(problem)
        length *= _share_of_rows(problem)
    overlap = 1.0
    if problem.pool:  # neighbouring bands compute the rows that their windows share
        overlap += max(0, problem.pool.kernel_size[0] - problem.pool.stride[0]) / (8 * problem.pool.stride[0])
    contraction = overlap * tiles * (length * step_ns(rows, vectors) + per_tile_ns(rows, vectors))
    copies = 0.3 * (math.prod(problem.in_size) * channels + height * width * filters)
    return problem.batch * problem.groups * (contraction + copies) + packing


def _share_of_rows(problem: ConvProblem) -> float:
    """The share of filter rows that are not in the padding above or below."""
    inside = sum(len(run) * (run.last - run.first) for run in axis_segments(problem, 0))
    return inside / (problem.conv_size[0] * problem.kernel_size[0])


class _Bands(ConvKernel):
    """What both forms share: bands of output rows times chunks of filter blocks."""

    block: int  # filters of a register tile
    layout_copies = "input, padded, a band of rows at a time"

    def __init__(self, problem: ConvProblem, params: Params, threads: int, compiled: Callable) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.vectors = params["rows"], params["vectors"]
        self.channel_block = params["channels"]
        self.function = compiled(self.rows, self.vectors, self.item, self.lanes, source_stamp())
        self.span_h = (problem.kernel_size[0] - 1) * problem.dilation[0] + 1
        self.span_w = (problem.kernel_size[1] - 1) * problem.dilation[1] + 1

    def conv_rows(self, height: int) -> int:
        """Most convolution rows that a band of `height` output rows needs."""
        pool = self.problem.pool
        if pool is None:
            return height
        span = (pool.kernel_size[0] - 1) * pool.dilation[0] + 1
        return min(self.problem.conv_size[0], (height - 1) * pool.stride[0] + span)

    @abstractmethod
    def scratch(self, conv_rows: int) -> dict[str, int]:
        """Sizes and strides in elements of the pieces of scratch, for a band of so many rows."""

    def slab(self, height: int, blocks: int) -> int:
        """Bytes of scratch of a job."""
        sizes = self.scratch(self.conv_rows(height))
        return LINE_BYTES + self.item * (sizes["panel_size"] + blocks * sizes["map_size"] + sizes.get("packed_size", 0))

    def fill(self, x: tuple[int, ...], out: tuple[int, ...], taps: list, **form: int) -> Geometry:
        p = self.problem
        blocks, images, out_height = filter_blocks(p, self.block), p.batch * p.groups, p.out_size[0]
        row_bytes = self.slab(2, blocks) - self.slab(1, blocks) if out_height > 1 else self.slab(1, blocks)
        block_bytes = math.prod(p.weight_shape[1:]) * self.block * self.item
        height, per_job = split(out_height, row_bytes, blocks, block_bytes, images, self.wanted_jobs(4), p.raw)
        bands, chunks = -(-out_height // height), -(-blocks // per_job)
        tables: dict[str, np.ndarray | CFunction] = {"taps": np.array(taps, np.int64)}
        sizes = self.scratch(self.conv_rows(height))
        if p.pool:
            tables["window"] = window_record(p.pool, p.conv_size)
            steps = sizes.get("map_column", 1), sizes.get("map_filter", 1)
            chosen = way(p.pool, p.conv_size, steps, (out[3], out[1]), self.block, indices=False)
            tables["pool"] = pooling(p.pool, chosen, self.item)
            form |= {"pool_stride": p.pool.stride[0], "pool_padding": p.pool.padding[0]}
            form |= {"pool_span": (p.pool.kernel_size[0] - 1) * p.pool.dilation[0] + 1}
        return record(
            GEOMETRY, images * bands * chunks, self.slab(height, per_job),
            tables, n_taps=len(taps), x_batch=x[0], x_channel=x[1], x_row=x[2], x_column=x[3],
            out_batch=out[0], out_filter=out[1], out_row=out[2], out_column=out[3],
            in_height=p.in_size[0], in_width=p.in_size[1], conv_height=p.conv_size[0], conv_width=p.conv_size[1],
            out_height=out_height, channels=p.in_channels // p.groups, **packing_fields(p),
            groups=p.groups, kernel_h=p.kernel_size[0], dilation_h=p.dilation[0], stride_h=p.stride[0],
            stride_w=p.stride[1], top=p.padding[0][0], left=p.padding[1][0],
            span_h=self.span_h, channel_block=self.channel_block, height=height, bands=bands, blocks=blocks,
            blocks_per_job=per_job, chunks=chunks, epilogue=self.epilogue_address,
            **sizes, **form,
        )  # fmt: skip


class PixelRows(_Bands):
    """Channels-last: pixels are the rows of a register tile, filters its vectors."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int, compiled: Callable) -> None:
        super().__init__(problem, params, threads, compiled)
        self.block = self.vectors * self.lanes
        self.pack = FilterPacker(problem, self.block, self.lanes)
        self.width = (problem.conv_size[1] - 1) * problem.stride[1] + self.span_w

    def scratch(self, conv_rows: int) -> dict[str, int]:
        row = self.width * self.channel_block
        in_rows = (conv_rows - 1) * self.problem.stride[0] + self.span_h
        map_row = self.problem.conv_size[1] * self.block
        return {
            "panel_size": whole_lines(in_rows * row), "panel_row": row,
            "packed_size": packing_elements(self.problem, self.block),
            "map_size": conv_rows * map_row, "map_row": map_row, "map_column": self.block,
        }  # fmt: skip

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        p, channels, S = self.problem, self.problem.in_channels // self.problem.groups, self.problem.kernel_size[1]
        whole = self.channel_block == channels
        # Neighbouring taps of a filter row are neighbours in the panel: one sum over (s, c).
        merged = S if whole and p.dilation[1] == 1 else 1
        taps = [
            (
                (r * p.dilation[0] * self.width + s * p.dilation[1]) * self.channel_block,
                (r * S + s) * channels * self.block,
            )
            for r in range(p.kernel_size[0])
            for s in range(0, S, merged)
        ]
        straight = p.pool is None and whole and out[1] == 1
        form = {"merged": merged, "straight": int(straight)}
        geometry = self.fill(x, out, taps, **form)
        if straight:  # the microkernel stores into the result itself
            geometry.record.view(GEOMETRY)["map_column"] = out[3]
        return geometry


class PixelVectors(_Bands):
    """Contiguous: filters are the rows of a register tile, pixels its vectors."""

    def __init__(self, problem: ConvProblem, params: Params, threads: int, compiled: Callable) -> None:
        super().__init__(problem, params, threads, compiled)
        self.block = self.rows
        self.pack = RowPacker(problem, self.block, self.lanes)
        (sh, sw), (dh, dw), (R, S) = problem.stride, problem.dilation, problem.kernel_size
        self.phases_h = max(r * dh % sh for r in range(R)) + 1
        self.phases_w = max(s * dw % sw for s in range(S)) + 1
        self.pitch = problem.conv_size[1] + (self.span_w - 1) // sw

    def scratch(self, conv_rows: int) -> dict[str, int]:
        wide, reach = self.vectors * self.lanes, (self.span_h - 1) // self.problem.stride[0]
        phase = (conv_rows + reach) * self.pitch
        channel = self.phases_h * self.phases_w * phase
        pixels = (conv_rows - 1) * self.pitch + self.problem.conv_size[1]
        map_filter = -(-pixels // wide) * wide
        return {
            "panel_size": whole_lines(self.channel_block * channel + wide),
            "panel_channel": channel, "panel_phase": phase,
            "panel_rows": reach + 1, "map_size": self.rows * map_filter, "map_filter": map_filter,
        }  # fmt: skip

    def geometry(self, x: tuple[int, ...], out: tuple[int, ...]) -> Geometry:
        form = {"pitch": self.pitch, "phases_h": self.phases_h, "phases_w": self.phases_w, "phase_step": 1}
        strides = row_strides(self.problem, self.block)
        form |= {name: strides[name] for name in ("a_row", "a_block", "a_group")}
        form["a_step"] = strides["a_channel"]
        geometry = self.fill(x, out, [(0, 0)] * math.prod(self.problem.kernel_size), **form)
        phase = int(geometry.record.view(GEOMETRY)["panel_phase"][0])
        geometry.tables[0][:] = self._taps(phase, strides["a_tap"])
        return geometry

    def _taps(self, phase: int, a_tap: int) -> list[tuple[int, int]]:
        (sh, sw), (dh, dw), (R, S) = self.problem.stride, self.problem.dilation, self.problem.kernel_size
        found = []
        for r in range(R):
            for s in range(S):
                (row, ph), (column, pw) = divmod(r * dh, sh), divmod(s * dw, sw)
                offset = (ph * self.phases_w + pw) * phase + row * self.pitch + column
                found.append(((r * S + s) * a_tap, offset))
        return found

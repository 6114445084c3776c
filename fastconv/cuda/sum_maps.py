"""The second stage of a convolution whose terms are split: float32 maps are added, always in the same order.

Then come bias and activation, once, and the result is written in its own type.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, scratch
from fastconv.cuda.codec import codec
from fastconv.cuda.conv_kernel import DeviceKernel, Strides, check_reach
from fastconv.cuda.elements import activated4, divided
from fastconv.cuda.geometry import Epilogue
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.product_cost import LAUNCH_NS
from fastconv.cuda.ptx import load4, pack_bf16, pack_f16, store4, store_pairs
from fastconv.cuda.toolkit import cuda, device, float32, int32, numbers, pointer
from fastconv.problem import ConvProblem

WIDTH = 4  # filters of a thread
_THREADS = 256
_BYTE_NS = 1 / 2_000


class MapGeometry(NamedTuple):
    """Sizes of maps whose filters, `WIDTH` for each of `lanes`, are neighbours; strides of the result in elements."""

    splits: int
    pixels: int
    lanes: int
    height: int
    width: int
    out_batch: int
    out_channel: int
    out_row: int
    out_column: int
    has_bias: int
    vectors: int


@cache
def _compiled(dtype: str) -> Kernel:
    stored, _, read, write = codec(dtype)
    HALVES, pack = dtype != "float32", pack_bf16 if dtype == "bfloat16" else pack_f16

    @device
    def store(out, at, values):
        if HALVES:
            store_pairs(out, at, (pack(values[0], values[1]), pack(values[2], values[3])))
        else:
            store4(out, at, values)

    def sum_maps(partial, bias, out, g, epilogue):
        index = int32(cuda.grid(1))
        if index < g.pixels * g.lanes:
            pixel, lane = divided(index, g.lanes)
            k, apart = int32(lane * WIDTH), int32(g.pixels * g.lanes * WIDTH)
            t0, t1, t2, t3 = load4(partial, int32(index * WIDTH))
            for split in range(1, g.splits):
                s0, s1, s2, s3 = load4(partial, int32(split * apart + index * WIDTH))
                t0, t1, t2, t3 = t0 + s0, t1 + s1, t2 + s2, t3 + s3
            if g.has_bias:
                t0, t1 = t0 + read(bias, k), t1 + read(bias, k + 1)
                t2, t3 = t2 + read(bias, k + 2), t3 + read(bias, k + 3)
            t0, t1, t2, t3 = activated4((t0, t1, t2, t3), epilogue)
            rest, column = divided(pixel, g.width)
            n, row = divided(rest, g.height)
            at = int32(n * g.out_batch + k * g.out_channel + row * g.out_row + column * g.out_column)
            if g.vectors:
                store(out, at, (t0, t1, t2, t3))
            else:
                write(out, at, t0)
                write(out, int32(at + g.out_channel), t1)
                write(out, int32(at + 2 * g.out_channel), t2)
                write(out, int32(at + 3 * g.out_channel), t3)

    values = (numbers(int32, MapGeometry), numbers(float32, Epilogue))
    return Kernel(sum_maps, (pointer(float32), pointer(stored), pointer(stored), *values), (dtype,), threads=_THREADS)


class MapSum(DeviceKernel):
    """Adds maps and finishes them; `launch` gets the strides of `scratch` and of the result.

    Parameters
    ----------
    problem : ConvProblem
        Its filters are a multiple of `WIDTH`, and it does not pool.
    splits : int

    Attributes
    ----------
    size : int
        Elements of `scratch`.
    """

    problem: ConvProblem

    def __init__(self, problem: ConvProblem, splits: int) -> None:
        super().__init__(problem)
        self.splits, self.size = splits, splits * math.prod(problem.out_shape)

    def scratch(self, like: DeviceArray) -> DeviceArray:
        """New memory for the maps: float32 (splits*N, K, H, W), channels-last, where `like` is."""
        batch, *rest = self.problem.out_shape
        shape = (self.splits * batch, *rest)
        return replace(scratch(self.size, like, "float32"), shape=shape, strides=dense_strides(shape, "channels_last"))

    def launch(self, *strides: Strides) -> Launch:
        _, out = strides
        return self._launch(out, out[1] == 1 and all(step % WIDTH == 0 for step in (out[0], out[2], out[3])))

    def launch_unaligned(self, *strides: Strides) -> Launch:
        return self._launch(strides[1], False)

    def _launch(self, out: Strides, vectors: bool) -> Launch:
        p = self.problem
        check_reach(p.out_shape, out)
        pixels, lanes = p.batch * math.prod(p.conv_size), p.out_channels // WIDTH
        numbers: tuple[int, ...] = (self.splits, pixels, lanes, *p.conv_size, *out, int(p.bias), int(vectors))
        values = (MapGeometry(*numbers), Epilogue.of(p.activation))
        return Launch(_compiled(p.dtype), (-(-pixels * lanes // _THREADS),), values)


def sum_ns(problem: ConvProblem, splits: int) -> float:
    """Predicted time in nanoseconds of writing and adding maps, which are mostly in the L2 cache."""
    return LAUNCH_NS + 2 * 4 * MapSum(problem, splits).size * _BYTE_NS

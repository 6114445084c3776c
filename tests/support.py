"""What the tests share: problems to run, arrays that catch stray reads and writes, and error bounds."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fastconv import algorithms
from fastconv.cpu.region import COUNTER_BYTES, workspace_size
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, MemoryFormat, PoolProblem, Problem

GUARDS = sys.platform.startswith(("linux", "darwin"))
SENTINEL = -12345  # exact in every dtype
FORMATS: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")

# fmt: off
PROBLEMS = [parse(text) for text in [
    # Channel counts around the vector widths.
    "n1c1h7w9k1r3s3p1", "n1c3h11w13k5r3s3p1_bias_relu", "n3c5h9w7k17r3s3p1_bias", "n1c17h5w11k33r3s3p1_relu6",
    "n1c33h7w7k64r3s3p1_bias_leakyrelu", "n1c64h9w8k64r3s3p1_bias_relu",
    # Several blocks of channels and of filters.
    "n1c130h9w11k70r3s3p1_bias_relu", "n1c300h4w5k140r1s1_bias", "n1c40h6w6k200r3s3p1_relu",
    # Strides, down and across.
    "n1c5h13w17k7r3s3p1u2_bias", "n1c3h17w19k9r5s5p2u3", "n1c4h15w9k6r3s3p1u2.1_relu", "n1c17h9w15k18r3s3p1u1.2",
    "n1c8h9w9k8r1s1u2", "n1c3h8w8k4r2s2u3",
    # Padding: asymmetric, larger than the kernel, larger than the image.
    "n1c4h8w9k6r3s3p0.1.2.3_bias", "n1c3h6w7k5r3s3p2.0.0.1u2", "n1c4h3w3k17r5s5p4_bias_relu",
    "n1c2h4w5k3r2s2p5_bias", "n2c3h2w3k8r1s1p3_bias_leakyrelu", "n1c3h5w5k4r3s3p4u3",
    # Dilation.
    "n1c6h13w11k10r3s3p2d2_bias", "n1c5h15w16k9r3s3p3d3", "n1c7h14w9k5r3s2p1.2u2d2.3_relu",
    # Groups: a few large ones, and many small ones.
    "n2c6h9w8k10r3s3p1g2_bias_relu", "n1c32h8w9k64r3s3p1g4", "n1c64h7w7k64r3s3p1g16_bias",
    "n1c16h9w11k16r3s3p1u2g4_relu", "n1c40h9w15k40r3s3p1g5_bias_relu", "n2c22h6w18k22r3s5p0.2u2g11",
    "n1c34h6w6k34r3s3p1d2g2", "n1c12h5w5k24r1s1g3", "n1c48h5w16k48r3s3p1g3_bias", "n1c112h4w9k112r3s3p1u2g7",
    "n1c12h4w5k12r2s2p5g3_bias", "n1c17h3w9k17r2s3p5.1d8.1g17",
    # Depthwise, with multiplier 1, 2 and 3.
    "n1c33h9w11k33r3s3p1g33_bias_relu6", "n2c32h15w13k32r3s3p1u2g32", "n1c17h12w12k34r5s5p2g17_bias",
    "n1c33h5w20k33r5s3p2.1u1.2g33_bias", "n1c6h9w8k6r5s5p2g6", "n1c20h9w15k20r7s2p6.5u3.1d2.1g20_bias",
    "n1c5h10w9k15r3s3p1d2g5", "n3c64h7w7k64r7s7p3g64_relu", "n1c16h9w9k16r3s3p0.1.2.0u2g16_leakyrelu",
    # Kernels larger than the image before padding, flat and long ones.
    "n1c4h3w4k6r7s7p3_bias", "n1c3h1w20k8r3s5p1.2", "n1c5h20w1k6r5s3p2.1", "n1c6h1w33k10r1s7p0.3_bias_relu",
    "n1c6h33w1k10r7s1p3.0", "n1c8h10w12k8r1s5p0.2", "n1c8h12w10k8r5s1p2.0_bias",
    # 1x1, long rows, one pixel.
    "n1c20h13w11k24r1s1_bias_relu", "n1c64h7w7k33r1s1", "n1c3h3w150k8r3s3p1_bias", "n1c16h1w150k5r1s3p0.1",
    "n2c130h1w1k33r1s1_bias", "n1c40h3w3k20r3s3",
    # The stem of a network on odd sizes.
    "n1c3h31w29k64r7s7p3u2_bias_relu", "n1c3h35w39k16r11s11u4",
    # Batches larger than a tile, of small images.
    "n23c5h4w3k17r3s3p1_bias", "n130c3h3w3k4r3s2p1.2", "n21c4h5w4k6r3s3p1g2", "n18c20h5w4k90r3s3",
    "n2c3h20w21k40r3s3p1",
    # Empty batch; weights packed at each call.
    "n0c5h8w8k6r3s3p1_bias_relu", "n2c9h8w10k20r3s3p1_bias_raw",
    # Fused pooling.
    "n1c5h12w12k8r3s3p1_bias_relu_max2u2", "n2c17h15w13k20r3s3p1_bias_relu_max3u2p1", "n1c4h11w10k33r3s3p1_max3u2ceil",
    "n1c6h14w13k9r3s3p1u2_relu_max2u2ceil", "n1c3h17w17k6r3s3_max2u1d2", "n1c16h9w9k16r1s1_bias_avg3u1p1",
    "n1c8h12w11k12r3s3p1_avg3u2p1nopad", "n1c8h10w9k12r3s3p1_bias_leakyrelu_avg2u2ceil",
    "n1c7h13w13k5r3s3p1_relu6_avg3u2p1ceil", "n3c33h8w8k17r3s3p1_relu_avg8u8", "n1c5h12w11k7r3s3p1_relu_lp2u2n2",
    "n1c5h12w11k7r3s3p1_bias_lp3u2n2ceil", "n1c6h9w9k6r3s3p1_relu_lp2.3u1.2n3", "n1c4h10w10k5r3s3p1_bias_lp2u2n1",
    "n0c3h8w8k4r3s3_relu_max2u2", "n1c8h11w9k8r3s3p1g8_bias_relu6_max2u2", "n1c8h10w10k16r3s3p1g2_max3u3",
    "n1c3h30w29k64r7s7p3u2_bias_relu_max3u2p1",
]]

POOL_PROBLEMS = [parse(text) for text in [
    "n1c1h6w7_max2u2", "n1c3h9w11_max3u2p1", "n2c17h8w8_max2u2_indices", "n1c33h13w12_max3u2p1_indices",
    "n1c64h7w9_max3u1p1", "n1c5h11w10_max3u2ceil", "n1c6h10w11_max2u2ceil_indices", "n3c4h13w9_max3.2u2.1p1.0",
    "n1c5h12w13_max2u1d2_indices", "n1c7h15w14_max3u2p1d3ceil", "n1c3h4w150_max5u1p2", "n1c16h1w20_max1.3u1.2p0.1",
    "n1c40h20w1_max4.1u4.1", "n0c5h8w8_max2u2_indices", "n1c130h5w5_max5u5", "n1c4h7w6_max2u3", "n2c2h5w5_max7u2p3",
    "n1c1h6w7_avg2u2", "n1c3h9w11_avg3u2p1", "n2c17h8w8_avg3u2p1nopad", "n1c33h13w12_avg3u2p1ceil",
    "n1c64h7w9_avg3u1p1", "n1c5h11w10_avg3u2ceil", "n1c6h10w11_avg2u2p1ceilnopad", "n3c4h13w9_avg3.2u2.1p1.0",
    "n1c3h4w150_avg5u1p2", "n1c16h1w20_avg1.3u1.2p0.1nopad", "n0c5h8w8_avg2u2", "n1c130h7w7_avg7u7",
    "n1c4h7w6_avg2u3", "n1c1h7w9_lp2u2n2", "n1c17h9w11_lp3u2n2", "n2c33h10w8_lp3u2n2ceil", "n1c5h12w13_lp2.3u1.2n4",
    "n1c5h9w18_max2u1p1", "n1c3h4w17_avg2u1", "n1c3h5w17_lp2u1n2", "n1c3h5w40_lp2u1n1",
    "n1c8h1w20_lp1.4u1.2n2", "n0c5h8w8_lp2u2n2", "n1c3h7w7_lp7u7n2",
]]
# fmt: on


def rows(problems: list[Problem]) -> list:
    """Every registered algorithm with every problem that it supports, as parameters of a test."""
    return [
        pytest.param(problem, name, id=f"{problem.descriptor}-{name}")
        for problem in problems
        for name in algorithms.names(problem.operation)
        if _supports(problem, name)
    ]


def _supports(problem: Problem, name: str) -> bool:
    try:
        return algorithms.module(problem.operation, name).unsupported(problem) is None
    except ImportError:
        return True  # so that the test itself fails, and says why


def in_all_forms(problems: list[Problem], *, every: int = 4) -> list[Problem]:
    """The problems in both memory formats, and each `every`-th in float64 too."""
    single = [replace(p, memory_format=f) for p in problems for f in FORMATS]
    double = [replace(p, memory_format=f, dtype="float64") for f in FORMATS for p in problems[::every]]
    return single + double


def as_format(array: np.ndarray, memory_format: MemoryFormat) -> np.ndarray:
    """A copy (N, C, H, W) whose memory is ordered as the memory format says."""
    if memory_format == "contiguous":
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def images(problem: Problem, seed: int = 0) -> np.ndarray:
    """Normally distributed input in the problem's memory format."""
    x = np.random.default_rng(seed).standard_normal(problem.in_shape)
    return as_format(x.astype(problem.dtype), problem.memory_format)


def make_arrays(problem: ConvProblem, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Input, weights and bias (or None); the weights are scaled so that results are of order 1."""
    rng = np.random.default_rng(seed + 1)
    weight = rng.standard_normal(problem.weight_shape) / math.sqrt(reduction_length(problem))
    bias = rng.standard_normal(problem.out_channels) if problem.bias else None
    return images(problem, seed), weight.astype(problem.dtype), None if bias is None else bias.astype(problem.dtype)


def reduction_length(problem: ConvProblem) -> int:
    """How many products are summed for one element: C/groups * R * S."""
    return math.prod(problem.weight_shape[1:])


def tolerance(problem: Problem) -> float:
    """Bound on the error of a result of order 1, absolute and relative.

    Each of L additions rounds a partial sum of at most order 1, and the roundings add up like a random
    walk: about 0.2 * eps * sqrt(L); 4 * eps * sqrt(L) leaves room for the largest of many elements. An
    Lp norm of a window adds up to as many errors as the window has elements. A maximum is exact.
    """
    pool = problem.pool
    if isinstance(problem, PoolProblem) and pool.mode == "max":
        return 0.0
    length = reduction_length(problem) if isinstance(problem, ConvProblem) else math.prod(pool.kernel_size)
    window = math.prod(pool.kernel_size) if pool is not None and pool.mode == "lp" else 1
    return 4 * float(np.finfo(problem.dtype).eps) * math.sqrt(length + 1) * window


def assert_close(actual: np.ndarray, expected: np.ndarray, problem: Problem) -> None:
    """Within `tolerance`, with NaN and inf at the same places."""
    bound = tolerance(problem)
    np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound)


def guarded(array: np.ndarray, end: bool = True) -> np.ndarray:
    """A copy with the same strides between two pages of no access; its last byte (or first: `end=False`) touches one.

    Reading or writing there kills the process. Where pages cannot be protected this is a copy.
    """
    turned = (..., *(slice(None, None, -1 if step < 0 else 1) for step in array.strides))
    straight = array[turned]
    extent = sum((n - 1) * s for n, s in zip(straight.shape, straight.strides, strict=True)) + array.itemsize
    extent = extent if array.size else 0
    page = mmap.PAGESIZE
    pages = -(-extent // page) * page
    memory = mmap.mmap(-1, pages + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = page + (pages - extent if end else 0)
    copy = np.ndarray(array.shape, array.dtype, buffer=memory, offset=offset, strides=straight.strides)
    copy[...] = straight
    if GUARDS:
        _forbid(start, page)
        _forbid(start + page + pages, page)
    return copy[turned]


def workspace_without_slack(slab: int, threads: int) -> np.ndarray:
    """As `fastconv.cpu.region.workspace`, but a thread that leaves its slab faults where that is the last one."""
    size = -(-workspace_size(slab, threads) // COUNTER_BYTES) * COUNTER_BYTES
    return guarded(np.full(size, 0xFF, np.uint8))  # NaN, so that nothing relies on zeros


def _forbid(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):
        raise OSError(ctypes.get_errno(), "mprotect failed")


@dataclass(frozen=True)
class Poisoned:
    """An output array of values to be overwritten, and a check that nothing was written around or between them."""

    array: np.ndarray
    check: Callable[[], None]


def poisoned(shape: tuple[int, ...], dtype: str, memory_format: MemoryFormat) -> Poisoned:
    """An (N, C, H, W) window, filled with NaN (integers: their minimum), into a larger array of sentinels.

    There are sentinels between its rows, its images, and its planes or pixels, and before and after it.
    """
    buffer, window = _window(shape, dtype, memory_format, SENTINEL)
    window[...] = np.nan if buffer.dtype.kind == "f" else np.iinfo(buffer.dtype).min
    inside = np.zeros(buffer.shape, bool)
    inside[_INNER] = True

    def check() -> None:
        stray = np.argwhere((buffer != SENTINEL) & ~inside)
        assert not len(stray), f"written outside of the result, at {stray[:4].tolist()} of {buffer.shape}"

    return Poisoned(window, check)


def spread(array: np.ndarray, memory_format: MemoryFormat) -> np.ndarray:
    """A copy of (N, C, H, W) data inside a larger array of NaN, so that no two axes can be merged."""
    _, window = _window(array.shape, array.dtype, memory_format, np.nan)
    window[...] = array
    return window


_INNER = (slice(1, -1), slice(1, -1), slice(1, -1), slice(1, -2))


def _window(shape: tuple, dtype: Any, memory_format: MemoryFormat, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """A larger array filled with `fill`, and the (N, C, H, W) view inside it."""
    n, c, h, w = shape
    if memory_format == "contiguous":
        buffer = np.full((n + 2, c + 2, h + 2, w + 3), fill, dtype)
        return buffer, buffer[_INNER]
    buffer = np.full((n + 2, h + 2, w + 2, c + 3), fill, dtype)
    return buffer, buffer[_INNER].transpose(0, 3, 1, 2)

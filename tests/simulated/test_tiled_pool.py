"""Convolution and pooling in one pass: patches, windows that overlap, and tiles; each kind of pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulator import make, on_gpu, sent
from support import as_format, assert_close, make_arrays, poisoned, spread

from fastconv import algorithms
from fastconv.cuda.patches import patches_of, window_pixels
from fastconv.descriptor import parse
from fastconv.pooling import Pool
from fastconv.reference import convolve

# Images in more than one patch and patches in more than one tile, channels that fill no vector, groups, a whole tile.
TEXTS = [
    "n1c3h9w10k5r3s3p1_{}_bias_relu_max2u2", "n3c4h5w7k8r3s2p1.2u2.1_{}_bias_leakyrelu_max3u2p1ceil",
    "n1c2h12w17k4r1s1_{}_max3u1p1", "n2c4h6w5k6r3s3p1g2_{}_avg3u2p1nopad", "n1c3h9w8k3r2s2_{}_bias_relu6_avg2u3",
    "n1c2h8w9k4r1s1_{}_lp3u2n3", "n1c4h7w7k70r1s1_{}_bias_relu_lp2u2n2", "n1c2h13w9k3r1s1_{}_max3u2p2d2",
    "n1c2h10w9k3r1s1_{}_max8u8", "n0c2h4w4k4r1s1_{}_max2u2", "n1c1h4w5k4r1s1_{}_max1.5u2.1p0.2",
]  # fmt: skip


def check(text: str, form: str, params: dict[str, int] | None = None, scatter: Any = lambda x, form: x) -> Any:
    """Compare the kernel with the oracle; the kernel."""
    problem = parse(text.format(form))
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    kernel = make(problem, "tiled_pool", params)
    given = scatter(as_format(x, problem.memory_format), problem.memory_format)
    kernel.convolve(on_gpu(given), sent(weight), sent(bias), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()
    return kernel


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", TEXTS)
def test_forward(text: str, form: str) -> None:
    kernel = check(text, form)
    assert kernel.workspace_bytes == 0


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("tile", [(128, 128), (128, 64)])
def test_every_tile(tile: tuple[int, int], form: str) -> None:
    text = "n1c3h13w11k72r3s3p1_{}_bias_relu_max3u2p1"
    check(text, form, dict(zip(("pixels", "filters"), tile, strict=True)))


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
def test_arrays_of_any_strides(form: str) -> None:
    check("n2c3h7w6k5r3s3p1_{}_bias_relu_max2u2", form, scatter=spread)


def test_filters_are_stored_four_at_a_time() -> None:
    problem = parse("n1c4h6w6k8r3s3p1_nhwc_relu_max2u2")
    x, weight, _ = make_arrays(problem)
    out = as_format(np.full(problem.out_shape, np.nan, np.float32), "channels_last")
    kernel = make(problem, "tiled_pool")
    kernel.convolve(sent(as_format(x, "channels_last")), sent(weight), None, on_gpu(out))
    assert_close(out, convolve(problem, x, weight, None), problem)
    (launch,) = kernel._launches.values()
    assert launch.values[0].vectors


POOLS = [Pool("max", 2), Pool("max", 3, 2, 1, ceil_mode=True), Pool("avg", (1, 7), (3, 2)), Pool("max", 3, 1, 2, 2)]


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("size", [(9, 7), (56, 56), (13, 224)])
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.descriptor)
def test_patches_hold_every_window_once(pool: Pool, size: tuple[int, int], rows: int) -> None:
    out_height, out_width = pool.output_size(size)
    patches = patches_of(pool, size, 3, rows)
    assert patches.per_tile * patches.height * patches.width <= rows
    assert patches.down * patches.windows_h >= out_height > (patches.down - 1) * patches.windows_h
    assert patches.across * patches.windows_w >= out_width > (patches.across - 1) * patches.windows_w
    assert patches.total == 3 * patches.down * patches.across
    single = patches_of(pool, size, 3, window_pixels(pool))
    assert patches.tiles <= single.tiles == 3 * math.prod((out_height, out_width))


def test_windows_that_do_not_overlap_are_computed_once() -> None:
    patches = patches_of(Pool("max", 2), (56, 56), 32, 128)
    assert patches.tiles * 128 <= 1.05 * 32 * 56 * 56


@pytest.mark.parametrize(("text", "why"), [
    ("n1c4h9w9k4r3s3", "no pooling"), ("n1c4h9w9k4r3s3_f64_max2u2", "float32"), ("n1c4h19w19k4r1s1_max12u2", "window"),
    ("n1c4h9w9k4r1s1p30000_max1u1000", "pixels or more"),
])  # fmt: skip
def test_what_it_does_not_take(text: str, why: str) -> None:
    reason = algorithms.module("conv", "tiled_pool", "cuda").unsupported(parse(text))
    assert reason is not None and why in reason


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[3], "n1c2h4w4k3r1s1_{}_f64_max2u2"])
def test_one_after_the_other(text: str, form: str) -> None:
    problem = parse(text.format(form) + "_cuda")
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, problem.dtype, problem.memory_format)
    kernel = make(problem, "two_pass")
    kernel.convolve(*map(sent, (as_format(x, problem.memory_format), weight, bias)), on_gpu(out.array))
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()
    unpooled = problem.itemsize * problem.batch * problem.out_channels * math.prod(problem.conv_size)
    assert kernel.workspace_bytes >= unpooled

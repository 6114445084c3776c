"""Products of a warpgroup, and convolution by them, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_mma import arrays, check, exact, result, sent, stored
from test_ptx import bf16, launch

from fastconv.cuda import ptx_hopper, wgmma
from fastconv.cuda.ptx import commit, copy_async16, wait
from fastconv.cuda.toolkit import cuda, float32, int32, types
from fastconv.descriptor import parse
from fastconv.reference import convolve


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_lane_gets_its_sums(dtype: str) -> None:
    product = ptx_hopper.wgmma_bf16 if dtype == "bfloat16" else ptx_hopper.wgmma_f16

    def kernel(a, b, out):
        shared, t = cuda.shared.array(0, types.uint16), cuda.threadIdx.x
        sums = cuda.local.array(8, float32)
        for row in range(80):
            if t < 64:  # rows of 128 bytes, whose units are permuted
                place = row * 64 + (t // 8 ^ row % 8) * 8 + t % 8
                shared[place] = a[row * 64 + t] if row < 64 else b[(row - 64) * 64 + t]
        for i in range(8):
            sums[i] = 1
        ptx_hopper.fence_async()
        cuda.syncthreads()
        left, right = ptx_hopper.descriptor(shared, 0), ptx_hopper.descriptor(shared, 4096)
        ptx_hopper.wgmma_fence()
        for i in range(4):
            product(sums, 16, shared, left + 2 * i, right + 2 * i)
        ptx_hopper.wgmma_commit()
        ptx_hopper.wgmma_finish(sums, 8)
        for i in range(8):
            out[t * 8 + i] = sums[i]

    generator = np.random.default_rng(0)
    a, b = (bf16(generator.integers(-8, 9, (rows, 64))).astype(np.float32) for rows in (64, 16))
    out = np.zeros(1024, np.float32)
    launch(kernel, *(stored(m, dtype).view(np.uint16).ravel() for m in (a, b)), out, threads=128, shared=10240)
    expected = 1 + a.astype(np.float64) @ b.T
    for t in range(128):
        for i in range(8):
            row, column = t // 32 * 16 + t % 32 // 4 + (8 if i & 2 else 0), i // 4 * 8 + t % 4 * 2 + (i & 1)
            assert out[t * 8 + i] == expected[row, column]


def test_tf32_ignores_what_it_has_no_bits_for() -> None:
    def kernel(a, b, out):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        sums = cuda.local.array(4, float32)
        for row in range(72):
            if t < 32:
                place = row * 32 + (t // 4 ^ row % 8) * 4 + t % 4
                shared[place] = a[row * 32 + t] if row < 64 else b[(row - 64) * 32 + t]
        for i in range(4):
            sums[i] = 1
        ptx_hopper.fence_async()
        cuda.syncthreads()
        left, right = ptx_hopper.descriptor(shared, 0), ptx_hopper.descriptor(shared, 2048)
        ptx_hopper.wgmma_fence()
        for i in range(4):
            ptx_hopper.wgmma_tf32(sums, 8, shared, left + 2 * i, right + 2 * i)
        ptx_hopper.wgmma_commit()
        ptx_hopper.wgmma_finish(sums, 4)
        for i in range(4):
            out[t * 4 + i] = sums[i]

    generator = np.random.default_rng(0)
    a, b = (generator.integers(-8, 9, (rows, 32)).astype(np.float32) for rows in (64, 8))
    out = np.zeros(512, np.float32)
    launch(kernel, (a * np.float32(1 + 2.0**-12)).ravel(), b.ravel(), out, threads=128, shared=9216)
    expected = 1 + a.astype(np.float64) @ b.T
    for t in range(128):
        for i in range(4):
            row, column = t // 32 * 16 + t % 32 // 4 + (8 if i & 2 else 0), t % 4 * 2 + (i & 1)
            assert out[t * 4 + i] == expected[row, column]


def test_copies_that_are_not_fenced_are_not_multiplied() -> None:
    def kernel(a):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        sums = cuda.local.array(4, float32)
        for i in range(5):
            copy_async16(shared, int32((i * 128 + t) * 4), a, 0, i * 128 + t < 576)
        commit()
        wait(0)
        if a[0] > 0:
            ptx_hopper.fence_async()
        cuda.syncthreads()
        left, right = ptx_hopper.descriptor(shared, 0), ptx_hopper.descriptor(shared, 2048)
        ptx_hopper.wgmma_tf32(sums, 8, shared, left, right)

    launch(kernel, np.ones(4, np.float32), threads=128, shared=10240)
    with pytest.raises(RuntimeError, match="without fence_async"):
        launch(kernel, np.zeros(4, np.float32), threads=128, shared=10240)


CONVOLUTIONS = [
    "n1c64h4w4k8r1s1_bf16_nhwc_bias", "n1c3h5w4k9r3s2p1u2_f16_nchw_relu", "n1c72h1w3k16r1s2p0.1_f16_nhwc",
    # Two blocks of channels, and one of all channels; of TF32, in groups.
    "n1c128h1w3k8r1s2_bf16_nhwc", "n1c96h2w2k8r2s1_bf16_nhwc", "n2c64h2w2k12r1s2g2_tf32_nhwc_bias_relu",
]  # fmt: skip


WIDE = [  # Two tiles of filters with more slices than twice the stages, in groups, and a tile of 256 pixels.
    ("n1c64h2w3k72r3s3p1_bf16_nhwc_bias", {"pixels": 128, "filters": 64, "stages": 4, "bulk": 1}),
    ("n1c64h1w3k140r1s3p0.1g2_f16_nhwc", {"pixels": 128, "filters": 64, "stages": 4, "bulk": 1}),
    ("n1c8h15w18k16r1s2_bf16_nchw_relu", {"pixels": 256, "filters": 128, "stages": 4, "bulk": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "params"), WIDE)
def test_several_tiles(text: str, params: dict[str, int]) -> None:
    problem = parse(f"{text}_cuda")
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    wgmma.make(problem, params, 1).convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)


@pytest.mark.parametrize("bulk", [0, 1])
@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_convolution(text: str, bulk: int) -> None:
    problem = parse(f"{text}_cuda")
    x, weight, bias = arrays(problem)
    assert wgmma.unsupported(problem) is None
    out, target = result(problem, problem.out_shape)
    kernel = wgmma.make(problem, {**wgmma.space(problem)[-1], "bulk": bulk}, 1)
    kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)

"""Products of a warpgroup, and convolution by them, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_mma import arrays, check, exact, result, sent, stored
from test_ptx import bf16, launch

from fastconv.cuda import ptx_hopper, wgmma
from fastconv.cuda.toolkit import cuda, float32, types
from fastconv.descriptor import parse
from fastconv.reference import convolve


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_lane_gets_its_sums(dtype: str) -> None:
    product = ptx_hopper.wgmma_bf16 if dtype == "bfloat16" else ptx_hopper.wgmma_f16

    def kernel(a, b, out):
        shared, t = cuda.shared.array(0, types.uint16), cuda.threadIdx.x
        sums = cuda.local.array(8, float32)
        for row in range(80):
            if t < 32:  # rows of 64 bytes, whose units are permuted
                place = row * 32 + (t // 8 ^ row // 2 % 4) * 8 + t % 8
                shared[place] = a[row * 32 + t] if row < 64 else b[(row - 64) * 32 + t]
        for i in range(8):
            sums[i] = 1
        ptx_hopper.fence_async()
        cuda.syncthreads()
        left, right = ptx_hopper.descriptor(shared, 0), ptx_hopper.descriptor(shared, 2048)
        ptx_hopper.wgmma_fence()
        product(sums, 16, shared, left, right)
        product(sums, 16, shared, left + 2, right + 2)
        ptx_hopper.wgmma_commit()
        ptx_hopper.wgmma_finish(sums, 8)
        for i in range(8):
            out[t * 8 + i] = sums[i]

    generator = np.random.default_rng(0)
    a, b = (bf16(generator.integers(-8, 9, (rows, 32))).astype(np.float32) for rows in (64, 16))
    out = np.zeros(1024, np.float32)
    launch(kernel, *(stored(m, dtype).view(np.uint16).ravel() for m in (a, b)), out, threads=128, shared=5120)
    expected = 1 + a.astype(np.float64) @ b.T
    for t in range(128):
        for i in range(8):
            row, column = t // 32 * 16 + t % 32 // 4 + (8 if i & 2 else 0), i // 4 * 8 + t % 4 * 2 + (i & 1)
            assert out[t * 8 + i] == expected[row, column]


@pytest.mark.parametrize(
    "text", ["n1c64h4w4k8r1s1_bf16_bias", "n1c8h5w5k16r3s3p1_bf16_bias_relu", "n1c72h3w3k72r2s1p1_f16_nhwc"]
)
def test_convolution(text: str) -> None:
    problem = parse(f"{text.removesuffix('_nhwc')}_nhwc_cuda")
    x, weight, bias = arrays(problem)
    assert wgmma.unsupported(problem) is None
    out, target = result(problem, problem.out_shape)
    kernel = wgmma.make(problem, wgmma.space(problem)[-1], 1)
    kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)

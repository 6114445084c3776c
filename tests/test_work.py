"""How work is cut: what is counted is what the jobs do, and many cores would all be kept busy."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
from support import FORMATS, images, make_arrays

from fastconv import algorithms, networks
from fastconv.arrays import empty
from fastconv.cpu.kernel import ConvKernel
from fastconv.cpu.work import Work, efficiency, split_of_work
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, PoolProblem, Problem

# Outputs per job are counted below as they change, so none may be written by two jobs.
COUNTED = [
    ("n2c16h9w11k40r3s3p1_f32_nhwc", "direct"), ("n9c16h3w3k40r3s3p1_f32_nhwc", "direct"),
    ("n1c8h12w9k48r3s3p1g2_f32_nchw", "direct"), ("n1c16h14w14k70r3s3p1_f32_nhwc", "im2col"),
    ("n2c16h13w14k24r3s3p1u2_f32_nchw", "im2col"), ("n1c16h13w14k70r3s3p1_f32_nhwc", "tiled"),
    ("n1c6h21w14k20r3s3p1_f32_nchw_max3u2p1", "tiled"), ("n1c64h14w13k64r3s3p1g64_f32_nhwc", "depthwise"),
    ("n2c64h14w13k64r3s3p1g64_f32_nhwc", "sliding"), ("n2c70h13w11_max3u2p1_f32_nhwc", "direct"),
    ("n2c7h13w11_avg2u2_f32_nchw", "direct"),
]  # fmt: skip


def kernel_for(problem: Problem, name: str | None, threads: int):
    candidate = algorithms.candidates(problem, name)[0]
    code = algorithms.module(problem.operation, candidate.algorithm)
    return code.make(problem, dict(candidate.params), threads)


def outputs_of_jobs(problem: Problem, kernel) -> list[int]:
    """Run one job after the other, and count the elements that it writes into an output of NaN."""
    out = empty(problem.out_shape, problem.dtype, problem.memory_format)
    out[...] = np.nan
    x, geometry, counts, written = images(problem), kernel.dense_geometry(), [], 0
    second = kernel.pack(*make_arrays(problem)[1:]) if isinstance(kernel, ConvKernel) else (np.zeros(64), np.zeros(64))
    geometry.link()
    scratch = np.zeros(geometry.slab + 64, np.uint8)
    addresses = [array.ctypes.data for array in (x, *second, out, scratch)]
    job = as_function(kernel.function.address)
    for index in range(geometry.jobs):
        job(*addresses, geometry.record.ctypes.data, index)
        counts.append(int(np.isfinite(out).sum()) - written)
        written += counts[-1]
    return counts


def as_function(address: int):
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(address)


@pytest.mark.parametrize("threads", [1, 3, 32])
@pytest.mark.parametrize(("descriptor", "name"), COUNTED, ids=lambda value: str(value))
def test_jobs_write_as_much_as_is_counted(descriptor: str, name: str, threads: int) -> None:
    problem = parse(descriptor)
    kernel = kernel_for(problem, name, threads)
    (work,) = split_of_work(kernel)
    assert work.results.tolist() == outputs_of_jobs(problem, kernel)
    assert len(work.operations) == len(work.results)
    if isinstance(problem, PoolProblem) or problem.pool:
        return
    inside = int(work.operations.sum())
    assert 0 < inside <= problem.flops // 2
    if name in ("im2col", "tiled", "sliding"):  # which multiply by the padding too
        assert inside == problem.flops // 2


@pytest.mark.parametrize("name", ["direct", "im2col", "tiled", "depthwise"])
def test_the_work_of_gradients_adds_up(name: str) -> None:
    groups = 64 if name == "depthwise" else 1
    for direction in ("backward_weight", "backward_input"):
        problem = parse(f"n4c64h14w12k64r3s3p1g{groups}_f32_nhwc").without_epilogue(direction)
        works = split_of_work(kernel_for(problem, name, 8))
        done = sum(int(work.operations.sum()) for work in works)
        assert 0.8 * problem.flops / 2 < done <= problem.flops / 2
        copies = sum(int(work.results.sum()) for work in works)
        assert copies % np.prod(problem.in_shape if direction == "backward_input" else problem.weight_shape) == 0


def test_the_work_of_two_passes_adds_up(small_l2) -> None:
    problem = parse("n3c64h200w200k64r3s3p1_f32_nhwc_max2")  # one image after the other
    works = split_of_work(kernel_for(problem, "two_pass", 2))
    assert len(works) == 6
    convolutions, pooled = works[::2], works[1::2]
    assert sum(int(work.operations.sum()) for work in convolutions) <= problem.flops // 2
    assert sum(int(work.results.sum()) for work in convolutions) == 3 * 64 * 200 * 200
    assert sum(int(work.results.sum()) for work in pooled) == np.prod(problem.out_shape)


def test_threads_take_over_jobs_of_others() -> None:
    uneven = Work(np.ones(8, np.int64), np.array([8, 1, 1, 1, 1, 1, 1, 1]))
    assert uneven.busiest(1) == 15
    assert uneven.busiest(2) == 8  # the second thread does all the others
    assert uneven.busiest(100) == 8
    assert efficiency([uneven], 2) == 15 / 16
    assert Work(np.ones(9, np.int64), np.ones(9, np.int64)).busiest(8) == 2


# What a thread's share must last, in nanoseconds, for a cut to matter.
WORTH_NS = 15_000
# The most that the last thread may take, and the geometric mean, as a multiple of an equal share. What remains:
# rows of a pooled map are the finest bands of AlexNet; in the gradient of a strided 1x1 convolution's input many
# lines have no taps; sums for gradients of weights are not cut without end, for the parts are to be added up.
MOST = {
    "forward": {8: (1.35, 1.1), 32: (1.35, 1.15), 96: (2.0, 1.5)},
    "backward_input": {8: (1.25, 1.1), 32: (1.55, 1.1), 96: (1.6, 1.15)},
    "backward_weight": {8: (1.6, 1.15), 32: (4.1, 1.5), 96: (8.2, 2.4)},
}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("direction", "batch"), [("forward", 1), ("backward_input", 8), ("backward_weight", 8)])
@pytest.mark.parametrize("threads", [8, 32, 96])
def test_no_core_is_idle(direction: str, batch: int, memory_format, threads: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: threads)  # which is how weights' gradients are cut
    shares, (most, mean) = [], MOST[direction][threads]
    for network in networks.names():
        for layer in networks.problems(network, batch, memory_format=memory_format):
            problem: ConvProblem = layer if direction == "forward" else layer.without_epilogue(direction)
            candidate = algorithms.candidates(problem)[0]
            if algorithms.predicted_ns(problem, candidate) < threads * WORTH_NS:
                continue
            works = split_of_work(kernel_for(problem, candidate.algorithm, threads))
            shares.append(1 / efficiency(works, threads))
            assert shares[-1] <= most, (problem.descriptor, candidate)
            if threads < 96 and problem.pool is None and direction != "backward_weight":
                assert all(len(work.operations) >= threads for work in works), (problem.descriptor, candidate)
    assert np.exp(np.mean(np.log(shares))) <= mean

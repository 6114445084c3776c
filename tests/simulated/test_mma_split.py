"""Convolution on tensor cores whose terms are split, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulator import make, on_gpu
from support import poisoned
from test_mma import arrays, check, exact, result, sent

from fastconv import algorithms
from fastconv.cuda import mma_split, wgmma_split
from fastconv.cuda.mma_split import MmaSplit
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference import convolve

MMA, WGMMA = {"pixels": 64, "filters": 64}, {"pixels": 128, "filters": 64, "stages": 4}
# Splits that begin within a tap, a block of channels, or behind a row of taps; the last one shorter; one slice each.
PROBLEMS = [
    ("n1c64h4w5k8r3s3p1_bf16_nhwc_bias_relu", 4), ("n2c24h3w4k12r2s3p1_tf32_nhwc_bias", 3),
    ("n1c40h4w5k24r3s4p1u2.1g2_f16_leakyrelu", 2), ("n1c3h9w6k4r9s7p4.3_bf16_nhwc", 2), ("n0c64h3w3k8r3s3_f16", 2),
]  # fmt: skip


def run(problem: ConvProblem, name: str, params: dict[str, int]) -> None:
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    kernel = make(problem, name, params)
    kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)


@pytest.mark.parametrize(("text", "splits"), PROBLEMS)
def test_shares_of_the_terms_add_up(text: str, splits: int) -> None:
    problem = parse(f"{text}_cuda")
    kernel = MmaSplit(problem, {**MMA, "splits": splits})
    slices, share = kernel.packer.slices, -(-kernel.packer.slices // splits)
    assert (splits - 1) * share < slices  # none is empty
    run(problem, "mma_split", {**MMA, "splits": splits})


@pytest.mark.parametrize("bulk", [0, 1])
@pytest.mark.parametrize(
    ("text", "splits"),
    [PROBLEMS[0], ("n2c88h3w5k24r3s4u2g2_f16_leakyrelu", 2), ("n1c96h2w3k12r3s1p1_tf32_nhwc_bias", 5)],
)
def test_so_they_do_on_hopper_gpus(text: str, splits: int, bulk: int) -> None:
    run(parse(f"{text}_cuda"), "wgmma_split", {**WGMMA, "bulk": bulk, "splits": splits})


def test_arrays_of_any_strides() -> None:
    problem = parse("n2c32h3w4k12r3s3p1_tf32_nhwc_bias_relu_cuda")
    x, weight, bias = arrays(problem)
    for form in ("channels_last", "contiguous"):
        out = poisoned(problem.out_shape, "float32", form)
        target = replace(on_gpu(out.array), dtype="float32")
        make(problem, "mma_split", {**MMA, "splits": 2}).convolve(
            *(sent(a, problem.dtype) for a in (x, weight, bias)), target
        )
        check(np.ascontiguousarray(out.array), convolve(exact(problem), x, weight, bias), problem)
        out.check()


@pytest.mark.parametrize("module", [mma_split, wgmma_split])
def test_terms_are_split_where_tiles_are_few(module: object) -> None:
    few = parse("n32c512h7w7k512r3s3p1_bf16_nhwc_cuda")
    found = module.space(few)
    assert {params["splits"] for params in found} >= {2} and module.unsupported(few) is None
    for params in found:
        assert module.cost(few, params) > 0
    for text in ("n32c64h56w56k64r3s3p1_bf16", "n1c8h7w7k8r1s1_bf16", "n32c512h7w7k510r3s3p1_bf16"):
        assert module.unsupported(parse(f"{text}_nhwc_cuda"))


def test_a_single_image_of_many_channels_is_split() -> None:
    problem = parse("n1c512h7w7k512r3s3p1_bf16_nhwc_cuda")
    best = {name: min(cost(problem, name)) for name in ("mma", "mma_split", "wgmma", "wgmma_split")}
    assert best["mma_split"] < best["mma"] / 2 and best["wgmma_split"] < best["wgmma"] / 1.5


def cost(problem: ConvProblem, name: str) -> list[float]:
    code = algorithms.module("conv", name, "cuda")
    return [code.cost(problem, params) for params in code.space(problem)]

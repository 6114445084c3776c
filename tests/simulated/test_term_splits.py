"""Convolution whose terms are split over blocks, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import simulator
from simulator import make, on_gpu
from support import assert_close, make_arrays, poisoned
from test_mma import ROUNDED, arrays, check, exact, result, sent
from test_mma_gradients import given

from fastconv import algorithms
from fastconv.cuda import input_phases, tiled_split
from fastconv.cuda.kernel import Launch
from fastconv.cuda.mma_split import by_mma, by_wgmma
from fastconv.cuda.product_cost import LAUNCH_NS
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.reference import convolve
from fastconv.reference_backward import conv_input

MMA, WGMMA = {"pixels": 64, "filters": 64}, {"pixels": 128, "filters": 64, "stages": 4}
# Splits that begin within a tap, a block of channels, or behind a row of taps; the last one shorter; one slice each.
PROBLEMS = [
    ("n1c64h4w5k8r3s3p1_bf16_nhwc_bias_relu", 4), ("n2c24h3w4k12r2s3p1_tf32_nhwc_bias", 3),
    ("n1c40h4w5k24r3s4p1u2.1g2_f16_leakyrelu", 2), ("n1c3h9w6k4r9s7p4.3_bf16_nhwc", 2), ("n0c64h3w3k8r3s3_f16", 2),
]  # fmt: skip


def assert_right(problem: ConvProblem, name: str, params: dict[str, int]) -> None:
    """Compare a kernel with the oracle."""
    x, weight, bias = arrays(problem)
    out, target = result(problem, problem.out_shape)
    kernel = make(problem, name, params)
    kernel.convolve(*(sent(a, problem.dtype) for a in (x, weight, bias)), target)
    check(out, convolve(exact(problem), x, weight, bias), problem)


@pytest.mark.parametrize(("text", "splits"), PROBLEMS)
def test_shares_of_the_terms_add_up(text: str, splits: int) -> None:
    problem = parse(f"{text}_cuda")
    assert by_mma.make(problem, {**MMA, "splits": splits}, 1).splits == splits  # none is empty
    assert_right(problem, "mma_split", {**MMA, "splits": splits})


@pytest.mark.parametrize("form", ["nchw", "nhwc"])
@pytest.mark.parametrize(("text", "splits"), [("n1c32h4w5k8r3s3p1_{}_bias_relu", 5), ("n2c64h3w4k24r3s3u2.1g2_{}", 2)])
def test_so_they_do_without_tensor_cores(text: str, splits: int, form: str) -> None:
    problem = parse(f"{text.format(form)}_cuda")
    x, weight, bias = make_arrays(problem)
    out = poisoned(problem.out_shape, "float32", problem.memory_format)
    kernel = make(problem, "tiled_split", {**tiled_split.space(problem)[0], "splits": splits})
    kernel.convolve(*(simulator.sent(a) for a in (x, weight, bias)), on_gpu(out.array))
    assert kernel.splits == splits
    assert_close(out.array, convolve(problem, x, weight, bias), problem)
    out.check()


@pytest.mark.parametrize("bulk", [0, 1])
@pytest.mark.parametrize(
    ("text", "splits"),
    [PROBLEMS[0], ("n1c88h3w4k24r3s4u2g2_f16_leakyrelu", 2), ("n1c96h2w3k12r3s1p1_tf32_nhwc_bias", 5)],
)
def test_so_they_do_on_hopper_gpus(text: str, splits: int, bulk: int) -> None:
    assert_right(parse(f"{text}_cuda"), "wgmma_split", {**WGMMA, "bulk": bulk, "splits": splits})


# Two phases that are split, one; one that is, of a pair; and one of four, the others without taps.
INPUTS = [("n1c12h3w4k96r3s3p1u1.2_bf16_nhwc", "mma_split"), ("n2c8h3w2k64r3s3p1_tf32_nchw", "wgmma_split"),
          ("n1c8h3w4k48r3s3p1u1.2_f32_nhwc", "tiled_split"), ("n1c8h3w4k256r1s1u2_bf16_nhwc", "mma_split")]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), INPUTS)
def test_gradients_of_inputs(text: str, name: str) -> None:
    problem = replace(parse(f"{text}_dgrad_cuda"), bias=True)
    _, weight, grad = given(problem)
    bias = ROUNDED["bfloat16"](np.random.default_rng(2).standard_normal(problem.in_channels)).astype(np.float32)
    out, target = result(problem, problem.in_shape)
    kernel = make(problem, name)
    first = kernel.kernels[0][1]
    assert first.splits > 1 and kernel.workspace_bytes > 4 * first.splits * out.size // 4  # of a phase
    kernel.convolve(*(sent(a, problem.dtype) for a in (grad, weight, bias)), target)
    terms = replace(problem, in_channels=problem.out_channels)  # as many as are summed
    check(out, conv_input(exact(problem), grad, weight) + bias[:, None, None], terms)


def test_phases_without_taps_cost_a_launch() -> None:
    problem = parse("n1c1024h14w14k2048r1s1u2_bf16_nhwc_dgrad_cuda")
    (_, part), *_ = input_phases.by_wgmma._parts(problem)
    params = input_phases.by_wgmma.space(problem)[0]
    total = input_phases.by_wgmma.cost(problem, params)
    assert total == pytest.approx(input_phases.by_wgmma.forward.cost(part, params) + 3 * LAUNCH_NS)


def test_kernels_of_a_call_are_on_the_stream_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[int] = []
    monkeypatch.setattr(Launch, "__call__", lambda self, arrays, stream=0: streams.append(stream))
    for text, name in [("n1c64h4w5k8r3s3p1_bf16_nhwc", "mma_split"), ("n1c32h3w4k8r3s3p1_f32_nchw", "tiled_split"),
                       ("n1c3h7w9k8r3s3p1_bf16_nhwc", "mma")]:  # fmt: skip
        problem = parse(f"{text}_cuda")
        x, weight, _ = arrays(problem)
        _, target = result(problem, problem.out_shape)
        x, weight, target = (
            replace(a, stream=7) for a in (sent(x, problem.dtype), sent(weight, problem.dtype), target)
        )
        make(problem, name).convolve(x, weight, None, target)
    assert len(streams) == 9 and set(streams) == {7}


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


@pytest.mark.parametrize(("module", "kind"), [(by_mma, "bf16"), (by_wgmma, "bf16"), (tiled_split, "f32")])
def test_terms_are_split_where_tiles_are_few(module: object, kind: str) -> None:
    few = parse(f"n8c512h7w7k512r3s3p1_{kind}_nhwc_cuda")
    found = module.space(few)
    assert {params["splits"] for params in found} > {2} and module.unsupported(few) is None
    assert all(module.cost(few, params) > 0 for params in found)
    for text in ("n32c64h56w56k64r3s3p1", "n1c8h7w7k8r1s1", "n8c512h7w7k510r3s3p1"):
        assert module.unsupported(parse(f"{text}_{kind}_nhwc_cuda"))


@pytest.mark.parametrize(("name", "kind"), [("mma", "bf16"), ("wgmma", "bf16"), ("tiled", "f32")])
def test_a_single_image_of_many_channels_is_split(name: str, kind: str) -> None:
    problem = parse(f"n1c512h7w7k512r3s3p1_{kind}_nhwc_cuda")
    whole, split = (min(costs(problem, each)) for each in (name, f"{name}_split"))
    assert split < whole / 1.5


def costs(problem: ConvProblem, name: str) -> list[float]:
    """Predicted times of an algorithm."""
    code = algorithms.module("conv", name, "cuda")
    return [code.cost(problem, params) for params in code.space(problem)]

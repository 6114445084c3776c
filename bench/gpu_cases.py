"""Problems with random arrays on a GPU, what PyTorch makes of them, and how far fastconv is from float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch

import fastconv
from fastconv import algorithms, networks
from fastconv.cuda.arrays import as_device_array
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

DIRECTIONS = ("forward", "backward_input", "backward_weight")
ODD = [
    "n2c17h31w29k33r3s3p1_bias_relu", "n1c3h37w41k20r7s7p3u2_bias", "n2c6h15w13k10r3s2p0.1.2.3u2.1d1.2g2_relu6",
    "n3c5h9w7k17r1s1_leakyrelu", "n1c64h7w7k64r3s3p2d2g64", "n2c40h13w11k40r5s5p2g5", "n1c130h9w11k200r3s3p1",
    "n33c3h5w5k8r3s3", "n2c64h14w14k64r3s3p1g16", "n2c24h33w17k24r5s5p2u2g24_bias_relu6", "n1c12h9w9k36r3s3p1g12",
    "n1c64h57w55k64r3s3p1u3d3_bias", "n2c8h11w10k72r2s5p1.2u3_bias", "n1c48h6w6k40r3s3p1_bias_relu_max2u2",
    "n2c16h17w15k24r3s3p1_relu_max3u2p1", "n1c16h13w13k20r3s3p1_bias_avg3u2p1ceil", "n1c8h12w10k9r3s3p1_lp2u2n2",
]  # fmt: skip
KINDS = ("f32", "tf32", "bf16", "f16")  # words of descriptors: what is multiplied
LIMIT = {"f32": 1e-5, "f64": 1e-12, "tf32": 1e-3, "bf16": 1e-2, "f16": 2e-3}


def kind_of(problem: ConvProblem) -> str:
    """Which of `LIMIT` holds for a problem."""
    short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}[problem.dtype]
    return "tf32" if problem.precision == "tf32" else short


def in_kind(problem: ConvProblem, kind: str, direction: str = "forward") -> ConvProblem:
    """A problem on the GPU, in a direction, with elements or a precision."""
    turned = problem if direction == "forward" else problem.without_epilogue(direction)
    words = {"f32": {}, "f64": {"dtype": "float64"}, "tf32": {"precision": "tf32"}, "bf16": {"dtype": "bfloat16"},
             "f16": {"dtype": "float16"}}[kind]  # fmt: skip
    return replace(turned, device="cuda", **words)


def to_check(few: bool = False) -> Iterator[ConvProblem]:
    """Odd problems in both memory formats and some layers of networks, in every direction and kind."""
    odd = ODD[::4] if few else ODD
    layers = [parse(f"{text}_{form}") for text in odd for form in ("nchw", "nhwc")]
    if not few:
        layers += [*networks.problems("resnet50", 2)[::6], *networks.problems("mobilenet_v2", 2)[::9]]
    for problem in layers:
        for kind in (*KINDS, "f64"):
            for direction in DIRECTIONS if problem.pool is None else DIRECTIONS[:1]:
                yield in_kind(problem, kind, direction)


class Case:
    """A problem with random arrays on the GPU, and what PyTorch makes of them."""

    def __init__(self, problem: ConvProblem) -> None:
        p = self.problem = problem
        form = torch.channels_last if p.memory_format == "channels_last" else torch.contiguous_format
        real = getattr(torch, p.dtype)

        def random(shape: tuple[int, ...], form: Any = form) -> Any:
            return torch.randn(shape, device="cuda", dtype=real).contiguous(memory_format=form)

        self.x, self.grad = random(p.in_shape), random(p.out_shape)
        self.weight = random(p.weight_shape, torch.contiguous_format) / math.sqrt(math.prod(p.weight_shape[1:]))
        self.bias = torch.randn(p.out_channels, device="cuda", dtype=real) if p.bias else None
        shape = {"forward": p.out_shape, "backward_input": p.in_shape, "backward_weight": p.weight_shape}[p.direction]
        out_form = torch.contiguous_format if p.direction == "backward_weight" else form
        self.out = torch.full(shape, math.nan, device="cuda", dtype=real).contiguous(memory_format=out_form)

    def call(self, algorithm: str, params: dict[str, int]) -> Callable[[], None]:
        """What runs a candidate of fastconv."""
        kernel = algorithms.module_of(self.problem, algorithm).make(self.problem, params, 1)
        x, grad, weight, out = (as_device_array(a, "array") for a in (self.x, self.grad, self.weight, self.out))
        bias = None if self.bias is None else as_device_array(self.bias, "bias")
        if self.problem.direction == "forward":
            packed = kernel.pack(weight, bias)
            return lambda: kernel.run(x, packed, out)
        if self.problem.direction == "backward_input":
            return lambda: kernel.convolve(grad, weight, None, out)
        return lambda: kernel.run(x, grad, out)

    @cached_property
    def exact(self) -> Any:
        """The result in float64."""
        return self.by_torch(torch.float64)

    def by_torch(self, real: Any = None) -> Any:
        """PyTorch's result, computed in another type if one is given; for the time of a call use `None`."""
        p, (x, w, dy, b) = self.problem, (self.x, self.weight, self.grad, self.bias)
        if real is not None:
            x, w, dy, b = x.to(real), w.to(real), dy.to(real), None if b is None else b.to(real)
        (top, bottom), (left, right) = p.padding
        padding = [top, left] if (top, left) == (bottom, right) else [0, 0]
        if padding == [0, 0] and p.padding != ((0, 0), (0, 0)):
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
        if p.direction == "forward":
            result = torch.nn.functional.conv2d(x, w, b, p.stride, padding, p.dilation, p.groups)
            return pooled(_activated(result, p.activation), p.pool)
        mask = [p.direction == "backward_input", p.direction == "backward_weight", False]
        options = (list(p.stride), padding, list(p.dilation), False, [0, 0], p.groups, mask)
        found = torch.ops.aten.convolution_backward(dy, x, w, None, *options)
        if p.direction == "backward_weight":
            return found[1]
        rows, columns = p.in_size
        first_row, first_column = (top, left) if padding == [0, 0] else (0, 0)
        return found[0][:, :, first_row : first_row + rows, first_column : first_column + columns]


def _activated(result: Any, activation: str | None) -> Any:
    functional = torch.nn.functional
    return result if activation is None else getattr(functional, activation)(result)


def pooled(result: Any, pool: Any) -> Any:
    """A fused pooling's part of PyTorch's result."""
    if pool is None:
        return result
    functional, size = torch.nn.functional, pool.kernel_size
    if pool.mode == "max":
        return functional.max_pool2d(result, size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    if pool.mode == "avg":
        return functional.avg_pool2d(result, size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad)
    return functional.lp_pool2d(result, pool.norm_type, size, pool.stride, pool.ceil_mode)


def started(call: Callable[[], None]) -> list[Kernel]:
    """The kernels that a call starts."""
    found, start = [], Launch.__call__

    def remember(launch: Launch, *arguments: Any) -> None:
        found.append(launch.kernel)
        start(launch, *arguments)

    with patch.object(Launch, "__call__", remember):
        call()
    return found


def error(case: Case, algorithm: str, params: dict[str, int]) -> float:
    """Relative error of a candidate; NaN if a part of the result was not written."""
    case.out.fill_(math.nan)
    case.call(algorithm, params)()
    torch.cuda.synchronize()
    return float(torch.linalg.norm(case.out.double() - case.exact) / torch.linalg.norm(case.exact))


def check(few: bool = False) -> list[dict[str, Any]]:
    """A row for every candidate of every problem to check."""
    rows = []
    for problem in to_check(few):
        case = Case(problem)
        for name in algorithms.supporting(problem):
            for params in algorithms.module_of(problem, name).space(problem):
                rows.append(_row(problem.descriptor, f"{name} {params}", error(case, name, params), kind_of(problem)))
    return rows + check_others()


def _row(problem: str, what: str, error: float, kind: str) -> dict[str, Any]:
    good = error <= LIMIT[kind]
    print(f"{'ok  ' if good else 'WRONG'} {error:.1e}  {problem}  {what}", flush=True)
    return {"problem": problem, "what": what, "error": error, "good": good}


def check_others() -> list[dict[str, Any]]:
    """Pooling, its gradients, and a network that trains, called as users do."""
    functional, rows = torch.nn.functional, []
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn((3, 20, 31, 27), device="cuda").contiguous(memory_format=form)
        pairs = {
            "max_pool2d": (fastconv.max_pool2d(x, 3, 2, 1), functional.max_pool2d(x.double(), 3, 2, 1)),
            "avg_pool2d": (fastconv.avg_pool2d(x, 3, 2, 1), functional.avg_pool2d(x.double(), 3, 2, 1)),
            "lp_pool2d": (fastconv.lp_pool2d(x, 2.0, 2), functional.lp_pool2d(x.double(), 2.0, 2)),
        }
        for name, (found, exact) in pairs.items():
            wrong = float(torch.linalg.norm(found.double() - exact) / torch.linalg.norm(exact))
            rows.append(_row(f"{tuple(x.shape)} {form}", name, wrong, "f32"))
    return rows

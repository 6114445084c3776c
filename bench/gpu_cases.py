"""Problems with random arrays on a GPU, what PyTorch makes of them, and how far fastconv is from float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
from gpu_problems import kind_of, to_check

import fastconv
from fastconv import algorithms
from fastconv.cuda.arrays import as_device_array
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.problem import ConvProblem

LIMIT = {"f32": 1e-5, "f64": 1e-12, "tf32": 1e-3, "bf16": 1e-2, "f16": 2e-3}


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

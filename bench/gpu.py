"""Check every kernel for GPUs on a GPU, then measure them beside cuDNN: one command.

    python bench/gpu.py --json gpu.json --markdown docs/gpu.md

Needs PyTorch with CUDA and the extra ``cuda``. Errors are relative, norm(result - exact) / norm(exact), against float64
on the same GPU; inputs are fresh and random, results poisoned. Times are medians of CUDA events over calls that take
turns, with inputs that change so that caches do not keep them; cuDNN is PyTorch's, channels-last, its benchmark mode on
and TF32 off. Nothing of this has run yet: no GPU was at hand when it was written.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch

from fastconv import algorithms, networks
from fastconv.cuda.arrays import as_device_array
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

DIRECTIONS = ("forward", "backward_input", "backward_weight")
ODD = [
    "n2c17h31w29k33r3s3p1_bias_relu", "n1c3h37w41k20r7s7p3u2_bias", "n2c6h15w13k10r3s2p0.1.2.3u2.1d1.2g2_relu6",
    "n3c5h9w7k17r1s1_leakyrelu", "n1c64h7w7k64r3s3p2d2g64", "n2c40h13w11k40r5s5p2g5", "n1c130h9w11k200r3s3p1",
    "n33c3h5w5k8r3s3",
]  # fmt: skip
LIMIT = {"float32": 1e-5, "float64": 1e-12}
SETS, CALLS, ROUNDS = 4, 5, 15  # inputs that change, calls of a sample, samples


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images of the measured layers")
    parser.add_argument("--check-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    return parser.parse_args()


def to_check() -> Iterator[ConvProblem]:
    """Odd problems in both memory formats and two layers of a network, in every direction."""
    layers = [*networks.problems("resnet50", 2)[::9], *(parse(f"{t}_{form}") for t in ODD for form in ("nchw", "nhwc"))]
    for problem in layers:
        for direction in DIRECTIONS:
            turned = problem if direction == "forward" else problem.without_epilogue(direction)
            yield replace(turned, device="cuda")


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
            return _activated(result, p.activation)
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


def error(case: Case, algorithm: str, params: dict[str, int]) -> float:
    """Relative error of a candidate; NaN if a part of the result was not written."""
    case.out.fill_(math.nan)
    case.call(algorithm, params)()
    torch.cuda.synchronize()
    exact = case.by_torch(torch.float64)
    return float(torch.linalg.norm(case.out.double() - exact) / torch.linalg.norm(exact))


def check() -> list[dict[str, Any]]:
    """A row for every candidate of every problem to check."""
    rows = []
    for problem in to_check():
        case = Case(problem)
        for name in algorithms.supporting(problem):
            for params in algorithms.module_of(problem, name).space(problem):
                found = error(case, name, params)
                good = found <= LIMIT[problem.dtype]
                rows.append({"problem": problem.descriptor, "algorithm": name, "params": params, "error": found})
                print(f"{'ok  ' if good else 'WRONG'} {found:.1e}  {problem.descriptor}  {name} {params}", flush=True)
                rows[-1]["good"] = good
    return rows


def times(calls: dict[str, list[Callable[[], Any]]]) -> dict[str, float]:
    """Median microseconds of a call of each; every call comes once for each set of inputs, and they take turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for sets in calls.values():
        for call in sets * 3:  # compiles, chooses, warms up
            call()
    for _ in range(ROUNDS):
        for name, sets in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for i in range(CALLS):
                sets[i % len(sets)]()
            end.record()
            end.synchronize()
            samples[name].append(1e3 * start.elapsed_time(end) / CALLS)
    return {name: median(found) for name, found in samples.items()}


def measure(batch: int) -> list[dict[str, Any]]:
    """A row for each convolution of ResNet-50 in each direction: the best candidate beside cuDNN."""
    rows = []
    for layer in networks.problems("resnet50", batch):
        for direction in DIRECTIONS:
            problem = replace(layer if direction == "forward" else layer.without_epilogue(direction), device="cuda")
            cases = [Case(problem) for _ in range(SETS)]
            calls: dict[str, list[Callable[[], Any]]] = {"cuDNN": [case.by_torch for case in cases]}
            for candidate in algorithms.candidates(problem):
                params = dict(candidate.params)
                calls[str(candidate)] = [case.call(candidate.algorithm, params) for case in cases]
            took = times(calls)
            best = min((name for name in took if name != "cuDNN"), key=lambda name: took[name])
            ratio, rate = took["cuDNN"] / took[best], problem.flops / took[best] / 1e6
            print(f"{ratio:5.2f} of cuDNN, {rate:6.1f} TFLOP/s  {problem.descriptor}  {best}", flush=True)
            rows.append(
                {"problem": problem.descriptor, "direction": direction, "us": took, "best": best, "ratio": ratio}
            )
    return rows


def markdown(figures: dict[str, Any]) -> str:
    """The tables of a run."""
    wrong = [row for row in figures["checks"] if not row["good"]]
    lines = ["# Kernels for GPUs", "", figures["where"], ""]
    lines += [f"{len(figures['checks'])} candidates compared with float64, {len(wrong)} wrong.", ""]
    for direction in DIRECTIONS:
        rows = [row for row in figures["times"] if row["direction"] == direction]
        if rows:
            mean = geometric_mean(row["ratio"] for row in rows)
            lines += [f"## {direction}", "", f"{mean:.2f} times as fast as cuDNN by geometric mean.", ""]
            lines += ["| problem | fastconv runs | us | cuDNN, us | ratio |", "|---|---|---:|---:|---:|"]
            for row in rows:
                ours, cudnn = row["us"][row["best"]], row["us"]["cuDNN"]
                lines += [f"| {row['problem']} | {row['best']} | {ours:.1f} | {cudnn:.1f} | {row['ratio']:.2f} |"]
            lines += [""]
    return "\n".join(lines)


def main() -> None:
    """Check, measure, write."""
    options = arguments()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    figures: dict[str, Any] = {"where": where, "checks": check(), "times": []}
    if not options.check_only:
        figures["times"] = measure(options.batch)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(figures))
    raise SystemExit(any(not row["good"] for row in figures["checks"]))


if __name__ == "__main__":
    main()

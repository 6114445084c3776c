"""Check every kernel for GPUs on a GPU, then measure them beside cuDNN: one command.

    python bench/gpu.py --json gpu.json --markdown docs/gpu.md README.md
    python bench/gpu.py --render bench/results/*.json --markdown docs/gpu.md README.md    # former runs; needs no GPU

Needs PyTorch with CUDA and the extra ``cuda``; `bench/gpu_compile.py` compiles the kernels before, on all cores.

Errors are relative, norm(result - exact) / norm(exact), against float64 on the same GPU; inputs are fresh and random,
results poisoned. With ``--sanitize``, a subset runs under NVIDIA's compute-sanitizer first. Times are of the GPU alone:
calls with inputs that change, so that caches do not keep them, are captured in a CUDA graph; medians of CUDA events
around its replays, which take turns. cuDNN is PyTorch's, channels-last, its benchmark mode on, with TF32 where fastconv
may use it. Ceilings are multiprocessors x clock x operations of one in a clock. Registers are the most that a thread of
one of the kernels takes which a call starts. What was measured is written after each list of layers, so that a run that
is cut short leaves its figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from gpu_cases import Case, check, started
from gpu_problems import SECTIONS, kind_of, layers, to_measure
from gpu_report import write_markdown

import fastconv
from fastconv import algorithms
from fastconv.cuda import driver
from fastconv.problem import ConvProblem

SETS, ROUNDS = 4, 15  # inputs that change, one for each call of a sample; samples
# Operations of a multiprocessor in a clock, by compute capability: NVIDIA's architecture whitepapers, dense.
RATES = {(8, 0): {"f32": 128, "tf32": 1024, "bf16": 2048}, (9, 0): {"f32": 256, "tf32": 2048, "bf16": 4096}}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images of the measured layers")
    parser.add_argument("--check-only", action="store_true", help="measure nothing")
    parser.add_argument("--few", action="store_true", help="check a few problems, as under the sanitizer")
    parser.add_argument("--sanitize", action="store_true", help="run a subset under compute-sanitizer first")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--render", nargs="*", type=Path, help="run nothing: tables of figures that --json wrote")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", nargs="*", type=Path, help="write tables here, or between the marks of a file")
    return parser.parse_args()


def sanitized() -> str:
    """What compute-sanitizer says of a subset."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer was not found"
    command = [tool, "--error-exitcode", "9", sys.executable, __file__, "--check-only", "--few"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    return "no errors" if done.returncode == 0 else f"errors, exit code {done.returncode}: {done.stdout[-2000:]}"


def captured(calls: Callable[[], list[Callable[[], Any]]]) -> tuple[Any, Any]:
    """A CUDA graph of calls, made for the stream on which they are captured, and the calls, whose memory it uses."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        made = calls()
        for call in made * 3:  # compiles, chooses, warms up
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for call in made:
            call()
    return graph, made


def times(graphs: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Median microseconds of a call of each graph, whose replays take turns."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, (graph, _) in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples[name].append(1e3 * start.elapsed_time(end) / SETS)
    return {name: median(found) for name, found in samples.items()}


def ceiling(kind: str) -> float | None:
    """Most TFLOP/s of this GPU, or None if nothing is known of it."""
    gpu = torch.cuda.get_device_properties(0)
    rate = RATES.get((gpu.major, gpu.minor), {}).get(kind)
    clock = getattr(gpu, "clock_rate", 0)
    return 1e-9 * rate * clock * gpu.multi_processor_count if rate and clock else None


def measure_one(problem: ConvProblem) -> dict[str, Any]:
    """The best candidate for a problem beside cuDNN, in microseconds."""
    kind = kind_of(problem)
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    cases = [Case(problem) for _ in range(SETS)]
    graphs = {"cuDNN": captured(lambda: [case.by_torch for case in cases])}
    for candidate in algorithms.candidates(problem):
        name, params = candidate.algorithm, dict(candidate.params)
        graphs[str(candidate)] = captured(lambda: [case.call(name, params) for case in cases])  # noqa: B023
    took = times(graphs)
    best = min((name for name in took if name != "cuDNN"), key=lambda name: took[name])
    chosen = next(candidate for candidate in algorithms.candidates(problem) if str(candidate) == best)
    kernels = started(cases[0].call(chosen.algorithm, dict(chosen.params)))
    rate, most = problem.flops / took[best] / 1e6, ceiling(kind)
    row = {"problem": problem.descriptor, "kind": kind, "direction": problem.direction, "us": took, "best": best,
           "ratio": took["cuDNN"] / took[best], "tflops": rate, "ceiling": most and rate / most,
           "registers": max(map(driver.registers, kernels))}  # fmt: skip
    print(f"{row['ratio']:5.2f} of cuDNN, {rate:6.1f} TFLOP/s  {problem.descriptor}  {best}", flush=True)
    return row


def measure(sections: list[str], batch: int) -> Iterator[list[dict[str, Any]]]:
    """A row for each layer of each section, for each kind and direction that has fast kernels."""
    for section in sections:
        for problems in to_measure(section, layers(section, batch)):
            fast = [p for p in problems if algorithms.candidates(p)[0].algorithm != "reference"]
            yield [{"section": section, **measure_one(p)} for p in fast]


def latency() -> dict[str, float]:
    """Microseconds of the host for a call on a small problem, until it returns; medians."""
    x, w = torch.randn((1, 8, 8, 8), device="cuda"), torch.randn((8, 8, 3, 3), device="cuda")
    planned = fastconv.plan(tuple(x.shape), w, padding=1)
    ways = {
        "fastconv.plan": lambda: planned(x),
        "fastconv.conv2d": lambda: fastconv.conv2d(x, w, padding=1),
        "torch conv2d": lambda: torch.nn.functional.conv2d(x, w, padding=1),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(200):
        for name, call in ways.items():
            torch.cuda.synchronize()
            start = perf_counter_ns()
            call()
            samples[name].append((perf_counter_ns() - start) / 1e3)
    return {name: median(found[20:]) for name, found in samples.items()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Check and measure; figures are written as they come."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, numba-cuda {version('numba-cuda')}"
    where = f"{torch.cuda.get_device_name()}, {versions}, {date.today()}"
    figures: dict[str, Any] = {"where": where, "times": []}
    if options.sanitize:
        figures["sanitizer"] = sanitized()
    figures["checks"] = check(options.few)
    if not options.check_only:
        figures["latency"] = latency()
        torch.backends.cudnn.benchmark = True
        for rows in measure(options.sections, options.batch):
            figures["times"] += rows
            write(options, [figures])
    write(options, [figures])
    return figures


def write(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Figures, and tables of them, where they were asked for."""
    if options.json and not options.render:
        options.json.write_text(json.dumps(runs[0], indent=1))
    for path in options.markdown or []:
        write_markdown(path, runs)


def main() -> None:
    """Check, measure, write."""
    options = arguments()
    if options.render:
        write(options, [json.loads(path.read_text()) for path in options.render])
        return
    raise SystemExit(any(not row["good"] for row in run(options)["checks"]))


if __name__ == "__main__":
    main()

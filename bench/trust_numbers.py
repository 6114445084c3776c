"""What fastconv does with NaN and infinity, whether its bits repeat, how exact it is, and what denormals cost.

    python bench/trust_numbers.py --markdown docs/trust.md

Needs PyTorch, which is what everything is beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import denormal
import errors
import nonfinite
import nonfinite_layers
import numba
import numpy as np
import torch
from candidates import FORMATS, in_format
from pages import put
from report import circumstances, table
from torch_twin import twin

import fastconv
from fastconv import dispatch, networks

_BITS = Path(__file__).with_name("bits.py")
_RUNS = [(1, None), (2, None), (4, None), (4, None), (4, 1)]  # threads of Numba, and of `fastconv.threads`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", type=Path, help="write figures here")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of what is timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTCONV_WISDOM"] = f"{folder}/wisdom.jsonl"  # what was tuned here must not change what is tried
        text = report(options.repeats)
    if options.markdown:
        put(options.markdown, "numbers", text)


def report(repeats: int) -> str:
    """All of it, printed part by part too."""
    warnings.filterwarnings("ignore", "TF32")  # PyTorch, whenever oneDNN is switched off or on
    facts = circumstances(numba.config.NUMBA_NUM_THREADS, repeats)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = [
        "Written by `python bench/trust_numbers.py --markdown docs/trust.md`, not by hand:",
        f"{facts['cpu']}, {os.cpu_count()} cores, {versions}, {facts['date']}.",
    ]
    for part in (specials, bits, exactness, lambda: denormals(repeats)):
        parts.append(part())
        print(parts[-1], flush=True)
    return "\n".join(parts)


def specials() -> str:
    """Where NaN and infinities go."""
    found = nonfinite.compare(nonfinite.CASES, _by_each_algorithm)
    groups: dict[tuple[str, str], list[tuple[str, list[int]]]] = defaultdict(list)
    for (operation, special, algorithm), counts in found.items():
        groups[operation, special].append((algorithm, counts))
    lines = []
    for (operation, special), entries in sorted(groups.items()):
        results, same, wrong, apart = (sum(counts[n] for _, counts in entries) for n in range(4))
        names = ", ".join(algorithm for algorithm, _ in entries)
        lines.append([operation, special, names, *map(str, (results, same, results - same - wrong, wrong, apart))])
    layers: Counter[str] = Counter()
    for seed in range(5):
        for name, (results, other) in nonfinite_layers.different(seed).items():
            layers.update({name: results, "elements that differ": other})
    other = layers.pop("elements that differ")
    heading = ["operation", "not finite", "algorithms", "results", "as PyTorch", "but for padding", "wrong", "PyTorch"]
    return "\n".join([
        "", "### NaN and infinity", "",
        "NaN of both signs and infinities in one operand at a time, beside zeros in the weights: every candidate of",
        "every algorithm, float32 and float64, both memory formats. `as PyTorch`: results that have NaN, inf, -inf and",
        "indices exactly where one of PyTorch's algorithms has them: oneDNN, its own, or the other memory format.",
        "`but for padding`: the others, which differ only in that products of a weight or gradient that is not finite",
        "with the padding are NaN, or are none: some algorithms multiply zeros, others pass over them. So do PyTorch's",
        "in forward passes and gradients of weights (`PyTorch` counts results for which they disagree), but in the",
        "gradient of an input it never multiplies zeros, as `im2col`, `tiled` and `depthwise` do at the borders. What",
        "NaN and infinities in an image, a bias or the gradient of a result do to images depends on no algorithm.", "",
        table(heading, lines, left=3), "",
        f"Layers, losses, functions and optimizers, {len(layers)} kinds of results beside PyTorch's:",
        f"{sum(layers.values())} arrays, in which {other} elements differ in kind.",
    ])  # fmt: skip


def _by_each_algorithm(case: nonfinite.Case) -> list[list[np.ndarray]]:
    other = FORMATS[1 - FORMATS.index(case.problem.memory_format)]
    turned = {n: in_format(a, other) if n in ("x", "grad") else a for n, a in case.arrays.items()}
    found = [twin(case.problem, case.arrays, case.x), twin(case.problem, turned, case.x)]
    with torch.backends.mkldnn.flags(enabled=False):
        return [*found, twin(case.problem, case.arrays, case.x)]


def bits() -> str:
    """Whether they repeat."""
    runs = [_digests(*run) for run in _RUNS]
    results: Counter[str] = Counter()
    differ: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in runs])
    for name, first in runs[0].items():
        group = name.partition("|")[0]
        results[group] += 1
        for n, run in enumerate(runs):
            differ[group][n][group] += run[name] != first
    lines = [
        [group, str(count), *(str(differ[group][n][group]) for n in range(1, len(runs)))]
        for group, count in results.items()
    ]
    words = [f"{n} threads" + (f", {limit} used" if limit else "") for n, limit in _RUNS[1:]]
    words[2] += " again"
    chosen = _layers()
    other = sum(len({dispatch.choose(p, threads=n).candidate for n in (1, 2, 4)}) > 1 for p in chosen)
    return "\n".join([
        "", "### The same bits", "",
        "Digests of results, each column a process of its own: how many are not those of a process with one thread",
        "(`NUMBA_NUM_THREADS`, and `fastconv.threads` where fewer are used). Kernels are every candidate of every",
        "algorithm, in all directions, formats and dtypes; functions and training choose for themselves.", "",
        table(["what", "results", *words], lines), "",
        f"Without wisdom, {other} of {len(chosen)} layers of networks and their gradients are given to another",
        "candidate for 2 or 4 threads than for one. Wisdom is kept for each number of threads, and what was tuned for",
        "another number may be another algorithm, whose last bits differ: `algorithm=` or a plan keeps to one. Sums in",
        "gradients of weights are cut by the problem, the caches and the cores of the machine, never by the threads",
        "that run.",
    ])  # fmt: skip


def _layers() -> list[Any]:
    """Both gradients and the forward pass of the layers of networks."""
    found = []
    for name in ("resnet50", "vgg16", "mobilenet_v2"):
        for problem in networks.problems(name):
            found += [problem, *(problem.without_epilogue(d) for d in ("backward_input", "backward_weight"))]
    return found


def _digests(threads: int, limit: int | None) -> dict[str, str]:
    print("bits", threads, limit, file=sys.stderr)
    command = [sys.executable, str(_BITS), *(["--limit", str(limit)] if limit else [])]
    environment = {**os.environ, "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def exactness() -> str:
    """Errors against float64."""
    lines = []
    for row in errors.rows():
        shown = [f"{pair[0]:.1e} {pair[1]:.1e}" for pair in (*row.ours.values(), row.worst, *row.pytorch.values())]
        lines.append([row.what, row.data, str(row.products), *shown, f"{row.ratio:.2f}"])
    heading = ["what", "data", "terms", "NCHW", "channels-last", "worst candidate", "PyTorch, NCHW"]
    return "\n".join([
        "", "### Errors", "",
        "Float32 against float64, relative to the root mean square of the result: the largest error and the root mean",
        "square of errors, of what fastconv chooses, of its candidate with the largest of the latter, and of PyTorch.",
        "`terms` is how many each sum has. The last column is fastconv's second figure over PyTorch's, the larger of",
        "both formats.", "",
        table([*heading, "PyTorch, channels-last", "ratio"], lines, left=2), "",
        "Kernels of convolutions cut a sum after 128 terms or a few more, the sum of such parts after 2048 or a few",
        "more, and add what is left one after another: 5 parts for 9216 terms, 49 for 100,000. Before that, gradients",
        "of weights, and sums over many channels, are cut for the caches.",
    ])  # fmt: skip


def denormals(repeats: int) -> str:
    """What they cost."""
    torch.set_num_threads(1)
    with fastconv.threads(1):
        found = denormal.rows(repeats)
    lines = [[name, kind, *(f"{slower:.2f}" for slower in values)] for name, kind, values in found]
    return "\n".join([
        "", "### Denormal numbers", "",
        "Time with denormal numbers over time without, on one thread, best of rounds; `flushed` is after",
        "`set_flush_denormal(True)`, fastconv's or PyTorch's. What is denormal: the input, the weights, or the",
        "results alone. The machine is shared, and ratios vary by a tenth, that of the training step by more.", "",
        table(["what", "denormal", "fastconv", "flushed", "PyTorch", "flushed"], lines, left=2),
    ])  # fmt: skip


if __name__ == "__main__":
    main()

"""What a new process waits for: imports, first calls with and without compiled kernels on disk, and the whole menu.

    python bench/trust_start.py --markdown docs/trust.md

Every line comes from processes of its own, in turn. Needs PyTorch and the bench extra.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from latency import environment
from pages import put
from report import circumstances, table

_SIZES = {"tiny": ((1, 8, 8, 8), (8, 8, 3, 3)), "layer": ((1, 64, 56, 56), (64, 64, 3, 3))}
_AIMS = {"fastconv after numba": 0.1, "cached": 0.15, "not cached": 3.0}
_CODE = """
import time
start = time.perf_counter()
{first}
between = time.perf_counter()
{imports}
ready = time.perf_counter()
import numpy as np
x, w = np.ones({x}, np.float32), np.ones({w}, np.float32)
{prepare}
before = time.perf_counter()
{call}
print(between - start, ready - between, time.perf_counter() - before)
"""
_WARM = """
from fastconv.tuning import warm
print(warm.compile_menu(warm.menu()).seconds)
"""


@dataclass(frozen=True)
class Library:
    """How a process imports a library and computes with it for the first time."""

    first: str
    imports: str
    call: str
    prepare: str = ""

    def seconds(self, size: str, cache: Path, model: str = "") -> list[float]:
        """Of both imports and of the call, in a new process."""
        x, w = _SIZES[size]
        prepare = self.prepare.format(model=model)
        code = _CODE.format(first=self.first, imports=self.imports, call=self.call, prepare=prepare, x=x, w=w)
        return [float(word) for word in run(code, cache).split()]


_LIBRARIES = {
    "fastconv": Library("import numba", "import fastconv", "fastconv.conv2d(x, w, padding=1)"),
    "PyTorch": Library(
        "", "import torch", "torch.nn.functional.conv2d(x, w, padding=1)", "x, w = map(torch.from_numpy, (x, w))"
    ),
    "ONNX Runtime": Library(
        "", "import onnxruntime", "onnxruntime.InferenceSession(model).run(None, {'x': x})", "model = {model!r}"
    ),
}


def run(code: str, cache: Path) -> str:
    """Output of a new interpreter whose kernels are in `cache`."""
    command, env = [sys.executable, "-P", "-c", code], environment() | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=900).stdout


def onnx_model(size: str, folder: Path) -> str:
    """Path of a file with the convolution alone."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    x, w = _SIZES[size]
    value = helper.make_tensor_value_info
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    weight = numpy_helper.from_array(np.ones(w, np.float32), "w")
    ends = [value("x", TensorProto.FLOAT, x)], [value("y", TensorProto.FLOAT, (x[0], w[0], *x[2:]))]
    graph = helper.make_graph([node], "conv", *ends, [weight])
    path = folder / f"{size}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def measure(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each line of the table, of every round."""
    warm = folder / "warm"
    models = {size: onnx_model(size, folder) for size in _SIZES}
    tasks: dict[str, Callable[[int], list[float]]] = {}
    for size in _SIZES:
        for name, library in _LIBRARIES.items():
            library.seconds(size, warm, models[size])  # fills the caches
            tasks[f"{name}, {size}"] = lambda _, a=library, s=size: a.seconds(s, warm, models[s])
        uncached = _LIBRARIES["fastconv"]
        tasks[f"fastconv not cached, {size}"] = lambda n, a=uncached, s=size: a.seconds(s, folder / f"{s}{n}")
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, task in tasks.items():
            first, imports, call = task(number)
            if name == "fastconv, tiny":
                found.setdefault("import numba", []).append(first)
                found.setdefault("import fastconv after numba", []).append(imports)
            elif name.endswith("tiny") and "cached" not in name:
                found.setdefault(f"import {name.partition(',')[0]}", []).append(imports)
            found.setdefault(f"first call: {name}", []).append(call)
            if "cached" not in name:
                found.setdefault(f"import and first call: {name}", []).append(first + imports + call)
    return found


def compiled(cache: Path) -> int:
    """How many functions a cache has the machine code of."""
    return len(list(cache.rglob("*.nbc")))


def kilobytes(cache: Path) -> float:
    """What the files of a cache take, in units of 1000 bytes."""
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1000


def warmed(folder: Path) -> str:
    """What warming up takes, and what it and one call leave on disk."""
    menu, tiny = folder / "menu", folder / "tiny0"
    seconds = float(run(_WARM, menu))
    return (
        f"`fastconv warmup` compiles the whole menu for float32 in {seconds:.0f} s: {compiled(menu)} functions, "
        f"{kilobytes(menu) / 1000:.1f} MB on disk. The first tiny call compiles {compiled(tiny)}, its kernel and what "
        f"starts its jobs: {kilobytes(tiny):.0f} kB."
    )


def rows(found: dict[str, list[float]]) -> list[list[str]]:
    """Median, least and aim of each line."""
    lines = []
    for name, seconds in sorted(found.items(), key=lambda item: item[0].partition(":")[0]):
        lines.append([name, f"{median(seconds):.3f}", f"{min(seconds):.3f}", aim(name)])
    return lines


def aim(name: str) -> str:
    """What was to be reached by a line, if anything."""
    if name == "import fastconv after numba":
        return f"{_AIMS['fastconv after numba']:.2f}"
    if name.startswith("first call: fastconv"):
        return f"{_AIMS['not cached' if 'not cached' in name else 'cached']:.2f}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.rounds, Path(folder))
        menu = warmed(Path(folder))
    facts = circumstances(os.cpu_count() or 1, options.rounds)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = "\n".join([
        "Written by `python bench/trust_start.py --markdown docs/trust.md`, not by hand:",
        f"{facts['cpu']}, {facts['threads']} threads, {versions}, {facts['date']}.", "",
        f"Seconds of new processes, in {facts['rounds']} rounds; a first call is timed after the imports. `tiny` is a",
        "3x3 convolution of 8 channels of 8x8 pixels, `layer` one of 64 channels of 56x56. Kernels are cached on disk,",
        "but for the lines that say otherwise; ONNX Runtime's call includes making the session.", "",
        table(["what", "median", "least", "aim"], rows(found)), "", menu,
    ])  # fmt: skip
    print(text, json.dumps(found), sep="\n")
    if options.markdown:
        put(options.markdown, "start", text)


if __name__ == "__main__":
    main()

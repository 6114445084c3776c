"""Imports run one way, optional packages stay optional, and importing fastconv does no work."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastconv

PACKAGE = Path(fastconv.__file__).parent

# A module imports from its own row and from those above. A name stands for a module or a package.
ORDER = [
    ["_version", "sealed"],
    ["sizes", "jit_cache", "free_memory"],
    ["jit"],
    ["pooling"],
    ["problem"],
    ["algorithms", "descriptor", "networks", "arrays", "local_problem", "phases"],
    ["cpu", "cuda"],
    ["reference"],
    ["reference_backward", "reference_local"],
    ["tuning"],
    ["dispatch"],
    ["precision"],
    ["plan", "functional"],  # plans on a GPU check arguments as functions do
    ["grad"],
    ["nn"],
    ["optim", "gradcheck", "checkpoint", "images", "summary"],
    ["demo"],
    [""],  # fastconv/__init__.py
    ["cli", "__main__"],
]
CORE = {"numba", "numpy", "llvmlite"}  # llvmlite comes with numba
COMPILERS = {"njit", "jit", "cfunc", "vectorize", "guvectorize", "stencil", "jit_module"}


def module_name(path: Path) -> str:
    """Dotted name inside the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of all modules that import statements among `nodes` name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("fastconv.") in MODULES else node.module


def row(name: str) -> int:
    """Where a module stands in `ORDER`; the longest prefix decides."""
    while True:
        for number, names in enumerate(ORDER):
            if name in names:
                return number
        assert "." in name, f"{name!r} has no place in ORDER"
        name = name.rpartition(".")[0]


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from outside_functions(node)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    for target in imports(ast.walk(ast.parse(MODULES[name].read_text("utf-8")))):
        if target.split(".")[0] == "fastconv":
            inner = target.removeprefix("fastconv").removeprefix(".")
            assert row(inner) <= row(name), f"{name or 'fastconv'} imports {target}, which builds on it"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ("cpu", "cuda")])
def test_cpu_and_gpu_know_nothing_of_each_other(name: str) -> None:
    other = {"cpu": "fastconv.cuda", "cuda": "fastconv.cpu"}[name.split(".")[0]]
    found = list(imports(ast.walk(ast.parse(MODULES[name].read_text("utf-8")))))
    assert not [target for target in found if target == other or target.startswith(other + ".")]


def test_one_module_imports_the_cuda_target() -> None:
    found = {name: list(imports(ast.walk(ast.parse(path.read_text("utf-8"))))) for name, path in MODULES.items()}
    assert "from numba import config, cuda" in MODULES["cuda.toolkit"].read_text("utf-8")
    for name, path in MODULES.items():
        if name not in ("cuda.toolkit", "cuda.arrays"):  # the latter names the simulator's class of arrays
            assert not [target for target in found[name] if target.startswith("numba.cuda")], name
            assert not re.search(r"^\s*from numba import .*\bcuda\b", path.read_text("utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("name", [name for name in MODULES if row(name) < row("cli")])
def test_optional_packages_are_imported_on_use(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    roots = {target.split(".")[0] for target in imports(outside_functions(tree))}
    assert roots <= CORE | {"fastconv"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "jit"])
def test_numba_is_configured_in_one_module(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "numba":
            assert not COMPILERS & {alias.name for alias in node.names}, f"line {node.lineno}: use fastconv.jit"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("numba", "nb"):
            assert node.attr not in COMPILERS, f"line {node.lineno}: use fastconv.jit"


def run(code: str, cache: Path) -> str:
    """Output of a new interpreter that has no compiled kernels on disk."""
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout


def test_importing_fastconv_imports_nothing_optional(tmp_path: Path) -> None:
    code = "import sys, fastconv; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(run(code, tmp_path).split())
    assert "fastconv" in loaded
    assert not loaded & {"torch", "typer", "rich", "platformdirs", "filelock", "onnx", "numba_cuda", "safetensors"}


PLANNED = """
    from fastconv.cpu import tiled
    problem = parse("n1c1h8w8k1r3s3_f32_nchw_max2")
    tiled.make(problem, tiled.space(problem)[0], 1).workspace_bytes
""".strip()


@pytest.mark.parametrize(
    ("action", "compiles"),
    [("import fastconv", False), (PLANNED, False),
     ("from fastconv.reference import pooling; pooling(Pool('max', 2), x)", True),
     ("import fastconv; fastconv.plan((1, 1, 3, 3), numpy.ones((1, 1, 3, 3)))", True)],
    ids=["import", "kernel", "function", "plan"],
)  # fmt: skip
def test_importing_fastconv_compiles_nothing(action: str, compiles: bool, tmp_path: Path) -> None:
    lines = ["import numpy, numba", "from numba.core import event", "x = numpy.ones((1, 1, 2, 2))"]
    lines += ["with event.install_recorder('numba:run_pass') as recorder:"]
    if "parse" in action or "Pool" in action:
        lines += ["    from fastconv.descriptor import parse", "    from fastconv.pooling import Pool"]
    code = "\n".join([*lines, f"    {action}", "print(len(recorder.buffer))"])
    assert (int(run(code, tmp_path)) > 0) == compiles


@pytest.mark.parametrize(
    "call",
    ["fastconv.conv2d(x, w)", "fastconv.max_pool2d(x, 3)", "fastconv.max_pool2d(last, 3)",
     "fastconv.avg_pool2d(last, 5)",
     "fastconv.plan(x.shape, w, pool=Pool('max', 2), algorithm='tiled')",
     "fastconv.plan(x.shape, w, pool=Pool('max', 2), algorithm='two_pass')"],
)  # fmt: skip
def test_what_is_compiled_is_found_on_disk_by_the_next_process(call: str, tmp_path: Path) -> None:
    code = f"""
import numpy as np, fastconv
from fastconv.pooling import Pool
from numba.core import event
x, w = np.ones((1, 2, 7, 7)), np.ones((3, 2, 3, 3))
last = np.ones((1, 7, 7, 2)).transpose(0, 3, 1, 2)
with event.install_recorder("numba:run_pass") as recorder:
    {call}
print(len(recorder.buffer))
"""
    assert int(run(code, tmp_path)) > 0
    assert int(run(code, tmp_path)) == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_compiles_what_it_runs_and_no_more(threads: int, tmp_path: Path) -> None:
    code = f"""
import os
os.environ["NUMBA_NUM_THREADS"] = "{threads}"
import numpy as np, fastconv
fastconv.conv2d(np.ones((1, 64, 28, 28), "float32"), np.ones((64, 64, 3, 3), "float32"), padding=1)
"""
    run(code, tmp_path)
    found = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbc")}
    starts = {1: {"launch.image_launcher.locals.serial"}}
    starts[2] = {"launch.image_launcher.locals.parallel", "launch.image_launcher.locals.worker"}
    assert len(found - starts[threads]) == 1, found  # the kernel
    assert starts[threads] < found


@pytest.mark.parametrize(
    "first", ["fastconv.conv2d(x, w)", "fastconv.plan(x.shape, w)(x)", "fastconv.max_pool2d(x, 2)"]
)
def test_a_first_call_leaves_scipy_alone_and_blas_usable(first: str) -> None:
    pytest.importorskip("scipy")
    code = f"""
import sys
import numba, numpy as np, fastconv
x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
{first}
assert "scipy.linalg" not in sys.modules
product = numba.njit(lambda a, b: np.dot(np.kron(a, b), np.linalg.inv(np.kron(b, a))))
assert np.allclose(product(2 * np.eye(2), np.eye(3)), np.eye(6))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)

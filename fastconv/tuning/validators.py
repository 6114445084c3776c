"""Facts that must be the same for a measurement to count: versions, CPU and cores or GPU, and the kernel's source."""

from __future__ import annotations

import os
import re
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastconv import algorithms
from fastconv._version import __version__
from fastconv.cpu.host import host
from fastconv.descriptor import parse

_ROOT = Path(__file__).parents[2]
_DESCRIPTIONS = ("fastconv.sizes", "fastconv.pooling", "fastconv.problem", "fastconv.algorithms")
_IMPORT = re.compile(
    r"^[ \t]*(?:from (fastconv[.\w]*) import (?:\(([^)]*)\)|(.*))|import (fastconv\.[.\w]+))", re.MULTILINE
)


@cache
def _imports(source: Path) -> set[str]:
    """Modules of fastconv that a file imports, and names that it imports from them."""
    found: set[str] = set()
    for package, names, line, module in _IMPORT.findall(source.read_text("utf-8")):
        found |= {module or package, *(f"{package}.{name}" for name in re.findall(r"\w+", names or line))}
    return {name for name in found if name.startswith("fastconv.")}


def _source_file(name: str) -> Path | None:
    """The file of a module, or None if `name` is something else, such as a function in one."""
    if name.startswith("fastconv."):
        path = _ROOT.joinpath(*name.split("."))
        choices = (path.with_suffix(".py"), path / "__init__.py")
        return next((choice for choice in choices if choice.is_file()), None)
    spec = find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


@cache
def source_hash(module: str) -> str:
    """Hash of a kernel module's source and of all that it imports from fastconv.

    An edit of one kernel's file so invalidates that kernel's measurements only. The descriptions of
    problems and the list of algorithms are left out: they compute nothing, and every module imports them.
    """
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = None if name in files or name in _DESCRIPTIONS else _source_file(name)
        if source is not None:
            files[name] = source
            waiting += _imports(source)
    digest = sha256()
    for name in sorted(files):
        digest.update(files[name].read_bytes())
    return digest.hexdigest()[:16]


@cache
def machine(device: str = "cpu") -> dict[str, Any]:
    """Versions and CPU, or GPU and driver: the part that all kernels of a device share."""
    if device == "cuda":
        from fastconv.cuda.properties import machine as gpu  # asks the driver, so only where there is a use for it

        return {"fastconv": __version__, "numba": version("numba"), **gpu()}
    cpu = host()
    return {
        "fastconv": __version__, "numba": version("numba"), "llvmlite": version("llvmlite"), "cpu": cpu.name,
        "vector_bytes": cpu.vector_bytes, "registers": cpu.registers, "fma": cpu.fma, "cores": os.cpu_count(),
    }  # fmt: skip


def validators(descriptor: str, algorithm: str) -> dict[str, Any]:
    """`machine` and the source hash of the algorithm that computes the problem.

    Raises
    ------
    ValueError
        If the algorithm is not registered.
    """
    problem = parse(descriptor)
    return {**machine(problem.device), "source": source_hash(algorithms.source_of(problem, algorithm))}

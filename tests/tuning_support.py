"""A registry of made-up algorithms, whose speed and correctness a test decides, and a store of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastconv import algorithms, dispatch
from fastconv.tuning import validators

_SOURCE = """
import time

from fastconv import reference
from fastconv.problem import ConvProblem
{extra}

runs = []


class Kernel:
    workspace_bytes = 64
    layout_copies = "none"

    def __init__(self, problem, seconds):
        self.problem, self.seconds = problem, seconds

    def pack(self, weight, bias):
        runs.append("pack")
        return weight, bias

    def convolve(self, x, weight, bias, out):
        self.run(x, self.pack(weight, bias), out)

    def bound(self, x, out):
        return self.run

    def run(self, x, second, third=None):
        runs.append("run")
        if {error} == "raise":
            raise RuntimeError("no such instruction")
        if isinstance(self.problem, ConvProblem):
            third[...] = reference.convolve(self.problem, x, *second) + {error}
        else:
            second[...], found = reference.pooling(self.problem, x)
            if third is not None:
                third[...] = found + {error}
        time.sleep(self.seconds)


def unsupported(problem):
    return None if problem.dtype == "float32" else "it takes float32 only"


def space(problem):
    return [{{"rows": 1}}, {{"rows": 2}}]


def cost(problem, params):
    return {cost} * params["rows"]


def make(problem, params, threads):
    return Kernel(problem, {seconds} * params["rows"])
"""


def source(*, cost: float = 1e6, seconds: float = 0.0005, error: object = 0, extra: str = "") -> str:
    """The text of an algorithm's module: predicted and real time for ``rows=1``, and what it adds to results."""
    return _SOURCE.format(cost=cost, seconds=seconds, error=repr(error), extra=extra)


@contextmanager
def registry(monkeypatch: pytest.MonkeyPatch, folder: Path, **sources: str) -> Iterator[None]:
    """Register modules with these sources, for convolution and pooling, as the only algorithms."""
    monkeypatch.syspath_prepend(str(folder))
    paths = {}
    for name, text in sources.items():
        (folder / f"made_up_{name}.py").write_text(text)
        paths |= {(operation, "cpu", name): f"made_up_{name}" for operation in ("conv", "pool")}
    monkeypatch.setattr(algorithms, "_MODULES", paths)
    validators.source_hash.cache_clear()
    dispatch.forget()
    try:
        yield
    finally:
        for name in sources:
            sys.modules.pop(f"made_up_{name}", None)
        validators.source_hash.cache_clear()
        dispatch.forget()


def store(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """An empty store for this test alone."""
    path = folder / "wisdom.jsonl"
    monkeypatch.setenv("FASTCONV_WISDOM", str(path))
    return path

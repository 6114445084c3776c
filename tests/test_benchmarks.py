"""The suites for asv: every class runs, once and with its first parameters. It takes no asv."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SUITES = sorted(path.stem for path in BENCH.glob("benchmarks/*.py") if path.stem not in ("__init__", "common"))
KINDS = re.compile("time_|timeraw_|track_|peakmem_")  # names of methods that asv runs


@pytest.fixture
def suite(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a suite; what it does to the environment is undone afterwards."""
    monkeypatch.setenv("FASTCONV_WISDOM", os.devnull)
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module(f"benchmarks.{request.param}")


def classes(module: Any) -> Iterator[type]:
    for name, found in inspect.getmembers(module, inspect.isclass):
        if found.__module__ == module.__name__ and not name.startswith("_"):
            yield found


def run(benchmark: Any, method: str, params: tuple) -> Any:
    """As asv does: set up, run, and take down."""
    getattr(benchmark, "setup", lambda *_: None)(*params)
    try:
        result = getattr(benchmark, method)(*params)
        if method.startswith("timeraw_"):
            statement, preparation = (result, "") if isinstance(result, str) else result
            exec(f"{textwrap.dedent(preparation)}\n{textwrap.dedent(statement)}", {})
        return result
    finally:
        getattr(benchmark, "teardown", lambda *_: None)(*params)


@pytest.mark.parametrize("suite", SUITES, indirect=True)
def test_every_class_runs(suite):
    ran = []
    for cls in classes(suite):
        params = next(itertools.product(*getattr(cls, "params", ())))
        assert len(params) == len(getattr(cls, "param_names", ()))
        for method in filter(KINDS.match, dir(cls)):
            result = run(cls(), method, params)
            assert isinstance(result, int) or not method.startswith("track_")
            ran.append(method)
    assert ran

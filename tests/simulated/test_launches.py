"""Every launch for every layer of the known networks is one that a GPU takes: grid, threads, shared memory, numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastconv import algorithms, networks
from fastconv.cuda.driver import _scalars
from fastconv.cuda.kernel import MOST_BLOCKS, Launch
from fastconv.descriptor import parse

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
launches = import_module("gpu_compile").launches

MOST_THREADS = 1024
MOST_SHARED_HOPPER = 227 << 10  # of a block with compute capability 9.0
MOST_SHARED_ANYWHERE = 99 << 10  # with 8.6, the least of those that copy asynchronously
KINDS = [{}, {"precision": "tf32"}, {"dtype": "bfloat16"}, {"dtype": "float64"}]
DIRECTIONS = ("forward", "backward_input", "backward_weight")


def check(launch: Launch) -> None:
    """Raise unless a GPU takes a launch."""
    grid = (*launch.grid, 1, 1)[:3]
    assert 0 < grid[0] < 1 << 31 and min(grid[1:]) > 0 and max(grid[1:]) <= MOST_BLOCKS
    assert launch.kernel.threads <= MOST_THREADS
    assert launch.shared <= (MOST_SHARED_HOPPER if launch.kernel.features else MOST_SHARED_ANYWHERE)
    _scalars(launch.kernel.arguments, launch.values)  # raises for numbers that do not fit


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("network", ["resnet50", "vgg16", "alexnet", "mobilenet_v2"])
@pytest.mark.parametrize(("form", "images"), [("contiguous", 32), ("channels_last", 32), ("channels_last", 1)])
def test_every_layer(network: str, form: Any, images: int, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cuda.properties.lacking", lambda name, capability: None)
    started = set()
    for layer in networks.problems(network, images):
        for kind in KINDS:
            turned = layer if direction == "forward" else layer.without_epilogue(direction)
            problem = replace(turned, device="cuda", memory_format=form, **kind)
            for name, launch, _ in launches(problem):
                started.add(name)
                check(launch)
            assert started >= set(algorithms.supporting(problem)), problem.descriptor
    assert {"reference", "tiled"} <= started


WINDOWS = ["max2u2", "max9u9", "avg3u2p1ceil", "lp5u5n2", "max3u1d5"]


@pytest.mark.parametrize("filters", [3, 16, 20, 40, 200])
def test_what_is_supported_has_parameters(filters: int) -> None:
    for kind in ("f32", "f32_tf32", "bf16"):
        plain = f"n1c32h30w30k{filters}r3s3p1_{kind.replace('_tf32', '_nhwc_tf32')}_cuda"
        problems = [parse(plain), *(replace(parse(plain), pool=parse(f"n1c1h30w30_{word}").pool) for word in WINDOWS)]
        problems += [parse(plain).without_epilogue(direction) for direction in DIRECTIONS[1:]]
        for problem in problems:
            for name in algorithms.supporting(problem):
                found = algorithms.module_of(problem, name).space(problem)
                assert found and all(params.keys() == found[0].keys() for params in found), (problem.descriptor, name)

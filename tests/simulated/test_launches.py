"""Every launch for every layer of the known networks is one that a GPU takes: grid, threads, shared memory, numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastconv import algorithms, networks
from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, Library
from fastconv.cuda.driver import _scalars
from fastconv.cuda.kernel import MOST_BLOCKS, Launch
from fastconv.problem import ConvProblem

MOST_THREADS = 1024
MOST_SHARED_HOPPER = 227 << 10  # of a block with compute capability 9.0
MOST_SHARED_ANYWHERE = 99 << 10  # with 8.6, the least of those that copy asynchronously
KINDS = [{}, {"precision": "tf32"}, {"dtype": "bfloat16"}, {"dtype": "float64"}]
DIRECTIONS = ("forward", "backward_input", "backward_weight")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Launch, list[DeviceArray]]]:
    """What is launched, instead of a run: a launch and its arrays."""
    found: list[tuple[Launch, list[DeviceArray]]] = []
    monkeypatch.setattr(Launch, "__call__", lambda self, arrays, stream=0: found.append((self, list(arrays))))
    return found


class NoMemory(Library):
    """A library, and each of its arrays: these have an address, but no memory."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> None:
        self.array = DeviceArray(256, shape, strides, dtype, self)

    def owns(self, x: Any) -> bool:
        return x is self

    def describe(self, x: Any) -> DeviceArray:
        return x.array

    def new(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, like: Any) -> Any:
        return NoMemory(shape, strides, dtype)


def unread(shape: tuple[int, ...], problem: ConvProblem, form: Any = "contiguous") -> DeviceArray:
    """An array of a problem's dtype, without memory."""
    strides = dense_strides(shape, form) if len(shape) == 4 else (1,)
    return NoMemory(shape, strides, problem.dtype).array


def start(problem: ConvProblem, kernel: Any) -> None:
    """Run a kernel on arrays as users have them."""
    form = problem.memory_format
    x, out = unread(problem.in_shape, problem, form), unread(problem.out_shape, problem, form)
    weight, bias = unread(problem.weight_shape, problem), unread((problem.out_channels,), problem)
    if problem.direction == "backward_weight":
        kernel.run(x, out, weight)
    elif problem.direction == "backward_input":
        kernel.convolve(out, weight, None, x)
    else:
        kernel.convolve(x, weight, bias if problem.bias else None, out)


def check(launch: Launch) -> None:
    """Raise unless a GPU takes a launch."""
    grid = (*launch.grid, 1, 1)[:3]
    assert 0 < grid[0] < 1 << 31 and min(grid[1:]) > 0 and max(grid[1:]) <= MOST_BLOCKS
    assert launch.kernel.threads <= MOST_THREADS
    assert launch.shared <= (MOST_SHARED_HOPPER if launch.kernel.features else MOST_SHARED_ANYWHERE)
    _scalars(launch.kernel.arguments, launch.values)  # raises for numbers that do not fit


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("network", ["resnet50", "vgg16", "alexnet", "mobilenet_v2"])
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_every_layer(network: str, form: Any, direction: str, launches: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.cuda.properties.lacking", lambda name, capability: None)
    started = set()
    for layer in networks.problems(network, 32):
        for kind in KINDS:
            turned = layer if direction == "forward" else layer.without_epilogue(direction)
            problem = replace(turned, device="cuda", memory_format=form, **kind)
            for name in algorithms.supporting(problem):
                code = algorithms.module_of(problem, name)
                started.add(name)
                for params in code.space(problem):
                    launches.clear()
                    start(problem, code.make(problem, params, 1))
                    assert launches, (problem.descriptor, name)
                    for launch, _ in launches:
                        check(launch)
    assert {"reference", "tiled"} <= started

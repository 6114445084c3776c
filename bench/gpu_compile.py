"""Compile the kernels that `bench/gpu.py` runs, on all cores; needs no GPU.

    python bench/gpu_compile.py --capability 9.0

They are kept where fastconv looks for them (``FASTCONV_CUDA_CACHE``), for the same Python and the same compiler.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

from gpu_problems import SECTIONS, layers, to_check, to_measure

from fastconv import algorithms
from fastconv.arrays import dense_strides
from fastconv.cuda.arrays import DeviceArray, Library
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.store import stored_cubin
from fastconv.problem import ConvProblem

_kernels: list[Kernel] = []  # processes that are forked find those of their parent


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


def launches(problem: ConvProblem) -> Iterator[tuple[str, Launch, list[DeviceArray | None]]]:
    """What every candidate for a problem launches, on what arrays."""
    for name in algorithms.supporting(problem):
        code = algorithms.module_of(problem, name)
        for params in code.space(problem):
            found: list[tuple[Launch, list[DeviceArray | None]]] = []
            with patch.object(Launch, "__call__", lambda self, arrays, stream=0: found.append((self, list(arrays)))):  # noqa: B023
                start(problem, code.make(problem, params, 1))
            yield from ((name, *launch) for launch in found)


def kernels(batch: int) -> list[Kernel]:
    """All that the bench starts."""
    problems = list(to_check())
    for section in SECTIONS:
        problems += [p for found in to_measure(section, layers(section, batch)) for p in found]
    with patch("fastconv.cuda.properties.lacking", lambda name, capability: None):
        started = [launch.kernel for problem in problems for _, launch, _ in launches(problem)]
    return list(dict.fromkeys(started))


def compile_one(index: int, capability: tuple[int, int]) -> str:
    """Compile a kernel, or find it compiled."""
    stored_cubin(_kernels[index], capability)
    return _kernels[index].name


def main() -> None:
    """Compile all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", default="9.0", help="of the GPU")
    parser.add_argument("--batch", type=int, default=32, help="images of the measured layers")
    options = parser.parse_args()
    major, minor = map(int, options.capability.split("."))
    _kernels.extend(kernels(options.batch))
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        running = [pool.submit(compile_one, i, (major, minor)) for i in range(len(_kernels))]
        for count, done in enumerate(as_completed(running), 1):
            print(f"{count} of {len(running)}: {done.result()}", flush=True)


if __name__ == "__main__":
    main()

"""Any problem with any candidate on given arrays, beside the oracle: what the tests of numbers and their tables run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from fastconv import algorithms, reference, reference_backward, reference_local
from fastconv.algorithms import Candidate
from fastconv.arrays import empty
from fastconv.descriptor import parse
from fastconv.local_problem import LocalProblem
from fastconv.problem import ConvProblem, PoolProblem

AnyProblem: TypeAlias = ConvProblem | PoolProblem | LocalProblem
FORMATS, DTYPES = ("contiguous", "channels_last"), ("float32", "float64")


def everything(problem: AnyProblem) -> list[Candidate]:
    """Every parameter of every algorithm, the reference among them."""
    return [
        Candidate(name, tuple(sorted(params.items())))
        for name in algorithms.supporting(problem)
        for params in algorithms.module_of(problem, name).space(problem)
    ]


def in_forms(descriptor: str, directions: tuple[str, ...] = ("forward",), local: bool = False) -> list[AnyProblem]:
    """A problem in both memory formats and dtypes and in each direction."""
    found: list[AnyProblem] = []
    for direction in directions:
        for memory_format in FORMATS:
            for dtype in DTYPES:
                problem = replace(parse(descriptor), memory_format=memory_format, dtype=dtype)
                if isinstance(problem, PoolProblem):
                    problem = replace(problem, direction=direction)
                elif direction != "forward":
                    problem = problem.without_epilogue(direction)
                found.append(LocalProblem(problem) if local else problem)
    return found


def shapes(problem: AnyProblem) -> dict[str, tuple[int, ...]]:
    """The names and shapes of what the problem reads, in the order in which kernels take it."""
    if isinstance(problem, PoolProblem):
        return {"x": problem.in_shape} if problem.direction == "forward" else {"grad": problem.out_shape}
    if problem.direction == "forward":
        bias = problem.conv.bias if isinstance(problem, LocalProblem) else problem.bias
        size = problem.out_shape[1:] if isinstance(problem, LocalProblem) else problem.out_shape[1:2]
        return {"x": problem.in_shape, "weight": problem.weight_shape} | ({"bias": size} if bias else {})
    if problem.direction == "backward_input":
        return {"grad": problem.out_shape, "weight": problem.weight_shape}
    return {"x": problem.in_shape, "grad": problem.out_shape}


def operands(problem: AnyProblem, seed: int = 0) -> dict[str, np.ndarray]:
    """Normally distributed arrays for `shapes`; weights scaled so that sums of products with them are of order 1."""
    random, found = np.random.default_rng(seed), {}
    for name, shape in shapes(problem).items():
        values = random.standard_normal(shape, np.float32).astype(problem.dtype)
        if name == "weight":
            values /= math.sqrt(math.prod(shape[1:4]))
        found[name] = in_format(values, problem.memory_format) if name in ("x", "grad") else values
    return found


def in_format(image: np.ndarray, memory_format: Any) -> np.ndarray:
    """A copy of an image in a memory format."""
    result = empty(image.shape, image.dtype, memory_format)
    result[...] = image
    return result


def run(
    problem: AnyProblem, candidate: Candidate, arrays: dict[str, np.ndarray], threads: int, kept: tuple = ()
) -> list[np.ndarray]:
    """The result, and the indices of maxima; `kept` is what the forward pass of a pooling leaves to its gradient."""
    kernel = algorithms.module_of(problem, candidate.algorithm).make(problem, dict(candidate.params), threads)
    given = tuple(arrays.values())
    if problem.direction == "backward_weight":
        out = np.full(problem.weight_shape, 7, problem.dtype)
        kernel.run(*given, out)
        return [out]
    shape = problem.out_shape if problem.direction == "forward" else problem.in_shape
    out = in_format(np.full(shape, 7, problem.dtype), problem.memory_format)
    if isinstance(problem, PoolProblem) and problem.direction == "forward":
        indices = in_format(np.full(shape, -7, np.int64), problem.memory_format) if problem.return_indices else None
        kernel.run(given[0], out, indices)
        return [out] if indices is None else [out, indices]
    if isinstance(problem, PoolProblem):
        kernel.run(given[0], out, *kept)
    elif isinstance(problem, LocalProblem):
        kernel.run(*given, *([None] if problem.direction == "forward" and len(given) == 2 else []), out)
    else:
        kernel.convolve(given[0], given[1], given[2] if len(given) == 3 else None, out)
    return [out]


def kept_by(problem: PoolProblem, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the forward pass of a pooling of `x` leaves to its gradient."""
    values, indices = reference.pooling(problem.pool, x)
    if problem.pool.mode == "max":
        return (in_format(indices, problem.memory_format),)
    return (in_format(values.astype(x.dtype), problem.memory_format), x) if problem.pool.mode == "lp" else ()


def oracle(problem: AnyProblem, arrays: dict[str, np.ndarray], kept: tuple = ()) -> list[np.ndarray]:
    """What `run` should give, by plain loops in float64."""
    given = tuple(arrays.values())
    if isinstance(problem, PoolProblem):
        if problem.direction != "forward":
            return [reference_backward.pool_input(problem, given[0], *kept)]
        values, indices = reference.pooling(problem, given[0])
        return [values, indices] if problem.return_indices else [values]
    local = isinstance(problem, LocalProblem)
    here = reference_local if local else reference_backward
    if problem.direction == "forward":
        return [(reference_local if local else reference).convolve(problem, *given)]
    name = {"backward_input": ("input_gradient", "conv_input"), "backward_weight": ("weight_gradient", "conv_weight")}
    return [getattr(here, name[problem.direction][0 if local else 1])(problem, *given)]

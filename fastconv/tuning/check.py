"""Checks a kernel's results against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fastconv import reference, reference_backward
from fastconv.problem import ConvProblem, PoolProblem, Problem
from fastconv.tuning.measure import Workload

_REFERENCE_FLOPS = 1e8  # some tenths of a second of the reference's plain loops
_STORED_EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # sums are float32
_TF32_EPS = 2.0**-10


def wrong(problem: Problem, work: Any, call: Any) -> str | None:
    """Run `call` on `work` and compare with the reference; say what is wrong, or None if nothing is.

    A large problem is compared in part: all pixels of some channels, in the first and the last image.
    The channels (whole groups, for a grouped convolution) are spread evenly, first and last included. What ran on a GPU
    is brought to the host and compared with the same reference, in the same part.
    """
    if problem.device == "cuda":
        return _wrong(problem, work.host, partial(work.run_once, call))
    return _wrong(problem, work, call)


def _wrong(problem: Problem, work: Workload, call: Callable[[], None]) -> str | None:
    work.out.fill(np.nan)
    if work.indices is not None:
        work.indices.fill(-2)
    call()
    images, units = _part(problem)
    if isinstance(problem, ConvProblem):
        if problem.direction == "backward_weight":
            expected, filters = _weight_gradient(problem, work, units)
            return _compare(work.out[filters], expected, _tolerance(problem))
        expected, channels = _convolve(problem, work, images, units)
        return _compare(work.out[np.ix_(images, channels)], expected, _tolerance(problem))
    smaller = replace(problem, batch=len(images), channels=len(units))
    expected, indices = reference.pooling(smaller, work.x[np.ix_(images, units)])
    if work.indices is not None and not np.array_equal(work.indices[np.ix_(images, units)], np.asarray(indices)):
        return "indices differ from the reference"
    return _compare(work.out[np.ix_(images, units)], expected, _tolerance(problem))


def _part(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Images, and channels of the result (weights: filters; or groups if there are several), to compare."""
    images = np.unique([0, problem.batch - 1])
    each = problem.flops / problem.batch * len(images)
    if isinstance(problem, PoolProblem):
        count = problem.channels
    elif problem.groups > 1:
        count = problem.groups
    else:
        count = problem.in_channels if problem.direction == "backward_input" else problem.out_channels
    if problem.direction == "backward_weight":
        each = problem.flops  # a sum over all images
    each /= count
    wanted = min(count, max(2, int(_REFERENCE_FLOPS / each)))
    return images, np.unique(np.linspace(0, count - 1, wanted).round().astype(int))


def _convolve(
    problem: ConvProblem, work: Workload, images: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's result for some images and groups (or channels), and the channels that it has."""
    inputs, outputs, groups = _channels(problem, units)
    smaller = replace(problem, batch=len(images), in_channels=len(inputs), out_channels=len(outputs), groups=groups)
    assert work.weight is not None
    if problem.direction == "forward":
        bias = None if work.bias is None else work.bias[outputs]
        return reference.convolve(smaller, work.x[np.ix_(images, inputs)], work.weight[outputs], bias), outputs
    weight = work.weight[outputs] if problem.groups > 1 else work.weight[:, inputs]
    bias = None if work.bias is None else work.bias[inputs]
    return reference_backward.conv_input(smaller, work.x[np.ix_(images, outputs)], weight, bias), inputs


def _weight_gradient(problem: ConvProblem, work: Workload, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference's gradient of the weights of some groups (or filters), and the filters that it has."""
    inputs, outputs, groups = _channels(problem, units)
    smaller = replace(problem, in_channels=len(inputs), out_channels=len(outputs), groups=groups)
    assert work.grad is not None
    return reference_backward.conv_weight(smaller, work.x[:, inputs], work.grad[:, outputs]), outputs


def _channels(problem: ConvProblem, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Input and output channels, and how many groups, that some groups (or channels of the result) have."""
    channels, filters = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    if problem.groups > 1:
        return _members(units, channels), _members(units, filters), len(units)
    if problem.direction == "backward_input":
        return units, np.arange(filters), 1
    return np.arange(channels), units, 1


def _members(groups: np.ndarray, size: int) -> np.ndarray:
    return (groups[:, None] * size + np.arange(size)).reshape(-1)


def _tolerance(problem: Problem) -> float:
    """Relative to the largest result: rounding of a sum of n terms grows as sqrt(n), that of each term does not."""
    if isinstance(problem, PoolProblem):
        window: tuple[int, ...] = problem.pool.kernel_size
    elif problem.direction == "forward":
        window = problem.weight_shape[1:]
    elif problem.direction == "backward_input":
        window = (problem.out_channels // problem.groups, *problem.kernel_size)
    else:
        window = (problem.batch, *problem.conv_size)
    eps = float(np.finfo("float64" if problem.dtype == "float64" else "float32").eps)
    coarse = _TF32_EPS if getattr(problem, "precision", "ieee") == "tf32" else _STORED_EPS.get(problem.dtype, 0.0)
    return 32 * eps * math.sqrt(math.prod(window)) + 4 * coarse


def _compare(found: np.ndarray, expected: np.ndarray, tolerance: float) -> str | None:
    error = np.abs(found - expected)
    allowed = tolerance * np.nanmax(np.abs(expected), initial=1.0)
    bad = int((~(error <= allowed) & ~(np.isnan(found) & np.isnan(expected))).sum())
    if not bad:
        return None
    return f"{bad} of {error.size} results differ from the reference, by up to {np.nanmax(error, initial=0.0):.2g}"

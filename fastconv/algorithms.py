"""The list of algorithms. A new kernel is one file and one line here.

Every module in the list offers the same names:

``unsupported(problem) -> str | None``
    Why it cannot compute the problem, or None if it can.
``space(problem) -> list[dict[str, int]]``
    The parameters worth trying, at least one; the same names in each.
``cost(problem, params) -> float``
    Predicted time in nanoseconds on one thread: coarse, but comparable between algorithms.
``make(problem, params, threads) -> kernel``
    The kernel, to be compiled (or loaded) when it is first run; for convolutions and the gradients of their inputs a
    `fastconv.cpu.kernel.ConvKernel`, for those of their weights a `fastconv.cpu.weight_kernel.WeightKernel`,
    for pooling a `fastconv.cpu.pool_kernel.PoolKernel`.

One for GPUs of a single compute capability names that too, such as ``CAPABILITY = (9, 0)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from fastconv.problem import Problem

Params: TypeAlias = dict[str, int]

# In order of preference among equals; the last of each operation takes every problem.
_MODULES = {
    ("conv", "cpu", "direct"): "fastconv.cpu.direct",
    ("conv", "cpu", "im2col"): "fastconv.cpu.im2col",
    ("conv", "cpu", "tiled"): "fastconv.cpu.tiled",
    ("conv", "cpu", "two_pass"): "fastconv.cpu.two_pass",
    ("conv", "cpu", "sliding"): "fastconv.cpu.sliding",
    ("conv", "cpu", "depthwise"): "fastconv.cpu.depthwise",
    ("conv", "cpu", "reference"): "fastconv.reference",
    ("conv_backward_input", "cpu", "direct"): "fastconv.cpu.direct_input",
    ("conv_backward_input", "cpu", "im2col"): "fastconv.cpu.input_phases:by_im2col",
    ("conv_backward_input", "cpu", "tiled"): "fastconv.cpu.input_phases:by_tiled",
    ("conv_backward_input", "cpu", "depthwise"): "fastconv.cpu.input_phases:by_depthwise",
    ("conv_backward_input", "cpu", "reference"): "fastconv.reference_backward",
    ("conv_backward_weight", "cpu", "direct"): "fastconv.cpu.weight_direct",
    ("conv_backward_weight", "cpu", "im2col"): "fastconv.cpu.weight_im2col",
    ("conv_backward_weight", "cpu", "tiled"): "fastconv.cpu.weight_tiled",
    ("conv_backward_weight", "cpu", "depthwise"): "fastconv.cpu.weight_depthwise",
    ("conv_backward_weight", "cpu", "reference"): "fastconv.reference_backward",
    ("local", "cpu", "direct"): "fastconv.cpu.local",
    ("local", "cpu", "reference"): "fastconv.reference_local",
    ("local_backward_input", "cpu", "direct"): "fastconv.cpu.local_backward",
    ("local_backward_input", "cpu", "reference"): "fastconv.reference_local",
    ("local_backward_weight", "cpu", "direct"): "fastconv.cpu.local_backward",
    ("local_backward_weight", "cpu", "reference"): "fastconv.reference_local",
    ("pool", "cpu", "direct"): "fastconv.cpu.pool",
    ("pool", "cpu", "im2col"): "fastconv.cpu.pool_im2col",
    ("pool", "cpu", "reference"): "fastconv.reference",
    ("pool_backward_input", "cpu", "direct"): "fastconv.cpu.pool_backward",
    ("pool_backward_input", "cpu", "reference"): "fastconv.reference_backward",
    ("conv", "cuda", "mma"): "fastconv.cuda.mma",
    ("conv", "cuda", "wgmma"): "fastconv.cuda.wgmma",
    ("conv", "cuda", "mma_pool"): "fastconv.cuda.mma_pool:by_mma",
    ("conv", "cuda", "wgmma_pool"): "fastconv.cuda.mma_pool:by_wgmma",
    ("conv", "cuda", "mma_split"): "fastconv.cuda.mma_split:by_mma",
    ("conv", "cuda", "wgmma_split"): "fastconv.cuda.mma_split:by_wgmma",
    ("conv", "cuda", "tiled"): "fastconv.cuda.tiled",
    ("conv", "cuda", "tiled_pool"): "fastconv.cuda.tiled_pool",
    ("conv", "cuda", "tiled_split"): "fastconv.cuda.tiled_split",
    ("conv", "cuda", "depthwise"): "fastconv.cuda.depthwise",
    ("conv", "cuda", "grouped"): "fastconv.cuda.grouped",
    ("conv", "cuda", "direct"): "fastconv.cuda.direct",
    ("conv", "cuda", "two_pass"): "fastconv.cuda.two_pass",
    ("conv", "cuda", "reference"): "fastconv.cuda.reference",
    ("conv_backward_input", "cuda", "mma"): "fastconv.cuda.input_phases:by_mma",
    ("conv_backward_input", "cuda", "wgmma"): "fastconv.cuda.input_phases:by_wgmma",
    ("conv_backward_input", "cuda", "tiled"): "fastconv.cuda.input_phases:by_tiled",
    ("conv_backward_input", "cuda", "mma_split"): "fastconv.cuda.input_phases:by_mma_split",
    ("conv_backward_input", "cuda", "wgmma_split"): "fastconv.cuda.input_phases:by_wgmma_split",
    ("conv_backward_input", "cuda", "tiled_split"): "fastconv.cuda.input_phases:by_tiled_split",
    ("conv_backward_input", "cuda", "depthwise"): "fastconv.cuda.strip_phases:by_depthwise",
    ("conv_backward_input", "cuda", "grouped"): "fastconv.cuda.strip_phases:by_grouped",
    ("conv_backward_input", "cuda", "reference"): "fastconv.cuda.reference_backward",
    ("conv_backward_weight", "cuda", "mma"): "fastconv.cuda.mma_weight",
    ("conv_backward_weight", "cuda", "depthwise"): "fastconv.cuda.depthwise_weight",
    ("conv_backward_weight", "cuda", "tiled"): "fastconv.cuda.tiled_weight",
    ("conv_backward_weight", "cuda", "reference"): "fastconv.cuda.reference_backward",
    ("local", "cuda", "reference"): "fastconv.cuda.local",
    ("local_backward_input", "cuda", "reference"): "fastconv.cuda.local_backward",
    ("local_backward_weight", "cuda", "reference"): "fastconv.cuda.local_backward",
    ("pool", "cuda", "reference"): "fastconv.cuda.pool",
    ("pool_backward_input", "cuda", "reference"): "fastconv.cuda.pool_backward",
}


@dataclass(frozen=True)
class Candidate:
    """An algorithm with its parameters, as sorted (name, value) pairs."""

    algorithm: str
    params: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.algorithm, *(f"{name}={value}" for name, value in self.params)])


def names(operation: str, device: str = "cpu") -> list[str]:
    """Registered algorithms of an operation (`Problem.operation`) on a device, in order."""
    return [name for op, where, name in _MODULES if (op, where) == (operation, device)]


def module_of(problem: Problem, name: str) -> Any:
    """`module` for the operation and device of a problem."""
    return module(problem.operation, name, problem.device)


def module(operation: str, name: str, device: str = "cpu") -> Any:
    """The module of a registered algorithm, or an object in it that stands for one; imported on first use.

    Raises
    ------
    ValueError
        If no such algorithm is registered; lists those that are.
    """
    where, attribute = _path(operation, name, device)
    found = import_module(where)
    return getattr(found, attribute) if attribute else found


def source_of(problem: Problem, name: str) -> str:
    """Dotted name of the module that holds a registered algorithm for a problem. Errors as `module`."""
    return _path(problem.operation, name, problem.device)[0]


def _path(operation: str, name: str, device: str) -> tuple[str, str]:
    path = _MODULES.get((operation, device, name))
    if path is None:
        known = ", ".join(names(operation, device))
        raise ValueError(f"algorithm must be None or one of {known} for {operation}, got {name!r}")
    where, _, attribute = path.partition(":")
    return where, attribute


def unsupported(problem: Problem, name: str) -> str | None:
    """Why a registered algorithm cannot compute `problem` here, or None if it can: the problem, or the GPU."""
    code = module_of(problem, name)
    reason = code.unsupported(problem)
    if reason is None and problem.device == "cuda":
        reason = import_module("fastconv.cuda.properties").lacking(name, getattr(code, "CAPABILITY", None))
    return reason


def offered(problem: Problem, candidate: Candidate) -> bool:
    """Whether a candidate is one of those that its algorithm offers; to be asked where it comes from a file.

    Kernels trust their parameters.
    """
    known = candidate.algorithm in names(problem.operation, problem.device)
    if not known or unsupported(problem, candidate.algorithm) is not None:
        return False
    return dict(candidate.params) in module_of(problem, candidate.algorithm).space(problem)


def supporting(problem: Problem) -> list[str]:
    """Algorithms that can compute `problem`, in order."""
    return [name for name in names(problem.operation, problem.device) if unsupported(problem, name) is None]


def candidates(
    problem: Problem, algorithm: str | None = None, correction: Callable[[Candidate], float] | None = None
) -> list[Candidate]:
    """Everything worth trying for `problem`, best predicted first; the reference only if nothing else can.

    Parameters
    ----------
    problem : Problem
    algorithm : str, optional
        Consider this algorithm only.
    correction : callable, optional
        A factor for each candidate's predicted time, such as `fastconv.tuning.learn.correction`.

    Raises
    ------
    ValueError
        If `algorithm` is unknown or does not support the problem, or nothing does.
    """
    if algorithm is not None:
        reason = unsupported(problem, algorithm)
        if reason is not None:
            can = ", ".join(supporting(problem))
            raise ValueError(f"algorithm {algorithm!r} does not support {problem.descriptor}: {reason}; use {can}")
        chosen = [algorithm]
    else:
        chosen = supporting(problem)
        if not chosen:
            raise ValueError(f"no algorithm is registered for the {problem.operation} of {problem.descriptor}")
        chosen = [name for name in chosen if name != "reference"] or chosen
    found = []
    for name in chosen:
        code = module_of(problem, name)
        found += [(code.cost(problem, p), Candidate(name, tuple(sorted(p.items())))) for p in code.space(problem)]
    if correction is not None:
        found = [(cost * correction(candidate), candidate) for cost, candidate in found]
    return [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]


def workspace_bytes(problem: Problem, candidate: Candidate, threads: int) -> int:
    """Scratch memory in bytes of a call on so many threads. Nothing is compiled."""
    code = module_of(problem, candidate.algorithm)
    return code.make(problem, dict(candidate.params), threads).workspace_bytes


def predicted_ns(problem: Problem, candidate: Candidate) -> float:
    """The cost model's time for one thread, in nanoseconds."""
    return module_of(problem, candidate.algorithm).cost(problem, dict(candidate.params))

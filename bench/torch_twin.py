"""What PyTorch makes of a problem: the same operation on the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from candidates import AnyProblem

from fastconv.local_problem import LocalProblem
from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, PoolProblem

_ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu}


def twin(problem: AnyProblem, arrays: dict[str, np.ndarray], x: np.ndarray | None = None) -> list[np.ndarray]:
    """As `candidates.run`; `x` is the input of a pooling whose gradient is wanted."""
    given = {name: tensor(array) for name, array in arrays.items()}
    if isinstance(problem, PoolProblem):
        return _pool(problem, given, x)
    convolve = _local if isinstance(problem, LocalProblem) else _conv
    conv = problem.conv if isinstance(problem, LocalProblem) else problem
    if problem.direction == "forward":
        y = _ACTIVATIONS[conv.activation](convolve(conv, given["x"], given["weight"], given.get("bias")))
        return [(y if conv.pool is None else pooled(y, conv.pool)).numpy()]
    wanted = {"backward_input": ("x", problem.in_shape), "backward_weight": ("weight", problem.weight_shape)}
    name, shape = wanted[problem.direction]
    # The gradient does not depend on the other's values, which are finite: none of what they make of it counts.
    format = torch.channels_last if conv.memory_format == "channels_last" and name == "x" else torch.contiguous_format
    leaf = torch.zeros(shape, dtype=given["grad"].dtype).contiguous(memory_format=format).requires_grad_()
    convolve(conv, given.get("x", leaf), given.get("weight", leaf), None).backward(given["grad"])
    return [leaf.grad.numpy()]


def tensor(array: np.ndarray) -> Any:
    """An array as a tensor, with the same memory."""
    return torch.from_numpy(array)


def _conv(p: ConvProblem, x: Any, weight: Any, bias: Any) -> Any:
    (top, bottom), (left, right) = p.padding
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return F.conv2d(x, weight, bias, p.stride, padding, p.dilation, p.groups)


def _local(p: ConvProblem, x: Any, weight: Any, bias: Any) -> Any:
    """PyTorch has no such layer: the column matrix, times the weights of each pixel."""
    (top, _), (left, _) = p.padding
    columns = F.unfold(x, p.kernel_size, p.dilation, (top, left), p.stride)
    flat = weight.flatten(1, 3).flatten(2, 3)  # filter, tap, pixel
    y = (flat[None] * columns[:, None]).sum(2).unflatten(2, p.conv_size)
    return y if bias is None else y + bias


def pooled(x: Any, pool: Pool) -> Any:
    """A pooling without indices."""
    if pool.mode == "max":
        return F.max_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    if pool.mode == "avg":
        return F.avg_pool2d(x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad)
    return F.lp_pool2d(x, float(pool.norm_type), pool.kernel_size, pool.stride, pool.ceil_mode)


def _pool(problem: PoolProblem, given: dict[str, Any], x: np.ndarray | None) -> list[np.ndarray]:
    if problem.direction == "forward":
        if not problem.return_indices:
            return [pooled(given["x"], problem.pool).numpy()]
        p = problem.pool
        values, indices = F.max_pool2d(
            given["x"], p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode, return_indices=True
        )
        return [values.numpy(), indices.numpy()]
    leaf = tensor(x).requires_grad_()
    pooled(leaf, problem.pool).backward(given["grad"])
    return [leaf.grad.numpy()]

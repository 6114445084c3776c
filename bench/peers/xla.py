"""JAX on the CPU: layers under jit, in the problem's memory format."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, Problem
from peers import Ready, Unsupported


def jitted(p: Problem, arrays: list, threads: int) -> Ready:
    """Weights are constants of the compiled function. XLA starts a thread for each CPU that it is allowed."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    jax.config.update("jax_enable_x64", p.dtype == "float64")
    last = p.memory_format == "channels_last"
    first, *rest = (a.transpose(0, 2, 3, 1) if last and a is not None and a.shape in _images(p) else a for a in arrays)
    source = jax.device_put(np.ascontiguousarray(first))
    if isinstance(p, ConvProblem) and p.direction != "forward":
        raise Unsupported("gradients of convolutions: torch is the rival there")
    if p.direction == "forward":
        run = jax.jit(_forward(p, last, *rest))
    else:
        x = jax.device_put(np.ascontiguousarray(rest[0]))
        gradient = jax.jit(lambda x, grad: jax.vjp(lambda x: _pool(x, p.pool, last), x)[1](grad)[0])
        run = partial(gradient, x)

    def result() -> np.ndarray:
        y = np.asarray(run(source))
        return y.transpose(0, 3, 1, 2) if last else y

    return Ready(lambda: run(source).block_until_ready(), result)


def _images(p: Problem) -> tuple:
    return p.in_shape, p.out_shape


def _forward(p: Problem, last: bool, weight: Any = None, bias: Any = None) -> Callable:
    if not isinstance(p, ConvProblem):
        return lambda x: _pool(x, p.pool, last)
    names = ("NHWC", "OIHW", "NHWC") if last else ("NCHW", "OIHW", "NCHW")
    shape = (1, 1, 1, -1) if last else (1, -1, 1, 1)
    if p.activation not in (None, "relu"):
        raise Unsupported(f"activation {p.activation}")

    def conv(x):
        y = lax.conv_general_dilated(
            x, weight, p.stride, p.padding, rhs_dilation=p.dilation, dimension_numbers=names,
            feature_group_count=p.groups,
        )  # fmt: skip
        y = y if bias is None else y + bias.reshape(shape)
        y = jnp.maximum(y, 0) if p.activation else y
        return _pool(y, p.pool, last) if p.pool else y

    return conv


def _pool(x: Any, pool: Pool, last: bool) -> Any:
    def window(values: tuple, other: Any) -> tuple:
        return (other, *values, other) if last else (other, other, *values)

    pads = window(tuple((p, p) for p in pool.padding), (0, 0))
    how = (window(pool.kernel_size, 1), window(pool.stride, 1), pads)
    if pool.mode == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, *how)
    if pool.mode == "avg":
        return lax.reduce_window(x, 0.0, lax.add, *how) / np.prod(pool.kernel_size)
    if pool.norm_type == 2:
        return jnp.sqrt(lax.reduce_window(x * x, 0.0, lax.add, *how))
    raise Unsupported(f"norm {pool.norm_type}")

"""JAX on the CPU: ``lax.conv_general_dilated`` under jit, in the problem's memory format."""

from __future__ import annotations

import os

import jax
import numpy as np

from fastconv.problem import ConvProblem
from peers import Ready


def jitted(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """Weights are constants of the compiled function. XLA starts a thread for each CPU that it is allowed."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    last = p.memory_format == "channels_last"
    x, weight, bias = arrays
    source = jax.device_put(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x)
    names = ("NHWC", "OIHW", "NHWC") if last else ("NCHW", "OIHW", "NCHW")
    shape = (1, 1, 1, -1) if last else (1, -1, 1, 1)

    @jax.jit
    def run(x):
        y = jax.lax.conv_general_dilated(
            x, weight, p.stride, p.padding, rhs_dilation=p.dilation, dimension_numbers=names,
            feature_group_count=p.groups,
        )  # fmt: skip
        return y if bias is None else y + bias.reshape(shape)

    def result() -> np.ndarray:
        y = np.asarray(run(source))
        return y.transpose(0, 3, 1, 2) if last else y

    return Ready(lambda: run(source).block_until_ready(), result)

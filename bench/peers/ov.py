"""OpenVINO: a model of one layer, tuned for latency; weights are packed when it is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, Problem
from peers import Ready, Unsupported


def compiled(p: Problem, arrays: list, threads: int) -> Ready:
    """A compiled model in float32 with its input and output bound once."""
    if p.dtype != "float32" or p.direction != "forward":
        raise Unsupported("forward passes in float32 only")
    x, *constants = arrays
    source = ops.parameter(list(p.in_shape), np.float32)
    y = _conv(p, source, *constants) if isinstance(p, ConvProblem) else _pool(p.pool, source)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([y], [source]), "CPU", settings).create_infer_request()
    request.get_input_tensor().data[...] = x

    def result() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data.copy()

    return Ready(lambda: request.infer(share_outputs=True), result)


def _conv(p: ConvProblem, source: Any, weight: np.ndarray, bias: np.ndarray | None) -> Any:
    if p.activation not in (None, "relu"):
        raise Unsupported(f"activation {p.activation}")
    begins, ends = ([pad[i] for pad in p.padding] for i in (0, 1))
    if p.groups == 1:
        y = ops.convolution(source, weight, list(p.stride), begins, ends, list(p.dilation))
    else:
        grouped = weight.reshape(p.groups, -1, *weight.shape[1:])
        y = ops.group_convolution(source, grouped, list(p.stride), begins, ends, list(p.dilation))
    y = y if bias is None else ops.add(y, bias[None, :, None, None])
    y = ops.relu(y) if p.activation else y
    return _pool(p.pool, y) if p.pool else y


def _pool(pool: Pool, source: Any) -> Any:
    stride, pads, kernel = list(pool.stride), list(pool.padding), list(pool.kernel_size)
    if pool.mode == "max":
        return ops.max_pool(source, stride, list(pool.dilation), pads, pads, kernel).output(0)
    if pool.mode == "avg":
        return ops.avg_pool(source, stride, pads, pads, kernel, exclude_pad=False)
    raise Unsupported(f"pooling {pool.mode}")

"""OpenVINO: a model of one convolution, tuned for latency; weights are packed when it is compiled."""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13 as ops

from fastconv.problem import ConvProblem
from peers import Ready


def compiled(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """A compiled model in float32 with its input and output bound once."""
    x, weight, bias = arrays
    begins, ends = ([pad[i] for pad in p.padding] for i in (0, 1))
    source = ops.parameter(list(p.in_shape), np.float32)
    if p.groups == 1:
        y = ops.convolution(source, weight, list(p.stride), begins, ends, list(p.dilation))
    else:
        grouped = weight.reshape(p.groups, -1, *weight.shape[1:])
        y = ops.group_convolution(source, grouped, list(p.stride), begins, ends, list(p.dilation))
    if bias is not None:
        y = ops.add(y, bias[None, :, None, None])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([y], [source]), "CPU", settings).create_infer_request()
    request.get_input_tensor().data[...] = x

    def result() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data.copy()

    return Ready(request.infer, result)

"""ONNX Runtime: a model of one convolution, NCHW; weights are packed when the session is made."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fastconv.problem import ConvProblem
from peers import Ready


def session(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """A session with its input bound once."""
    x, weight, bias = arrays
    (top, bottom), (left, right) = p.padding
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    node = helper.make_node(
        "Conv", ["x", *constants], ["y"], pads=[top, left, bottom, right], strides=p.stride, dilations=p.dilation,
        group=p.groups,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "conv", [value("x", TensorProto.FLOAT, p.in_shape)], [value("y", TensorProto.FLOAT, p.out_shape)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bound = run.io_binding()
    bound.bind_cpu_input("x", np.ascontiguousarray(x))
    bound.bind_output("y", "cpu")

    def call():
        run.run_with_iobinding(bound)

    def result() -> np.ndarray:
        call()
        return bound.copy_outputs_to_cpu()[0]

    return Ready(call, result)

"""ONNX Runtime: a model of one layer, NCHW; weights are packed when the session is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, Problem
from peers import Ready, Unsupported

_POOLS = {"max": "MaxPool", "avg": "AveragePool", "lp": "LpPool"}


def session(p: Problem, arrays: list, threads: int) -> Ready:
    """A session with its input and output bound once."""
    if p.dtype != "float32" or p.direction != "forward":
        raise Unsupported("forward passes in float32 only")
    x, *constants = arrays
    nodes = _conv(p, constants) if isinstance(p, ConvProblem) else [_pool(p.pool, "x", "y")]
    named = zip("wb", constants, strict=False)  # a pooling has neither
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in named if array is not None]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "layer", [value("x", TensorProto.FLOAT, p.in_shape)], [value("y", TensorProto.FLOAT, p.out_shape)],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
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


def _conv(p: ConvProblem, constants: list) -> list[NodeProto]:
    """The convolution, activation and pooling in a row: session optimisation fuses what it can."""
    if p.activation not in (None, "relu"):
        raise Unsupported(f"activation {p.activation}")
    steps: list[tuple[str, dict[str, Any]]] = [("Conv", {
        "pads": _pads(p.padding), "strides": p.stride, "dilations": p.dilation, "group": p.groups,
    })]  # fmt: skip
    steps += [("Relu", {})] if p.activation else []
    names = ["x", *(f"step{i}" for i in range(len(steps) - 1)), "z" if p.pool else "y"]
    nodes = [helper.make_node(kind, [names[i]], [names[i + 1]], **how) for i, (kind, how) in enumerate(steps)]
    nodes[0].input.extend(name for name, array in zip("wb", constants, strict=True) if array is not None)
    return nodes + ([_pool(p.pool, "z", "y")] if p.pool else [])


def _pool(pool: Pool, source: str, target: str) -> NodeProto:
    how: dict[str, Any] = {"count_include_pad": 1} if pool.mode == "avg" else {}
    how |= {"p": round(pool.norm_type)} if pool.mode == "lp" else {}
    pads = _pads([(p, p) for p in pool.padding])
    return helper.make_node(
        _POOLS[pool.mode], [source], [target], kernel_shape=pool.kernel_size, strides=pool.stride, pads=pads, **how
    )


def _pads(padding: Any) -> list[int]:
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]

"""PyTorch, eager and with oneDNN's prepacked weights (what torch.compile's freezing calls)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
import vgg

from fastconv.pooling import Pool
from fastconv.problem import ConvProblem, PoolProblem, Problem
from peers import Ready, Unsupported


def _tensors(arrays: list[np.ndarray | None], threads: int, channels_last: bool) -> list[torch.Tensor | None]:
    torch.set_num_threads(threads)
    _inference()
    kind = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
    return [t.contiguous(memory_format=kind) if t is not None and t.dim() == 4 else t for t in tensors]


@cache
def _inference() -> None:
    """Enter inference mode for the rest of the process: as a decorator it would cost each call microseconds."""
    torch.inference_mode().__enter__()


def _ready(call) -> Ready:
    return Ready(call, lambda: call().numpy())


def _symmetric(problem: ConvProblem) -> list[int]:
    if any(begin != end for begin, end in problem.padding):
        raise ValueError(f"padding must be alike on both sides for torch, got {problem.padding}")
    return [begin for begin, _ in problem.padding]


def contiguous(p: Problem, arrays: list, threads: int) -> Ready:
    """What a call runs in eager mode, or autograd for a gradient; NCHW."""
    return _eager(p, arrays, threads, channels_last=False)


def channels_last(p: Problem, arrays: list, threads: int) -> Ready:
    """What a call runs in eager mode, or autograd for a gradient; channels-last."""
    return _eager(p, arrays, threads, channels_last=True)


def _eager(p: Problem, arrays: list, threads: int, channels_last: bool) -> Ready:
    if isinstance(p, PoolProblem):
        tensors = _tensors(arrays, threads, channels_last)
        return _pool(p.pool, *tensors) if p.direction == "forward" else _pool_gradient(p, *tensors)
    if p.direction != "forward":
        return _gradient(p, arrays, threads, channels_last)
    x, weight, bias = _tensors(arrays, threads, channels_last)
    options, after = (p.stride, _symmetric(p), p.dilation, p.groups), _after(p)
    if p.activation:
        return _ready(lambda: after(F.relu_(F.conv2d(x, weight, bias, *options))))
    return _ready(lambda: after(F.conv2d(x, weight, bias, *options)))


def _after(p: ConvProblem) -> Callable:
    if p.activation not in (None, "relu"):
        raise Unsupported(f"activation {p.activation}")
    return (lambda y: y) if p.pool is None else _pooling(p.pool)


def _pooling(pool: Pool) -> Callable:
    if pool.mode == "lp":
        return lambda y: F.lp_pool2d(y, pool.norm_type, pool.kernel_size, pool.stride)
    function = {"max": F.max_pool2d, "avg": F.avg_pool2d}[pool.mode]
    kernel, stride, padding = (list(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    return lambda y: function(y, kernel, stride, padding)


def prepacked(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """oneDNN with weights reordered once, on channels-last."""
    if p.dtype != "float32":
        raise Unsupported("float32 only")
    x, weight, bias = _tensors(arrays, threads, channels_last=True)
    padding, stride, dilation = _symmetric(p), list(p.stride), list(p.dilation)
    run, after = torch.ops.mkldnn._convolution_pointwise, _after(p)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(), padding, stride, dilation, p.groups, list(x.shape)
    )
    options = (padding, stride, dilation, p.groups, p.activation or "none", [], "")
    return _ready(lambda: after(run(x, packed, bias, *options)))


def _gradient(p: ConvProblem, arrays: list, threads: int, channels_last: bool) -> Ready:
    of_input = p.direction == "backward_input"
    missing = np.zeros(p.in_shape if of_input else p.weight_shape, p.dtype)  # its values do not matter
    x, weight, grad = (missing, arrays[1], arrays[0]) if of_input else (arrays[0], missing, arrays[1])
    x, weight, grad = _tensors([x, weight, grad], threads, channels_last)
    padding, stride, dilation = _symmetric(p), list(p.stride), list(p.dilation)
    run, wanted = torch.ops.aten.convolution_backward, [of_input, not of_input, False]
    options = (None, stride, padding, dilation, False, [0, 0], p.groups, wanted)
    return _ready(lambda: run(grad, x, weight, *options)[0 if of_input else 1])


def _pool(pool: Pool, x: torch.Tensor) -> Ready:
    run = _pooling(pool)
    return _ready(lambda: run(x))


def _pool_gradient(p: PoolProblem, grad: torch.Tensor, x: torch.Tensor) -> Ready:
    """Of a maximum, the forward pass has kept the indices."""
    window = [list(v) for v in (p.pool.kernel_size, p.pool.stride, p.pool.padding)]
    if p.pool.mode == "avg":
        average = torch.ops.aten.avg_pool2d_backward
        return _ready(lambda: average(grad, x, *window, False, True, None))
    maximum, (_, indices) = torch.ops.aten.max_pool2d_with_indices_backward, F.max_pool2d_with_indices(x, *window)
    return _ready(lambda: maximum(grad, x, *window, [1, 1], False, indices))


def training_contiguous(threads: int) -> Ready:
    """A training step of the network in `vgg`, NCHW."""
    return _training(threads, torch.contiguous_format)


def training_channels_last(threads: int) -> Ready:
    """A training step of the network in `vgg`, channels-last."""
    return _training(threads, torch.channels_last)


def _training(threads: int, memory_format: torch.memory_format) -> Ready:
    torch.set_num_threads(threads)
    net, loss = vgg.network(torch.nn), torch.nn.CrossEntropyLoss()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in vgg.seeded().state_dict().items()})
    net.to(memory_format=memory_format)
    for layer in net:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = True  # as in torchvision's networks: it saves torch a pass over memory
    images, classes = (torch.from_numpy(array) for array in vgg.batch())
    images = images.contiguous(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=vgg.LEARNING_RATE, momentum=vgg.MOMENTUM)

    def step() -> float:
        value = loss(net(images), classes)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return Ready(step, lambda: np.array([step() for _ in range(vgg.CHECKED_STEPS)]))

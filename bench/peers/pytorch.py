"""PyTorch, eager and with oneDNN's prepacked weights (what torch.compile's freezing calls)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import vgg

from fastconv.problem import ConvProblem, PoolProblem
from peers import Ready


def _tensors(arrays: list[np.ndarray | None], threads: int, channels_last: bool) -> list[torch.Tensor | None]:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    kind = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
    return [t.contiguous(memory_format=kind) if t is not None and t.dim() == 4 else t for t in tensors]


def _ready(call) -> Ready:
    return Ready(torch.inference_mode()(call), lambda: call().numpy())


def _symmetric(problem: ConvProblem) -> list[int]:
    if any(begin != end for begin, end in problem.padding):
        raise ValueError(f"padding must be alike on both sides for torch, got {problem.padding}")
    return [begin for begin, _ in problem.padding]


def eager(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """``torch.nn.functional.conv2d`` in the problem's memory format."""
    x, weight, bias = _tensors(arrays, threads, p.memory_format == "channels_last")
    padding = _symmetric(p)
    return _ready(lambda: F.conv2d(x, weight, bias, p.stride, padding, p.dilation, p.groups))


def prepacked(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """oneDNN with weights reordered once, on channels-last."""
    x, weight, bias = _tensors(arrays, threads, channels_last=True)
    padding, stride, dilation = _symmetric(p), list(p.stride), list(p.dilation)
    run = torch.ops.mkldnn._convolution_pointwise
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(), padding, stride, dilation, p.groups, list(x.shape)
    )
    return _ready(lambda: run(x, packed, bias, padding, stride, dilation, p.groups, "none", [], ""))


def gradient_contiguous(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """The gradient that autograd computes, NCHW."""
    return _gradient(p, arrays, threads, channels_last=False)


def gradient_channels_last(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """The gradient that autograd computes, channels-last."""
    return _gradient(p, arrays, threads, channels_last=True)


def _gradient(p: ConvProblem, arrays: list, threads: int, channels_last: bool) -> Ready:
    of_input = p.direction == "backward_input"
    missing = np.zeros(p.in_shape if of_input else p.weight_shape, p.dtype)  # its values do not matter
    x, weight, grad = (missing, arrays[1], arrays[0]) if of_input else (arrays[0], missing, arrays[1])
    x, weight, grad = _tensors([x, weight, grad], threads, channels_last)
    padding, stride, dilation = _symmetric(p), list(p.stride), list(p.dilation)
    run, wanted = torch.ops.aten.convolution_backward, [of_input, not of_input, False]
    options = (None, stride, padding, dilation, False, [0, 0], p.groups, wanted)
    return _ready(lambda: run(grad, x, weight, *options)[0 if of_input else 1])


def pool(p: PoolProblem, arrays: list, threads: int) -> Ready:
    """``max_pool2d`` or ``avg_pool2d``."""
    (x,) = _tensors(arrays, threads, p.memory_format == "channels_last")
    function = {"max": F.max_pool2d, "avg": F.avg_pool2d}[p.pool.mode]
    kernel, stride, padding = (list(v) for v in (p.pool.kernel_size, p.pool.stride, p.pool.padding))
    return _ready(lambda: function(x, kernel, stride, padding))


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

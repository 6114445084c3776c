"""fastconv itself, and the FMA peak of the machine."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import vgg

import fastconv
from fastconv.dispatch import choose
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.tuning.peak import fma_gflops
from peers import Ready


def _ready(call, note) -> Ready:
    return Ready(call, call, str(note))


def plan(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """A plan, with the output array given."""
    numba.set_num_threads(threads)
    x, weight, bias = arrays
    prepared = fastconv.plan(
        x.shape, weight, bias, p.stride, p.padding, p.dilation, p.groups, memory_format=p.memory_format
    )
    out = prepared(x)
    return _ready(lambda: prepared(x, out=out), f"{prepared.choice.candidate} ({prepared.choice.source})")


def conv2d(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """``fastconv.conv2d`` with the weights as they are; allocates its result, as torch does."""
    numba.set_num_threads(threads)
    x, weight, bias = arrays
    choice = choose(replace(p, raw=True))
    return _ready(
        lambda: fastconv.conv2d(x, weight, bias, p.stride, p.padding, p.dilation, p.groups),
        f"{choice.candidate} ({choice.source})",
    )


def gradient(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """``fastconv.grad.conv2d_input`` or ``fastconv.grad.conv2d_weight``."""
    numba.set_num_threads(threads)
    first, second = arrays
    options, choice = (p.stride, p.padding, p.dilation, p.groups), choose(p)
    note = f"{choice.candidate} ({choice.source})"
    if p.direction == "backward_input":
        return _ready(lambda: fastconv.grad.conv2d_input(p.in_shape, second, first, *options), note)
    return _ready(lambda: fastconv.grad.conv2d_weight(first, p.weight_shape, second, *options), note)


def pool(p: PoolProblem, arrays: list, threads: int) -> Ready:
    """``fastconv.max_pool2d`` or ``fastconv.avg_pool2d``."""
    numba.set_num_threads(threads)
    (x,) = arrays
    function = {"max": fastconv.max_pool2d, "avg": fastconv.avg_pool2d}[p.pool.mode]
    choice = choose(p)
    return _ready(
        lambda: function(x, p.pool.kernel_size, p.pool.stride, p.pool.padding),
        f"{choice.candidate} ({choice.source})",
    )


def training(threads: int) -> Ready:
    """A training step of the network in `vgg`, on channels-last images."""
    numba.set_num_threads(threads)
    net, loss, (images, classes) = vgg.seeded(), fastconv.nn.CrossEntropyLoss(), vgg.batch()
    optimizer = fastconv.optim.SGD(net.parameters(), lr=vgg.LEARNING_RATE, momentum=vgg.MOMENTUM)

    def step() -> float:
        value = loss(net(images), classes)
        net.backward(loss.backward(), input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
        return value

    return Ready(step, lambda: np.array([step() for _ in range(vgg.CHECKED_STEPS)]))


def peak(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """Not a convolution: its "time" is what the problem's flops would take at the measured FMA peak."""
    del arrays
    fma_gflops(p.dtype, threads)
    return Ready(lambda: None, lambda: [], sample=lambda: [p.flops / fma_gflops(p.dtype, threads) / 1e9])

"""fastconv itself, and the FMA peak of the machine."""

from __future__ import annotations

import os
from dataclasses import replace

import numba
import numpy as np
import vgg

import fastconv
from fastconv.dispatch import choose
from fastconv.problem import ConvProblem, PoolProblem, Problem
from fastconv.tuning.peak import fma_gflops
from peers import Ready


def _ready(call, note) -> Ready:
    return Ready(call, call, str(note))


def plan(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """A plan, with the output array given."""
    numba.set_num_threads(threads)
    x, weight, bias = arrays
    prepared = fastconv.plan(
        x.shape, weight, bias, p.stride, p.padding, p.dilation, p.groups, memory_format=p.memory_format,
        activation=p.activation, pool=p.pool,
    )  # fmt: skip
    out = prepared(x)
    return _ready(lambda: prepared(x, out=out), f"{prepared.choice.candidate} ({prepared.choice.source})")


def untuned(p: ConvProblem, arrays: list, threads: int) -> Ready:
    """A plan as the cost model chooses it, from nothing measured on this machine."""
    os.environ["FASTCONV_WISDOM"] = os.devnull
    return plan(p, arrays, threads)


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
    """A function such as ``fastconv.max_pool2d``, or its gradient."""
    numba.set_num_threads(threads)
    choice = choose(p)
    note, window = f"{choice.candidate} ({choice.source})", (p.pool.kernel_size, p.pool.stride, p.pool.padding)
    if p.direction == "backward_input":
        grad, x = arrays
        if p.pool.mode == "avg" and p.out_size == (1, 1):  # only `out` says which format is meant; torch sees it in x
            return _ready(lambda: fastconv.grad.avg_pool2d(grad, x.shape, *window, out=np.empty_like(x)), note)
        if p.pool.mode == "avg":
            return _ready(lambda: fastconv.grad.avg_pool2d(grad, x.shape, *window), note)
        _, indices = fastconv.max_pool2d(x, *window, return_indices=True)
        return _ready(lambda: fastconv.grad.max_pool2d(grad, indices, x.shape, *window), note)
    (x,) = arrays
    if p.pool.mode == "lp":
        return _ready(lambda: fastconv.lp_pool2d(x, p.pool.norm_type, *window[:2]), note)
    function = {"max": fastconv.max_pool2d, "avg": fastconv.avg_pool2d}[p.pool.mode]
    return _ready(lambda: function(x, *window), note)


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


def peak(p: Problem, arrays: list, threads: int) -> Ready:
    """Not a layer: its "time" is what the problem's flops would take at the measured FMA peak."""
    del arrays
    fma_gflops(p.dtype, threads)
    return Ready(lambda: None, lambda: [], sample=lambda: [p.flops / fma_gflops(p.dtype, threads) / 1e9])


def copy(p: Problem, arrays: list, threads: int) -> Ready:
    """Not a layer: a copy that moves the bytes of its arrays, each once, so from the same level of cache."""
    del arrays
    numba.set_num_threads(threads)
    source = np.ones(p.bytes // 2, np.uint8)
    target = np.empty_like(source)
    step = -(-source.size // threads)
    _copy(source, target, step)
    return Ready(lambda: _copy(source, target, step), lambda: [])


@numba.njit(parallel=True)
def _copy(source, target, step):
    for part in numba.prange(-(-source.size // step)):
        target[part * step : (part + 1) * step] = source[part * step : (part + 1) * step]

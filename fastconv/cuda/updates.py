"""Steps of the optimizers on a GPU, in place: one pass over value, gradient and state."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.elementwise import THREADS, blocks_for
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import cuda, int64, numbers, pointer, types

SGD, SGD_MOMENTUM, SGD_NESTEROV, ADAGRAD, RMSPROP, RMSPROP_CENTERED, ADAM, ADAM_AMSGRAD = range(8)
RULES = range(8)  # numbered as on the CPU


class Constants(NamedTuple):
    """Of a step; each rule reads its own (see `update`)."""

    rate: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    gain: float = 0.0
    decay: float = 0.0
    share: float = 0.0
    eps: float = 0.0
    correction: float = 0.0


def update(rule: int, value: DeviceArray, grad: DeviceArray, *state: DeviceArray | None, **constants: float) -> None:
    """Do one step of a rule, on the stream of `value`, without waiting for it.

    Parameters
    ----------
    rule : int
        One of the constants above.
    value : DeviceArray, contiguous
        float32 or float64; changed in place.
    grad : DeviceArray, contiguous
        Of the same shape and dtype.
    *state : DeviceArray, contiguous
        What the rule remembers, changed in place: up to three arrays like `value`, None for one not needed.
    **constants : float
        ``rate`` (the step size), ``weight_decay``, ``eps``; ``momentum`` and ``gain`` (of the old and the
        new term of the first mean), ``decay`` and ``share`` (of the mean of squares), ``correction`` (which
        the root of the second mean is divided by).
    """
    wanted = Constants(**{name: float(constant) for name, constant in constants.items()})
    launch = Launch(update_kernel(rule, value.dtype), blocks_for(value.size), (value.size, wanted))
    launch((value, grad, *state, *[None] * (3 - len(state))), value.stream)


@cache
def update_kernel(rule: int, dtype: str) -> Kernel:
    """The kernel of `update`."""
    real = getattr(types, dtype)

    def update_values(values, grads, first, second, third, count, c):
        i, step = cuda.grid(1), cuda.gridsize(1)
        while i < count:
            value = values[i]
            grad = grads[i]
            if c.weight_decay != 0:  # 0 * inf would be NaN
                grad += c.weight_decay * value
            if rule == SGD:
                move = grad
            elif rule in (SGD_MOMENTUM, SGD_NESTEROV):
                mean = c.momentum * first[i] + c.gain * grad
                first[i] = mean
                move = grad + c.momentum * mean if rule == SGD_NESTEROV else mean
            elif rule == ADAGRAD:
                total = first[i] + grad * grad
                first[i] = total
                move = grad / (math.sqrt(total) + c.eps)
            elif rule in (RMSPROP, RMSPROP_CENTERED):
                square = c.decay * first[i] + c.share * grad * grad
                first[i] = square
                if rule == RMSPROP_CENTERED:
                    mean = third[i] + c.share * (grad - third[i])
                    third[i] = mean
                    square -= mean * mean
                move = grad / (math.sqrt(square) + c.eps)
                if c.momentum != 0:
                    move = c.momentum * second[i] + move
                    second[i] = move
            else:
                mean = first[i] + c.gain * (grad - first[i])
                square = c.decay * second[i] + c.share * grad * grad
                first[i] = mean
                second[i] = square
                if rule == ADAM_AMSGRAD:
                    square = max(square, third[i])
                    third[i] = square
                move = mean / (math.sqrt(square) / c.correction + c.eps)
            values[i] = value - c.rate * move
            i += step

    array = pointer(real)
    kinds = (array, array, array, array, array, int64, numbers(real, Constants))
    return Kernel(update_values, kinds, (rule, dtype), threads=THREADS)

"""Steps of the optimizers, in place: one pass over value, gradient and state."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.cpu.elementwise import CHUNK
from fastconv.cpu.launch import run_jobs
from fastconv.cpu.memory import get, put
from fastconv.jit import record_kernel, source_stamp

SGD, SGD_MOMENTUM, SGD_NESTEROV, ADAGRAD, RMSPROP, RMSPROP_CENTERED, ADAM, ADAM_AMSGRAD = range(8)

_ARRAYS = ("value", "grad", "first", "second", "third")
_CONSTANTS = ("rate", "weight_decay", "momentum", "gain", "decay", "share", "eps", "correction")


def update(rule: int, value: np.ndarray, grad: np.ndarray, *state: np.ndarray | None, **constants: float) -> None:
    """Do one step of a rule.

    Parameters
    ----------
    rule : int
        One of the constants above.
    value : contiguous array
        Changed in place.
    grad : array
        Of the same shape and dtype.
    *state : contiguous arrays
        What the rule remembers, changed in place: up to three arrays like `value`, None for one not needed.
    **constants : float
        ``rate`` (the step size), ``weight_decay``, ``eps``; ``momentum`` and ``gain`` (of the old and the
        new term of the first mean), ``decay`` and ``share`` (of the mean of squares), ``correction`` (which
        the root of the second mean is divided by).
    """
    grad = np.ascontiguousarray(grad)
    record = np.zeros(1, _record_dtype(value.dtype.char))
    for name, array in zip(_ARRAYS, (value, grad, *state), strict=False):
        record[name] = 0 if array is None else array.ctypes.data
    for name, constant in constants.items():
        record[name] = constant
    record["count"] = value.size
    run_jobs(_compiled(rule, value.dtype.char, source_stamp()), record, -(-value.size // CHUNK))


@cache
def _record_dtype(char: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in (*_ARRAYS, "count")] + [(name, char) for name in _CONSTANTS])


@cache
def _compiled(RULE: int, char: str, stamp: str) -> Any:
    ITEM = np.dtype(char).itemsize

    @record_kernel(_record_dtype(char))
    def step(_scratch, record, index):
        _ = stamp
        g = carray(record, 1)[0]
        start = index * CHUNK
        values, grads, first = g.value + ITEM * start, g.grad + ITEM * start, g.first + ITEM * start
        second, third = g.second + ITEM * start, g.third + ITEM * start
        rate, weight_decay, momentum, gain = g.rate, g.weight_decay, g.momentum, g.gain
        decay, share, eps, correction = g.decay, g.share, g.eps, g.correction
        for i in range(min(CHUNK, g.count - start)):
            value = get(values, i, ITEM)
            grad = get(grads, i, ITEM)
            if weight_decay != 0:  # 0 * inf would be NaN
                grad += weight_decay * value
            if RULE == SGD:
                move = grad
            elif RULE in (SGD_MOMENTUM, SGD_NESTEROV):
                mean = momentum * get(first, i, ITEM) + gain * grad
                put(first, i, mean, ITEM)
                move = grad + momentum * mean if RULE == SGD_NESTEROV else mean
            elif RULE == ADAGRAD:
                total = get(first, i, ITEM) + grad * grad
                put(first, i, total, ITEM)
                move = grad / (np.sqrt(total) + eps)
            elif RULE in (RMSPROP, RMSPROP_CENTERED):
                square = decay * get(first, i, ITEM) + share * grad * grad
                put(first, i, square, ITEM)
                if RULE == RMSPROP_CENTERED:
                    mean = get(third, i, ITEM) + share * (grad - get(third, i, ITEM))
                    put(third, i, mean, ITEM)
                    square = square - mean * mean
                move = grad / (np.sqrt(square) + eps)
                if momentum != 0:
                    move = momentum * get(second, i, ITEM) + move
                    put(second, i, move, ITEM)
            else:
                mean = get(first, i, ITEM) + gain * (grad - get(first, i, ITEM))
                square = decay * get(second, i, ITEM) + share * grad * grad
                put(first, i, mean, ITEM)
                put(second, i, square, ITEM)
                if RULE == ADAM_AMSGRAD:
                    square = max(square, get(third, i, ITEM))
                    put(third, i, square, ITEM)
                move = mean / (np.sqrt(square) / correction + eps)
            put(values, i, value - rate * move, ITEM)

    return step

"""Calls of layers (made, run forward and backward), losses, optimizers, and of what takes networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np

from fastconv import nn, optim
from hostile import functions, windows
from hostile.arrays import random_array
from hostile.call import Call, build
from hostile.judge import plain

AUTO = "as the output"  # stands for a gradient that fits
Made = tuple[dict[str, Any], tuple[int, ...]]  # arguments of a layer, and the shape of an input that fits
_KINDS = {
    "in_channels": "number", "out_channels": "number", "kernel_size": "pair", "stride": "pair", "padding": "pair",
    "dilation": "pair", "groups": "number", "bias": "flag", "dtype": "word", "output_padding": "pair",
    "input_size": "pair", "in_features": "number", "out_features": "number", "num_features": "number", "eps": "real",
    "momentum": "real", "affine": "flag", "track_running_stats": "flag", "norm_type": "real", "ceil_mode": "flag",
    "count_include_pad": "flag", "output_size": "pair", "p": "real", "negative_slope": "real", "dim": "number",
    "start_dim": "number", "end_dim": "number", "reduction": "word", "label_smoothing": "real",
}  # fmt: skip


def layer(kind: type, make: Callable[[Random], Made], compared: bool = True) -> Callable[[Random], Call]:
    """Calls that make a layer, run it forward and backward, and give output, gradients and parameters' gradients."""

    def run(x: Any, grad_output: Any, training: bool, **options: Any) -> tuple:
        made = kind(**options, rng=np.random.default_rng(0)) if _draws(kind) else kind(**options)
        return _both_ways(made.train(training), x, grad_output)

    def oracle(x: Any, grad_output: Any, training: bool, **options: Any) -> tuple | None:
        """The same in float64 on contiguous arrays."""
        wide = {"dtype": "float64"} if "dtype" in inspect.signature(kind).parameters else {}
        if np.size(x) > 1 << 14:
            return None
        grad = plain(grad_output) if training and not isinstance(grad_output, str) else AUTO
        with np.errstate(all="ignore"):
            return run(plain(x), grad, training, **{**options, **wide})

    run.__qualname__ = kind.__name__

    def generate(r: Random) -> Call:
        options, shape = make(r)
        dtype = options.get("dtype", r.choice(("float32", "float64")))
        given = {"x": random_array(r, shape, dtype, special=False), "grad_output": AUTO, "training": r.random() < 0.7}
        kinds = {"x": "array", "grad_output": "array", **{name: _KINDS[name] for name in options}}
        right = oracle if compared else None
        call = build(run, given | options, kinds, r, right, also=tuple(inspect.signature(kind).parameters))
        if any(isinstance(v, (int, float, np.number)) and not abs(v) < 1e30 for v in call.arguments.values()):
            call.oracle = None  # infinite in float32
        return call

    return generate


def _draws(kind: type) -> bool:
    return "rng" in inspect.signature(kind).parameters


def _both_ways(made: Any, x: Any, grad_output: Any) -> tuple:
    output = made(x)
    if not made.recording:
        return (output,)
    grad = np.ones_like(output) if isinstance(grad_output, str) and grad_output == AUTO else grad_output
    of_input = made.backward(grad)
    return (output, of_input, *(p.grad for p in made.parameters()))


def _conv(r: Random) -> Made:
    s = functions.sizes(r)
    given = {"in_channels": s.x[1], "out_channels": s.weight[0], "kernel_size": s.weight[2:], "groups": s.groups}
    return {**given, **s.options, "bias": r.random() < 0.5, "dtype": s.dtype}, s.x


def _transposed(r: Random) -> Made:
    s = functions.sizes(r)
    given = {"in_channels": s.weight[0], "out_channels": s.x[1], "kernel_size": s.weight[2:], "groups": s.groups}
    pads = tuple(
        min(p, (d * (f - 1)) // 2)
        for p, d, f in zip(s.options["padding"], s.options["dilation"], s.weight[2:], strict=True)
    )
    return {**given, **s.options, "padding": pads, "bias": r.random() < 0.5, "dtype": s.dtype}, s.y


def _local(r: Random) -> Made:
    s = functions.sizes(r, grouped=False)
    given = {"in_channels": s.x[1], "out_channels": s.weight[0], "kernel_size": s.weight[2:], "input_size": s.x[2:]}
    return {**given, **s.options, "bias": r.random() < 0.5, "dtype": s.dtype}, s.x


def _linear(r: Random) -> Made:
    given = {"in_features": r.randrange(1, 9), "out_features": r.randrange(1, 9), "bias": r.random() < 0.5}
    return {**given, "dtype": r.choice(("float32", "float64"))}, (r.choice((0, 1, 3)), given["in_features"])


def _norm(r: Random) -> Made:
    channels = r.randrange(1, 6)
    given = {"num_features": channels, "eps": 1e-5, "momentum": r.choice((0.1, None)), "affine": r.random() < 0.7}
    given |= {"track_running_stats": r.random() < 0.7, "dtype": r.choice(("float32", "float64"))}
    return given, (r.randrange(2, 4), channels, r.randrange(1, 5), r.randrange(1, 5))


def _pooled(mode: str) -> Callable[[Random], Made]:
    def make(r: Random) -> Made:
        given, pool = windows.window(r, mode)
        return given, windows._image(r, pool)

    return make


def _adaptive(r: Random) -> Made:
    shape = (r.randrange(3), r.randrange(1, 4), r.randrange(1, 8), r.randrange(1, 8))
    return {"output_size": r.choice((1, (2, 3), (None, 2), 5))}, shape


def _any_shape(r: Random) -> tuple[int, ...]:
    return tuple(r.choice((0, 1, 2, 3, 5)) for _ in range(r.randrange(1, 5)))


def _softmax(r: Random) -> Made:
    shape = tuple(r.randrange(1, 5) for _ in range(r.randrange(1, 5)))
    return {"dim": r.randrange(-len(shape), len(shape))}, shape


def _flatten(r: Random) -> Made:
    shape = tuple(r.randrange(1, 4) for _ in range(r.randrange(2, 5)))
    first = r.randrange(len(shape))
    return {"start_dim": first, "end_dim": r.choice((-1, r.randrange(first, len(shape))))}, shape


def loss(kind: type) -> Callable[[Random], Call]:
    """Calls of a loss, forward and backward."""

    def run(output: Any, target: Any, **options: Any) -> tuple:
        made = kind(**options)
        return made(output, target), made.backward()

    def oracle(output: Any, target: Any, **options: Any) -> tuple:
        return run(plain(output), plain(target), **options)

    run.__qualname__ = kind.__name__

    def generate(r: Random) -> Call:
        rows, classes, dtype = r.choice((0, 1, 4)), r.randrange(1, 6), r.choice(("float32", "float64"))
        given: dict[str, Any] = {"output": random_array(r, (rows, classes), dtype, special=False)}
        if kind is nn.CrossEntropyLoss:
            given["target"] = np.random.default_rng(r.getrandbits(30)).integers(0, classes, rows)
            given["label_smoothing"] = r.choice((0.0, 0.1))
        else:
            given["target"] = random_array(r, (rows, classes), dtype, special=False)
        given["reduction"] = r.choice(("mean", "sum", "none"))
        kinds = {"output": "array", "target": "array", **{n: _KINDS[n] for n in given if n in _KINDS}}
        return build(run, given, kinds, r, oracle, also=tuple(inspect.signature(kind).parameters))

    return generate


def optimizer(kind: type, **good: Any) -> Callable[[Random], Call]:
    """Calls that make an optimizer and take two steps."""

    def run(value: Any, grad: Any, **options: Any) -> tuple:
        parameter = nn.Parameter(value)
        made = kind([parameter], **options)
        for _ in range(2):
            parameter.grad = None
            parameter.accumulate(grad)
            made.step()
        made.load_state_dict(made.state_dict())
        return (np.array(parameter.value),)

    def oracle(value: Any, grad: Any, **options: Any) -> tuple:
        return run(plain(value), plain(grad), **options)

    run.__qualname__ = kind.__name__

    def generate(r: Random) -> Call:
        shape, dtype = tuple(r.randrange(1, 5) for _ in range(r.randrange(1, 4))), r.choice(("float32", "float64"))
        given = {
            "value": random_array(r, shape, dtype, special=False),
            "grad": random_array(r, shape, dtype, special=False),
        }
        kinds = {"value": "array", "grad": "array"}
        for name, value in good.items():
            given[name] = value
            kinds[name] = {bool: "flag", tuple: "pair"}.get(type(value), "real")
        call = build(run, given, kinds, r, oracle, also=tuple(inspect.signature(kind).parameters))
        call.oracle = oracle if call.tame else None  # 1e300 is infinite in float32
        return call

    return generate


LAYERS: Mapping[str, Callable[[Random], Call]] = {
    "Conv2d": layer(nn.Conv2d, _conv),
    "ConvTranspose2d": layer(nn.ConvTranspose2d, _transposed),
    "LocallyConnected2d": layer(nn.LocallyConnected2d, _local),
    "Linear": layer(nn.Linear, _linear),
    "BatchNorm2d": layer(nn.BatchNorm2d, _norm, compared=False),  # where the variance is next to nothing, all is noise
    "MaxPool2d": layer(nn.MaxPool2d, _pooled("max")),
    "AvgPool2d": layer(nn.AvgPool2d, _pooled("avg")),
    "LPPool2d": layer(nn.LPPool2d, _pooled("lp"), compared=False),
    "AdaptiveAvgPool2d": layer(nn.AdaptiveAvgPool2d, _adaptive),
    "ReLU": layer(nn.ReLU, lambda r: ({}, _any_shape(r))),
    "ReLU6": layer(nn.ReLU6, lambda r: ({}, _any_shape(r))),
    "LeakyReLU": layer(nn.LeakyReLU, lambda r: ({"negative_slope": 0.1}, _any_shape(r))),
    "Dropout": layer(nn.Dropout, lambda r: ({"p": r.choice((0.0, 0.5, 1.0))}, _any_shape(r)), compared=False),
    "Softmax": layer(nn.Softmax, _softmax),
    "Flatten": layer(nn.Flatten, _flatten),
    "MSELoss": loss(nn.MSELoss),
    "CrossEntropyLoss": loss(nn.CrossEntropyLoss),
    "SGD": optimizer(optim.SGD, lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False),
    "Adam": optimizer(optim.Adam, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, amsgrad=False),
    "Adagrad": optimizer(
        optim.Adagrad, lr=0.1, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-8
    ),
    "RMSprop": optimizer(optim.RMSprop, lr=0.1, alpha=0.9, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False),
}

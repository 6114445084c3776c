"""Calls of the functions of arrays: convolutions, pooling, columns and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv import grad
from hostile.arrays import random_array
from hostile.call import Call, build
from hostile.judge import plain, whole, wholes

_CONV = {"stride": "pair", "padding": "pair", "dilation": "pair"}
_ARRAYS = ("x", "weight", "bias", "grad_output", "input", "output", "indices")
_NUMBERS = ("stride", "padding", "dilation", "output_padding", "kernel_size", "input_size", "weight_size")
_REST = {"algorithm": "word", "out": "array"}


class Sizes(NamedTuple):
    """Of a small convolution that fits."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    options: dict[str, Any]
    groups: int
    dtype: str


def sizes(r: Random, grouped: bool = True) -> Sizes:
    """A small convolution that fits."""
    groups = r.choice((1, 1, 2, 3)) if grouped else 1
    channels, filters = groups * r.randrange(1, 4), groups * r.randrange(1, 4)
    kernel, stride = [r.randrange(1, 4) for _ in "hw"], [r.randrange(1, 4) for _ in "hw"]
    padding, dilation = [r.randrange(3) for _ in "hw"], [r.randrange(1, 3) for _ in "hw"]
    spans = [d * (f - 1) + 1 for d, f in zip(dilation, kernel, strict=True)]
    image = [max(1, span - 2 * p) + r.randrange(5) for span, p in zip(spans, padding, strict=True)]
    axes = zip(image, padding, spans, stride, strict=True)
    out = [(n + 2 * p - span) // s + 1 for n, p, span, s in axes]
    batch = r.choice((1, 1, 2, 3, 0))
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    return Sizes(
        (batch, channels, *image), (filters, channels // groups, *kernel), (batch, filters, *out), options, groups,
        r.choice(("float32", "float32", "float64")),
    )  # fmt: skip


def _unbatched(r: Random, s: Sizes) -> bool:
    return s.x[0] == 1 and r.random() < 0.3


def _out(r: Random, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """An `out` now and then."""
    return {"out": np.zeros(shape, dtype)} if r.random() < 0.3 else {}


def _algorithm(r: Random, *names: str) -> dict[str, Any]:
    """An algorithm that takes every problem, now and then."""
    return {"algorithm": r.choice(("reference", *names))} if r.random() < 0.1 else {}


def by_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function on contiguous float64 copies with Python's integers, by the plain loops of the oracle."""

    def oracle(**given: Any) -> Any:
        given = {**given, "algorithm": "reference", "out": None}
        for name, value in given.items():
            if name in _ARRAYS:
                given[name] = None if value is None else plain(value)
            elif name in _NUMBERS:
                given[name] = wholes(value)
            elif name == "groups":
                given[name] = whole(value)
        if any(np.size(a) > 1 << 16 for a in given.values() if isinstance(a, np.ndarray)):
            return None
        return function(**given)

    return oracle


def _conv(function: Callable[..., Any]) -> Callable[[Random], Call]:
    oracle = by_reference(function)

    def generate(r: Random) -> Call:
        s = sizes(r)
        first = 1 if _unbatched(r, s) else 0
        x = random_array(r, s.x[first:], s.dtype)
        given = {"x": x, "weight": random_array(r, s.weight, s.dtype, special=False), "groups": s.groups, **s.options}
        if r.random() < 0.5:
            given["bias"] = random_array(r, s.weight[:1], s.dtype, special=False)
        kinds = {"x": "array", "weight": "array", "groups": "number", "bias": "array", **_CONV, **_REST}
        kinds |= {"activation": "word", "pool": "any"}
        given |= {"activation": r.choice((None, None, "relu", "relu6", "leaky_relu"))}
        given |= _algorithm(r) | _out(r, s.y[first:], s.dtype) | {"pool": None}
        return build(function, given, kinds, r, oracle)

    return generate


conv2d = _conv(fastconv.conv2d)


def _conv1d(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: Any = 1, **rest: Any) -> Any:  # fmt: skip
    one = [v[0] if isinstance(v, (tuple, list)) and len(v) == 1 else v for v in (stride, padding, dilation)]
    options = {"stride": (1, whole(one[0])), "dilation": (1, whole(one[2]))}
    if not isinstance(one[1], str):
        pads = wholes(one[1]) if isinstance(one[1], (tuple, list)) else (whole(one[1]),) * 2
        one[1] = ((0, 0), pads)
    x, weight = plain(x), plain(weight)
    y = by_reference(fastconv.conv2d)(
        x=x[..., None, :], weight=weight[:, :, None, :], bias=bias, padding=one[1], groups=groups,
        activation=rest.get("activation"), **options,
    )  # fmt: skip
    return None if y is None else y[..., 0, :]


def conv1d(r: Random) -> Call:
    s = sizes(r)
    first = 1 if _unbatched(r, s) else 0
    given = {
        "x": random_array(r, (*s.x[first:2], s.x[3]), s.dtype), "groups": s.groups,
        "weight": random_array(r, (*s.weight[:2], s.weight[3]), s.dtype, special=False),
        **{name: value[1] for name, value in s.options.items()},
        **_algorithm(r), **_out(r, (*s.y[first:2], s.y[3]), s.dtype),
    }  # fmt: skip
    kinds = {"x": "array", "weight": "array", "groups": "number", "bias": "array", **_CONV, **_REST}
    return build(
        fastconv.conv1d, {**given, "bias": None, "activation": None}, {**kinds, "activation": "word"}, r, _conv1d
    )


def conv_transpose2d(r: Random) -> Call:
    s = sizes(r)
    first = 1 if _unbatched(r, s) else 0
    extra = tuple(r.randrange(max(u, d)) for u, d in zip(s.options["stride"], s.options["dilation"], strict=True))
    axes = zip(
        s.y[2:], s.options["stride"], s.options["padding"], s.options["dilation"], s.weight[2:], extra, strict=True
    )
    size = [(n - 1) * u - 2 * p + d * (f - 1) + 1 + e for n, u, p, d, f, e in axes]
    given = {
        "x": random_array(r, s.y[first:], s.dtype), "weight": random_array(r, s.weight, s.dtype, special=False),
        "groups": s.groups, "output_padding": extra, "bias": None, **s.options, **_algorithm(r),
    }  # fmt: skip
    if r.random() < 0.5:
        given["bias"] = random_array(r, (s.x[1],), s.dtype, special=False)
    kinds = {"x": "array", "weight": "array", "groups": "number", "bias": "array", "output_padding": "pair", **_CONV}
    fits = min(size) >= 1
    given |= _out(r, (*s.x[:2], *size)[first:], s.dtype) if fits else {}
    oracle = by_reference(fastconv.conv_transpose2d)
    return build(fastconv.conv_transpose2d, given, {**kinds, **_REST}, r, oracle, tame=fits)


def locally_connected2d(r: Random) -> Call:
    s = sizes(r, grouped=False)
    first = 1 if _unbatched(r, s) else 0
    given = {
        "x": random_array(r, s.x[first:], s.dtype), "bias": None, **s.options, **_algorithm(r),
        "weight": random_array(r, (*s.weight, *s.y[2:]), s.dtype, special=False), **_out(r, s.y[first:], s.dtype),
    }  # fmt: skip
    if r.random() < 0.5:
        given["bias"] = random_array(r, s.y[1:], s.dtype, special=False)
    kinds = {"x": "array", "weight": "array", "bias": "array", **_CONV, **_REST}
    return build(fastconv.locally_connected2d, given, kinds, r, by_reference(fastconv.locally_connected2d))


def _case(r: Random, local: bool) -> tuple[Any, int, tuple[int, ...]]:
    """Sizes, the first axis that arrays have, and the shape of the weights."""
    s = sizes(r, grouped=not local)
    return s, 1 if _unbatched(r, s) else 0, (*s.weight, *s.y[2:]) if local else s.weight


def gradient_of_input(function: Callable[..., Any], local: bool) -> Callable[[Random], Call]:
    oracle = by_reference(function)

    def generate(r: Random) -> Call:
        s, first, weight = _case(r, local)
        given = {
            "input_size": s.x[first:], "weight": random_array(r, weight, s.dtype, special=False),
            "grad_output": random_array(r, s.y[first:], s.dtype), **s.options, **_algorithm(r),
            **_out(r, s.x[first:], s.dtype), **({} if local else {"groups": s.groups}),
        }  # fmt: skip
        kinds = {"input_size": "shape", "weight": "array", "grad_output": "array", **_CONV, **_REST}
        return build(function, given, kinds | ({} if local else {"groups": "number"}), r, oracle)

    return generate


def gradient_of_weight(function: Callable[..., Any], local: bool) -> Callable[[Random], Call]:
    oracle = by_reference(function)

    def generate(r: Random) -> Call:
        s, first, weight = _case(r, local)
        given = {
            "input": random_array(r, s.x[first:], s.dtype), "weight_size": weight,
            "grad_output": random_array(r, s.y[first:], s.dtype, special=False), **s.options, **_algorithm(r),
            **_out(r, weight, s.dtype), **({} if local else {"groups": s.groups}),
        }  # fmt: skip
        kinds = {"weight_size": "shape", "input": "array", "grad_output": "array", **_CONV, **_REST}
        return build(function, given, kinds | ({} if local else {"groups": "number"}), r, oracle)

    return generate


def conv2d_bias(r: Random) -> Call:
    s = sizes(r)
    given = {"grad_output": random_array(r, s.y[1 if _unbatched(r, s) else 0 :], s.dtype)}

    def oracle(grad_output: Any) -> Any:
        with np.errstate(all="ignore"):
            return plain(grad_output).sum(axis=(-1, -2) if np.ndim(grad_output) == 3 else (0, 2, 3))

    return build(grad.conv2d_bias, given, {"grad_output": "array"}, r, oracle)


FUNCTIONS: Mapping[Callable[..., Any], Callable[[Random], Call]] = {
    fastconv.conv2d: conv2d,
    fastconv.conv1d: conv1d,
    fastconv.conv_transpose2d: conv_transpose2d,
    fastconv.locally_connected2d: locally_connected2d,
    grad.conv2d_input: gradient_of_input(grad.conv2d_input, local=False),
    grad.conv2d_weight: gradient_of_weight(grad.conv2d_weight, local=False),
    grad.conv2d_bias: conv2d_bias,
    grad.locally_connected2d_input: gradient_of_input(grad.locally_connected2d_input, local=True),
    grad.locally_connected2d_weight: gradient_of_weight(grad.locally_connected2d_weight, local=True),
}

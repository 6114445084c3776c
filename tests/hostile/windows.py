"""Calls of pooling, of its gradients, and of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from random import Random
from typing import Any

import numpy as np

import fastconv
from fastconv import grad
from hostile.arrays import random_array
from hostile.call import Call, build
from hostile.functions import by_reference
from hostile.judge import plain, wholes

_KINDS = {
    "kernel_size": "pair", "stride": "pair", "padding": "pair", "dilation": "pair", "ceil_mode": "flag",
    "count_include_pad": "flag", "return_indices": "flag", "norm_type": "real", "algorithm": "word", "out": "array",
}  # fmt: skip
_LARGE_POWER = 20


def window(r: Random, mode: str) -> tuple[dict[str, Any], fastconv.Pool]:
    """Arguments of a pooling, and what they mean."""
    kernel, stride = r.choice(((2, 2), (3, 3), (3, 2), (1, 1))), r.choice(((1, 1), (2, 2), (2, 3)))
    given: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "ceil_mode": r.random() < 0.3}
    if mode != "lp":
        given["padding"] = tuple(r.randrange(f // 2 + 1) for f in kernel)
    if mode == "max":
        given["dilation"] = r.choice(((1, 1), (1, 1), (2, 2)))
    if mode == "avg":
        given["count_include_pad"] = r.random() < 0.5
    if mode == "lp":
        given["norm_type"] = r.choice((1.0, 2.0, 2, 3.0))
    return given, fastconv.Pool(mode, **given)


def _image(r: Random, pool: fastconv.Pool) -> tuple[int, ...]:
    spans = [d * (f - 1) + 1 for d, f in zip(pool.dilation, pool.kernel_size, strict=True)]
    return (r.choice((1, 1, 2, 0)), r.choice((1, 2, 3, 17)), *(span + r.randrange(6) for span in spans))


def _case(r: Random, mode: str) -> tuple[dict[str, Any], fastconv.Pool, tuple[int, ...], int, str]:
    """A window as arguments and as a `Pool`, the shape of images, the first axis that arrays have, and a dtype."""
    given, pool = window(r, mode)
    shape = _image(r, pool)
    return given, pool, shape, 1 if shape[0] == 1 and r.random() < 0.3 else 0, r.choice(("float32", "float64"))


def _with_powers(oracle: Callable[..., Any]) -> Callable[..., Any]:
    """No answer for large powers, which overflow in float32 long before they do in the oracle's float64."""
    return lambda norm_type, **others: oracle(norm_type=norm_type, **others) if norm_type <= _LARGE_POWER else None


def _of(mode: str, function: Callable[..., Any]) -> Callable[[Random], Call]:
    oracle = _with_powers(by_reference(function)) if mode == "lp" else by_reference(function)

    def generate(r: Random) -> Call:
        given, pool, shape, first, dtype = _case(r, mode)
        given["x"] = (
            np.abs(random_array(r, shape[first:], dtype)) if mode == "lp" else random_array(r, shape[first:], dtype)
        )
        if mode == "max":
            given["return_indices"] = r.random() < 0.4
        if r.random() < 0.3:
            given["out"] = np.zeros((*shape[:2], *pool.output_size(shape[2:]))[first:], dtype)
        if r.random() < 0.2:
            given["algorithm"] = "reference"
        kinds = {name: _KINDS[name] for name in given if name != "x"}
        return build(function, given, {"x": "array", **kinds}, r, oracle)

    return generate


def _global(function: Callable[..., Any]) -> Callable[[Random], Call]:
    def generate(r: Random) -> Call:
        shape = tuple(r.randrange(1, 6) for _ in range(r.choice((3, 4))))
        given: dict[str, Any] = {"x": random_array(r, shape, r.choice(("float32", "float64")))}
        if r.random() < 0.3:
            given["out"] = np.zeros((*shape[:-2], 1, 1), given["x"].dtype)
        kinds = {"x": "small", "out": "array", "algorithm": "word"}  # a sum of 2**59 elements is right, but not soon
        return build(function, {**given, "algorithm": None}, kinds, r, by_reference(function))

    return generate


def _gradient(mode: str, function: Callable[..., Any]) -> Callable[[Random], Call]:
    oracle = _with_powers(by_reference(function)) if mode == "lp" else by_reference(function)

    def generate(r: Random) -> Call:
        given, pool, shape, first, dtype = _case(r, mode)
        out = (*shape[:2], *pool.output_size(shape[2:]))
        given["grad_output"] = random_array(r, out[first:], dtype)
        kinds = {"grad_output": "array"}
        if mode == "lp":
            x = np.abs(random_array(r, shape, dtype, special=False)) + 0.5
            y = fastconv.lp_pool2d(x, given["norm_type"], pool.kernel_size, pool.stride, ceil_mode=pool.ceil_mode)
            given |= {"input": x[0] if first else x, "output": y[0] if first else y}
            kinds |= {"input": "array", "output": "array"}
        else:
            given["input_size"] = shape[first:]
            kinds["input_size"] = "shape"
        if mode == "max":
            plane = shape[2] * shape[3]
            low, high = (0, plane) if r.random() < 0.5 else (-plane, 2 * plane)
            given["indices"] = np.random.default_rng(r.getrandbits(30)).integers(low, high, out[first:])
            kinds["indices"] = "array"
            for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"):
                given.pop(name)  # with a window, only indices inside it have a meaning
        if r.random() < 0.3:
            given["out"] = np.zeros(shape[first:], dtype)
        kinds |= {name: _KINDS[name] for name in given if name in _KINDS}
        return build(function, given, kinds, r, oracle)

    return generate


def max_gradient_with_window(r: Random) -> Call:
    """With the window that the indices are of, or with hostile indices, which must not be written to elsewhere."""
    given, pool = window(r, "max")
    shape = _image(r, pool)
    x = random_array(r, shape, "float32", special=False)
    values, indices = fastconv.max_pool2d(x, **given, return_indices=True)
    good = r.random() < 0.5
    if not good and indices.size:
        indices = np.random.default_rng(r.getrandbits(30)).choice(
            np.array([-(2**63), -5, -1, 0, 1, 7, 2**31, 2**62, 2**63 - 1]), indices.shape
        )
    given |= {"grad_output": random_array(r, values.shape, "float32"), "indices": indices, "input_size": shape}
    kinds = {"grad_output": "array", "indices": "array", "input_size": "shape"}
    kinds |= {name: _KINDS[name] for name in given if name in _KINDS}
    oracle = by_reference(grad.max_pool2d) if good else None
    call = build(grad.max_pool2d, given, kinds, r, oracle)
    if oracle and not call.tame:  # spoilt indices or windows no longer belong together
        call.oracle = None
    return call


def max_gradient(r: Random) -> Call:
    return (_max_gradient if r.random() < 0.6 else max_gradient_with_window)(r)


_max_gradient = _gradient("max", grad.max_pool2d)


def unfold(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """`im2col` by slicing."""
    image = plain(x)
    image = image if image.ndim == 4 else image[None]
    k, d, p, s = (v if isinstance(v, tuple) else (v, v) for v in map(wholes, (kernel_size, dilation, padding, stride)))
    if max(p) > 1000:
        return None
    padded = np.pad(image, ((0, 0), (0, 0), (p[0], p[0]), (p[1], p[1])))
    high, wide = ((n - e * (f - 1) - 1) // u + 1 for n, e, f, u in zip(padded.shape[2:], d, k, s, strict=True))
    columns = np.empty((*image.shape[:2], k[0] * k[1], high * wide))
    for i, j in product(range(k[0]), range(k[1])):
        part = padded[:, :, i * d[0] :, j * d[1] :][:, :, :: s[0], :: s[1]][:, :, :high, :wide]
        columns[:, :, i * k[1] + j] = part.reshape(*image.shape[:2], high * wide)
    matrix = columns.reshape(len(image), image.shape[1] * k[0] * k[1], high * wide)
    return matrix if np.ndim(x) == 4 else matrix[0]


def _columns(r: Random) -> tuple[dict[str, Any], tuple[int, ...]]:
    kernel, dilation = [r.randrange(1, 4) for _ in "hw"], [r.randrange(1, 3) for _ in "hw"]
    padding, stride = [r.randrange(3) for _ in "hw"], [r.randrange(1, 4) for _ in "hw"]
    image = [d * (f - 1) + 1 + r.randrange(5) for d, f in zip(dilation, kernel, strict=True)]
    names = {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}
    return {n: tuple(v) for n, v in names.items()}, (r.choice((1, 2, 0)), r.randrange(1, 4), *image)


def im2col(r: Random) -> Call:
    given, shape = _columns(r)
    first = 1 if shape[0] == 1 and r.random() < 0.4 else 0
    kinds = {"x": "array", **dict.fromkeys(given, "pair")}
    given["x"] = random_array(r, shape[first:], r.choice(("float32", "float64")))
    return build(fastconv.im2col, given, kinds, r, unfold)


def col2im(r: Random) -> Call:
    given, shape = _columns(r)
    first = 1 if shape[0] == 1 and r.random() < 0.4 else 0
    rows = unfold(np.zeros(shape[first:]), **given)
    kinds = {"columns": "array", "output_size": "pair", **dict.fromkeys(given, "pair")}
    given |= {"columns": random_array(r, rows.shape, r.choice(("float32", "float64")), special=False)}

    def oracle(columns: Any, output_size: Any, **options: Any) -> Any:
        """The adjoint: the sum over all columns of the images that they are windows of."""
        matrix = plain(columns)
        batched = matrix.ndim == 3
        matrix = matrix if batched else matrix[None]
        k = wholes(options["kernel_size"])
        size = wholes(output_size)
        size, taps = size if isinstance(size, tuple) else (size, size), k[0] * k[1] if isinstance(k, tuple) else k * k
        if np.prod(size, dtype=float) * matrix.shape[0] * matrix.shape[1] > 1 << 12:
            return None
        channels = matrix.shape[1] // taps
        places = np.arange(1.0, size[0] * size[1] + 1).reshape(1, 1, *size)  # which pixel each element comes from
        where = unfold(places, **options)[0].astype(int)
        out = np.zeros((len(matrix), channels, size[0] * size[1] + 1))
        for n, c in product(range(len(matrix)), range(channels)):
            np.add.at(out[n, c], where, matrix[n, c * taps : (c + 1) * taps])
        image = out[:, :, 1:].reshape(len(matrix), channels, *size)
        return image if batched else image[0]

    return build(fastconv.col2im, {**given, "output_size": shape[2:]}, kinds, r, oracle)


FUNCTIONS: Mapping[Callable[..., Any], Callable[[Random], Call]] = {
    fastconv.max_pool2d: _of("max", fastconv.max_pool2d),
    fastconv.avg_pool2d: _of("avg", fastconv.avg_pool2d),
    fastconv.lp_pool2d: _of("lp", fastconv.lp_pool2d),
    fastconv.global_avg_pool2d: _global(fastconv.global_avg_pool2d),
    fastconv.global_max_pool2d: _global(fastconv.global_max_pool2d),
    fastconv.im2col: im2col,
    fastconv.col2im: col2im,
    grad.max_pool2d: max_gradient,
    grad.avg_pool2d: _gradient("avg", grad.avg_pool2d),
    grad.lp_pool2d: _gradient("lp", grad.lp_pool2d),
}

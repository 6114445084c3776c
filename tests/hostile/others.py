"""Calls of everything else: plans, problems, images, files, summaries and networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import fastconv
from fastconv import nn, optim
from hostile import functions, values, windows
from hostile.arrays import random_array
from hostile.call import Call, build
from hostile.judge import plain, wholes


def plan(r: Random) -> Call:
    """A plan, and a call of it: `x` and `out` are those of `Plan.__call__`."""
    s = functions.sizes(r)
    first = 1 if s.x[0] == 1 and r.random() < 0.3 else 0
    given: dict[str, Any] = {
        "x_shape": s.x, "weight": random_array(r, s.weight, s.dtype, special=False), "bias": None, **s.options,
        "groups": s.groups, "memory_format": r.choice(("contiguous", "channels_last")), "activation": "relu",
        "algorithm": None, "max_workspace": None, "x": random_array(r, s.x[first:], s.dtype),
        "dtype": None, "pool": None,
    }  # fmt: skip
    if r.random() < 0.3:
        given["out"] = np.zeros(s.y[first:], s.dtype)
    if r.random() < 0.5:
        given["bias"] = random_array(r, s.weight[:1], s.dtype, special=False)
    kinds = {
        "x_shape": "shape", "weight": "array", "bias": "array", "stride": "pair", "padding": "pair", "dilation": "pair",
        "groups": "number", "memory_format": "word", "activation": "word", "algorithm": "word", "x": "array",
        "max_workspace": "number", "out": "array", "dtype": "word", "pool": "any",
    }  # fmt: skip

    def oracle(x_shape: Any, memory_format: Any, max_workspace: Any, dtype: Any, out: Any = None, **rest: Any) -> Any:
        return functions.by_reference(fastconv.conv2d)(**rest)

    return build(_planned, given, kinds, r, oracle, also=("max_workspace", "x_shape", "memory_format"))


def _planned(
    x_shape: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, memory_format: Any,
    activation: Any, algorithm: Any, max_workspace: Any, dtype: Any, pool: Any, x: Any, out: Any = None,
) -> Any:  # fmt: skip
    made = fastconv.plan(
        x_shape, weight, bias, stride, padding, dilation, groups, dtype=dtype, memory_format=memory_format,
        activation=activation, pool=pool, algorithm=algorithm, max_workspace=max_workspace,
    )  # fmt: skip
    assert str(made.explain()).startswith(made.problem.descriptor)
    return made(x, out)


def conv_output_size(r: Random) -> Call:
    given = {"W": r.randrange(1, 20), "F": r.randrange(1, 4), "padding": r.randrange(3), "stride": r.randrange(1, 4)}
    given["W"] += 4
    kinds = {"W": "number", "F": "number", "padding": "pair", "stride": "number", "dilation": "number"}

    def oracle(W: Any, F: Any, padding: Any, stride: Any, dilation: Any) -> int:
        pads = wholes(padding) if isinstance(padding, (tuple, list)) else (int(padding),) * 2
        return (int(W) + sum(pads) - int(dilation) * (int(F) - 1) - 1) // int(stride) + 1

    also = ("kernel_size", "kernel")  # what layers call F
    return build(fastconv.conv_output_size, given | {"dilation": 1}, kinds, r, oracle, also=also)


def pool(r: Random) -> Call:
    mode = r.choice(("max", "avg", "lp"))
    given, _ = windows.window(r, mode)
    kinds = {"mode": "word", **{name: windows._KINDS[name] for name in given}}
    return build(fastconv.Pool, {"mode": mode, **given}, kinds, r)


def conv_problem(r: Random) -> Call:
    s = functions.sizes(r)
    given = {
        "x_shape": s.x, "weight_shape": s.weight, "groups": s.groups, **s.options, "dtype": s.dtype, "bias": False,
        "memory_format": "contiguous", "activation": None, "direction": "forward", "device": "cpu", "precision": "ieee",
        "pool": None, "raw": False,
    }  # fmt: skip
    kinds = {
        "x_shape": "shape", "weight_shape": "shape", "groups": "number", "stride": "pair", "padding": "pair",
        "dilation": "pair", "dtype": "word", "memory_format": "word", "activation": "word", "direction": "word",
        "device": "word", "precision": "word", "pool": "any",
    }  # fmt: skip
    also = (*given, "x", "weight", "batch", "channels", "height", "width", "filters", "kernel_size")
    return build(_described(fastconv.ConvProblem.create), given, kinds, r, also=also)


def pool_problem(r: Random) -> Call:
    given = {"batch": 1, "channels": 3, "in_size": (7, 8), "dtype": "float32", "memory_format": "contiguous"}
    given |= {"pool": fastconv.Pool("max", 2), "direction": "forward", "return_indices": False, "device": "cpu"}
    kinds = {
        "batch": "number", "channels": "number", "in_size": "pair", "dtype": "word", "memory_format": "word",
        "direction": "word", "device": "word", "pool": "any",
    }  # fmt: skip
    also = (*given, "height", "width", "descriptor")
    return build(_described(fastconv.PoolProblem), given, kinds, r, also=also)


def _described(make: Callable[..., Any]) -> Callable[..., Any]:
    def run(**given: Any) -> bool:
        problem = make(**given)
        return fastconv.parse(problem.descriptor) == problem or problem.descriptor

    run.__qualname__ = make.__qualname__
    return run


_PARTS = ("n1c3h8w8k4r3s3", "p1", "u2", "d2", "g1", "_f32", "_f64", "_nchw", "_nhwc", "_bias", "_relu", "_max2u2",
          "_lp2u2n3", "_avg3ceil", "_", "9" * 30, "k0", ".", "1.2.3", "n1c3h8w8_max2u2", "nan", "_lp2n1e400", "é", "-1",
          "9" * 5000, "_wgrad", "_cuda", "_tf32", "_indices", "_raw", "r0", "٣")  # fmt: skip


def parse(r: Random) -> Call:
    good = r.choice(("n1c3h8w8k4r3s3p1_f32_nhwc_bias_relu", "n1c3h8w8_max2u2", "n2c6h9w8k10r3s3p1g2_bias_relu_max2u2"))
    call = build(fastconv.parse, {"descriptor": good}, {"descriptor": "any"}, r, also=("p", "k", "n"))
    if not call.tame and r.random() < 0.7:
        call.arguments["descriptor"] = "".join(r.choice(_PARTS) for _ in range(r.randrange(1, 6)))
    return call


def from_images(r: Random) -> Call:
    shape = (r.choice((0, 1, 2)), r.randrange(1, 6), r.randrange(1, 6), r.randrange(1, 5))
    kind = r.choice(("float32", "float64", "uint8"))
    images = (random_array(r, shape, "float64") * 50).astype(kind) if kind != "uint8" else (
        np.random.default_rng(r.getrandbits(30)).integers(0, 256, shape, np.uint8)
    )  # fmt: skip
    given: dict[str, Any] = {
        "images": images,
        "mean": r.choice((None, 0.5)),
        "std": r.choice((None, 2.0)),
        "dtype": None,
    }
    if r.random() < 0.3:
        given["out"] = np.zeros((shape[0], shape[3], *shape[1:3]), "float32" if kind == "uint8" else kind)
    kinds = {"images": "array", "mean": "any", "std": "any", "dtype": "word", "out": "array"}

    def oracle(images: Any, mean: Any, std: Any, dtype: Any, out: Any = None) -> Any:
        pixels = np.asarray(images)
        scaled = pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
        of = [np.float64(default if v is None else v) for v, default in ((mean, 0), (std, 1))]
        return np.moveaxis((scaled - of[0]) / of[1], -1, -3)

    return build(fastconv.from_images, given, kinds, r, oracle)


def random_crop(r: Random) -> Call:
    shape = (r.choice((0, 1, 2)), r.randrange(1, 4), r.randrange(2, 7), r.randrange(2, 7))
    given: dict[str, Any] = {
        "x": random_array(r, shape, r.choice(("float32", "float64"))),
        "size": (2, 2),
        "padding": 1,
    }
    if r.random() < 0.3:
        given["out"] = np.zeros((*shape[:2], 2, 2), given["x"].dtype)
    kinds = {"x": "array", "size": "pair", "padding": "pair", "rng": "any", "out": "array"}

    def oracle(x: Any, size: Any, padding: Any, rng: Any = None, out: Any = None) -> Any:
        x, size, pads = plain(x), wholes(size), wholes(padding)
        size, pads = (v if isinstance(v, tuple) else (v, v) for v in (size, pads))
        if max(pads) > 100:
            return None
        images, rng = (x if x.ndim == 4 else x[None]), np.random.default_rng(5)
        room = [n + 2 * p - s for n, p, s in zip(images.shape[2:], pads, size, strict=True)]
        tops, lefts = (rng.integers(0, most, len(images), endpoint=True) for most in room)
        padded = np.pad(images, ((0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2))
        places = zip(padded, tops, lefts, strict=True)
        parts = [p[:, t : t + size[0], q : q + size[1]] for p, t, q in places]
        whole = np.array(parts).reshape(*images.shape[:2], *size)
        return whole if x.ndim == 4 else whole[0]

    call = build(fastconv.random_crop, given | {"rng": np.random.default_rng(5)}, kinds, r, oracle)
    if not isinstance(call.arguments["rng"], np.random.Generator):
        call.oracle = None
    return call


def random_horizontal_flip(r: Random) -> Call:
    shape = (r.choice((0, 1, 2)), r.randrange(1, 4), r.randrange(1, 7), r.randrange(1, 7))
    given: dict[str, Any] = {"x": random_array(r, shape, r.choice(("float32", "float64"))), "p": r.choice((0.0, 1.0))}
    if r.random() < 0.3:
        given["out"] = np.zeros(shape, given["x"].dtype)
    kinds = {"x": "array", "p": "real", "rng": "any", "out": "array"}

    def oracle(x: Any, p: Any, rng: Any = None, out: Any = None) -> Any:
        return {0.0: plain(x), 1.0: plain(x)[..., ::-1]}.get(float(p))

    return build(fastconv.random_horizontal_flip, given | {"rng": None}, kinds, r, oracle)


def save_and_load(r: Random) -> Call:
    arrays = {"a": random_array(r, (2, 3), "float32"), "b.c": np.arange(3)}

    def run(state_dict: Any, path: Any) -> tuple:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / path if isinstance(path, str) and "/" not in path and "\0" not in path else path
            fastconv.save(state_dict, where)
            return tuple(np.array(v) for _, v in sorted(fastconv.load(where).items()))

    run.__qualname__ = "save_and_load"
    given = {"state_dict": arrays, "path": r.choice(("x.npz", "x.safetensors"))}
    call = build(run, given, {"state_dict": "any", "path": "word"}, r, also=("values", "names"))
    if isinstance(call.arguments["state_dict"], dict) and call.tame:
        call.oracle = lambda state_dict, path: tuple(state_dict.values())
    return call


def damaged_file(r: Random) -> Call:
    """`load` of a file in which bytes were changed, or that ends early."""
    kind = r.choice((".npz", ".safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{kind}"
        fastconv.save({"a": np.ones((2, 3), np.float32)}, path)
        data = bytearray(path.read_bytes())
    for _ in range(r.randrange(4)):
        data[r.randrange(len(data))] = r.randrange(256)
    data = data[: r.randrange(len(data)) if r.random() < 0.3 else None]

    def run(content: bytes) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"x{kind}"
            path.write_bytes(content)
            return fastconv.load(path)

    run.__qualname__ = "load"
    return Call(run, {"content": bytes(data)}, frozenset({"path", "x", "npz", "safetensors"}), tame=False)


def network() -> nn.Sequential:
    """A small one with every kind of place for something to go wrong."""
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, rng=rng), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3, rng=rng),
    )  # fmt: skip


def _of_network(function: Callable[..., Any], good: dict[str, Any], kinds: dict[str, str], name: str = "model",
                also: tuple[str, ...] = ()) -> Callable[[Random], Call]:  # fmt: skip
    def generate(r: Random) -> Call:
        given = {name: network(), **good}
        given |= {n: random_array(r, v, "float32", special=False) for n, v in good.items() if n == "image"}
        return build(function, given, {name: "any", **kinds}, r, also=also)

    return generate


def gradcheck(r: Random) -> Call:
    layer = nn.Conv2d(1, 1, 2, dtype="float64", rng=np.random.default_rng(0))
    given = {"layer_or_function": layer, "inputs": random_array(r, (1, 1, 3, 3), "float64", special=False), "eps": 1e-6}
    given |= {"atol": 1e-5, "rtol": 1e-3}
    kinds = {"layer_or_function": "any", "inputs": "small", "eps": "real", "atol": "real", "rtol": "real"}
    return build(fastconv.gradcheck, given, kinds, r, also=("x", "weight", "kernel_size"))


_WORDS = (
    "INPUT",
    "CONV",
    "RELU",
    "POOL",
    "POOL?",
    "FC",
    "->",
    "[",
    "]",
    "*2",
    "*0",
    "*",
    " ",
    "é",
    "*99999999999",
    "\n",
)


def convnet(r: Random) -> Call:
    given = {
        "pattern": "INPUT -> [CONV -> RELU -> POOL]*2 -> FC",
        "input": (1, 8, 8),
        "channels": 2,
        "classes": 3,
        "hidden": 4,
    }
    kinds = {
        "pattern": "any",
        "input": "shape",
        "channels": "pair",
        "classes": "number",
        "hidden": "number",
        "dtype": "word",
    }
    also = ("layer", "a", "POOL", "FC", "INPUT", "CONV", "RELU", *"[]*")
    call = build(nn.convnet, given | {"dtype": "float32"}, kinds, r, also=also)
    if not call.tame and r.random() < 0.5:
        call.arguments["pattern"] = "INPUT ->" + "".join(r.choice(_WORDS) for _ in range(r.randrange(1, 9))) + "-> FC"
    return call


def containers(r: Random) -> Call:
    def run(modules: Any, x: Any) -> Any:
        made = r.choice((nn.Sequential, nn.Residual))(modules)
        output = made(x)
        made.backward(np.ones_like(output))
        return output

    run.__qualname__ = "Sequential"
    given = {"modules": {"a": nn.ReLU(), "b": nn.LeakyReLU()}, "x": random_array(r, (2, 3), "float32", special=False)}
    return build(run, given, {"modules": "any", "x": "array"}, r, also=("branches",))


def load_state_dict(r: Random) -> Call:
    """A network's, with a value that does not fit."""
    net = network()
    state = net.state_dict()
    name = r.choice(list(state))

    def run(state_dict: Any) -> Any:
        return net.load_state_dict(state_dict)

    run.__qualname__ = "load_state_dict"
    state[name] = values.anything(r)
    wrong = Call(run, {"state_dict": state}, frozenset({"state_dict"}), tame=False)
    return wrong if r.random() < 0.7 else build(run, {"state_dict": network().state_dict()}, {"state_dict": "any"}, r)


def parameter(r: Random) -> Call:
    def run(value: Any, new: Any, grad: Any) -> Any:
        made = nn.Parameter(value)
        made.value = new
        made.accumulate(grad)
        return np.array(made.value)

    run.__qualname__ = "Parameter"
    given = {n: random_array(r, (2, 3), "float32", special=False) for n in ("value", "new", "grad")}

    def oracle(value: Any, new: Any, grad: Any) -> Any:
        return plain(new)

    return build(run, given, dict.fromkeys(given, "array"), r, oracle)


def _scalar(function: Callable[[Any], Any], name: str, good: tuple[Any, ...], kind: str) -> Callable[[Random], Call]:
    def generate(r: Random) -> Call:
        return build(function, {name: r.choice(good)}, {name: kind}, r)

    return generate


def _threads(n: Any) -> Any:
    with fastconv.threads(n):
        return fastconv.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)))


def _mode(mode: Any) -> None:
    fastconv.set_mode(mode)
    fastconv.set_mode("heuristic")


def _precision(precision: Any) -> None:
    fastconv.set_float32_precision(precision)
    fastconv.set_float32_precision("ieee")


def _flush(mode: Any) -> None:
    fastconv.set_flush_denormal(mode)
    fastconv.set_flush_denormal(False)


def tune(r: Random) -> Call:
    """Refusals only: what is measured is the business of other tests."""
    call = build(fastconv.tune, {"problems": (), "budget": 0.0, "threads": 1},
                 {"problems": "any", "budget": "any", "threads": "number"}, r, also=("descriptor",))  # fmt: skip
    call.arguments["budget"] = 0.0 if isinstance(call.arguments["problems"], str) else call.arguments["budget"]
    return call


IMAGE = {"input_shape": (2, 8, 8)}
OTHERS: Mapping[str, Callable[[Random], Call]] = {
    "plan": plan,
    "Plan": plan,
    "conv_output_size": conv_output_size,
    "Pool": pool,
    "ConvProblem": conv_problem,
    "PoolProblem": pool_problem,
    "parse": parse,
    "from_images": from_images,
    "random_crop": random_crop,
    "random_horizontal_flip": random_horizontal_flip,
    "save": save_and_load,
    "load": damaged_file,
    "summary": _of_network(fastconv.summary, {**IMAGE, "batch": 2, "optimizer": "adam", "dtype": None},
                           {"input_shape": "shape", "batch": "number", "optimizer": "word", "dtype": "word"},
                           also=("network", "x", "weight", "start_dim", "dim")),
    "gradcheck": gradcheck,
    "threads": _scalar(_threads, "n", (1, 2, 100), "number"),
    "set_mode": _scalar(_mode, "mode", ("heuristic", "measure", "wisdom"), "word"),
    "set_float32_precision": _scalar(_precision, "precision", ("ieee", "tf32"), "word"),
    "set_flush_denormal": _scalar(_flush, "mode", (True, False), "flag"),
    "tune": tune,
    "manual_seed": _scalar(nn.manual_seed, "seed", (0, 1, 2**70), "number"),
    "receptive_field": _of_network(nn.receptive_field, IMAGE, {"input_shape": "shape"},
                                   also=("network", "x", "weight", "start_dim")),
    "activation_bytes": _of_network(nn.activation_bytes, {"input_shape": (1, 2, 8, 8)}, {"input_shape": "shape"},
                                    "network", also=("x", "weight", "start_dim")),
    "to_fully_convolutional": _of_network(nn.to_fully_convolutional, IMAGE, {"input_shape": "shape"},
                                          also=("network", "x", "weight", "start_dim", "Flatten")),
    "dense_scores": _of_network(
        lambda model, image, average, shifts: nn.dense_scores(
            nn.to_fully_convolutional(model, (2, 8, 8)).eval() if isinstance(model, nn.Module) else model,
            image, average, shifts),
        {"image": (1, 2, 9, 9), "average": True, "shifts": 1},
        {"image": "small", "average": "flag", "shifts": "number"}, also=("x", "input_shape", "network", "weight")),
    "replace_head": _of_network(nn.replace_head, {"classes": 5, "rng": None}, {"classes": "number", "rng": "any"},
                                also=("out_features",)),
    "parameter_groups": _of_network(optim.parameter_groups, {"lr": 0.1, "multipliers": {"0.*": 0.5}},
                                    {"lr": "real", "multipliers": "any"}),
    "convnet": convnet,
    "Sequential": containers,
    "Residual": containers,
    "Module": load_state_dict,
    "Parameter": parameter,
    "Buffer": parameter,
}  # fmt: skip

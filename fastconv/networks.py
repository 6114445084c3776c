"""The convolutions of well-known networks, as problems to tune and to benchmark.

Each network lists its distinct layers once, with the bias, activation and pooling that follow them at
inference (batch norm is folded into weights and bias there, so MobileNet-V2's layers have a bias).

========================  ==================================================================
`resnet50`                He et al. 2015, version 1; the 20 layers of Georganas et al., SC18
`vgg16`                   Simonyan and Zisserman 2014, configuration D
`alexnet`                 Krizhevsky 2014, one tower, as in torchvision
`mobilenet_v2`            Sandler et al. 2018, width 1.0
========================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastconv.pooling import Pool
from fastconv.problem import CPU_DTYPES, FORMATS, ConvProblem

# H=W, C, K, R=S, stride; padding is (R - 1)/2.
_RESNET50 = (
    (224, 3, 64, 7, 2), (56, 64, 256, 1, 1), (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 256, 64, 1, 1),
    (56, 256, 512, 1, 2), (56, 256, 128, 1, 2), (28, 128, 128, 3, 1), (28, 128, 512, 1, 1), (28, 512, 128, 1, 1),
    (28, 512, 1024, 1, 2), (28, 512, 256, 1, 2), (14, 256, 256, 3, 1), (14, 256, 1024, 1, 1), (14, 1024, 256, 1, 1),
    (14, 1024, 2048, 1, 2), (14, 1024, 512, 1, 2), (7, 512, 512, 3, 1), (7, 512, 2048, 1, 1), (7, 2048, 512, 1, 1),
)  # fmt: skip

# H=W, C, K; 3x3, padding 1.
_VGG16 = (
    (224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256),
    (28, 256, 512), (28, 512, 512), (14, 512, 512),
)  # fmt: skip

# H=W, C, K, R=S, stride, padding, followed by the 3x3/2 max pool.
_ALEXNET = (
    (224, 3, 64, 11, 4, 2, True), (27, 64, 192, 5, 1, 2, True), (13, 192, 384, 3, 1, 1, False),
    (13, 384, 256, 3, 1, 1, False), (13, 256, 256, 3, 1, 1, True),
)  # fmt: skip

# Table 2 of the paper: expansion, output channels, repeats, stride of the first.
_MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _conv(size: int, c: int, k: int, kernel: int, stride: int, padding: int, **rest: Any) -> ConvProblem:
    weight = (k, c // rest.get("groups", 1), kernel, kernel)
    return ConvProblem.create((rest.pop("batch"), c, size, size), weight, stride=stride, padding=padding, **rest)


def _resnet50(**common: Any) -> Iterator[ConvProblem]:
    for size, c, k, kernel, stride in _RESNET50:
        yield _conv(size, c, k, kernel, stride, (kernel - 1) // 2, **common)


def _vgg16(**common: Any) -> Iterator[ConvProblem]:
    for size, c, k in _VGG16:
        yield _conv(size, c, k, 3, 1, 1, bias=True, activation="relu", **common)


def _alexnet(**common: Any) -> Iterator[ConvProblem]:
    for *layer, pooled in _ALEXNET:
        pool = Pool("max", 3, 2) if pooled else None
        yield _conv(*layer, bias=True, activation="relu", pool=pool, **common)


def _mobilenet_v2(**common: Any) -> Iterator[ConvProblem]:
    relu6 = {"bias": True, "activation": "relu6", **common}
    yield _conv(224, 3, 32, 3, 2, 1, **relu6)
    size, c = 112, 32
    for expansion, k, repeats, first_stride in _MOBILENET_V2:
        for block in range(repeats):
            stride, wide = first_stride if block == 0 else 1, c * expansion
            if expansion > 1:
                yield _conv(size, c, wide, 1, 1, 0, **relu6)
            yield _conv(size, wide, wide, 3, stride, 1, groups=wide, **relu6)
            size, c = size // stride, k
            yield _conv(size, wide, k, 1, 1, 0, bias=True, **common)
    yield _conv(size, c, 1280, 1, 1, 0, **relu6)


_NETWORKS = {"alexnet": _alexnet, "vgg16": _vgg16, "resnet50": _resnet50, "mobilenet_v2": _mobilenet_v2}


def names() -> list[str]:
    """Names that `problems` takes."""
    return list(_NETWORKS)


def problems(
    name: str, batch: int = 1, dtype: str = "float32", memory_format: str = "channels_last"
) -> list[ConvProblem]:
    """The distinct convolutions of a network, in the order in which it first runs them.

    Parameters
    ----------
    name : str
        One of `names`.
    batch : int, default 1
        Images at a time.
    dtype : {"float32", "float64"}
    memory_format : {"channels_last", "contiguous"}

    Returns
    -------
    list of ConvProblem

    Raises
    ------
    ValueError
        For an unknown name, dtype or memory format, or a batch below 1.

    Examples
    --------
    >>> problems("resnet50")[3].descriptor
    'n1c64h56w56k64r3s3p1_f32_nhwc'
    """
    choices = {"name": (name, names()), "dtype": (dtype, CPU_DTYPES)}
    choices["memory_format"] = (memory_format, tuple(FORMATS.values()))
    for argument, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    layers = _NETWORKS[name](batch=batch, dtype=dtype, memory_format=memory_format)
    return list(dict.fromkeys(layers))

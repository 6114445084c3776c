"""Networks written in the field's notation: ``INPUT -> [[CONV -> RELU]*N -> POOL?]*M -> [FC -> RELU]*K -> FC``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.nn.activation import ReLU
from fastconv.nn.container import Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Linear
from fastconv.nn.module import Module
from fastconv.nn.pool import MaxPool2d
from fastconv.nn.shape import Flatten
from fastconv.sizes import as_size, integer, shown

_WORDS = ("INPUT", "CONV", "RELU", "POOL", "POOL?", "FC")
_MOST_LAYERS, _MOST_DIGITS = 10_000, 9
_TOKEN = re.compile(r"\s*(->|\[|\]|\*|\d+|\w+\??|\S)")


@dataclass(frozen=True)
class _Token:
    text: str
    at: int


@dataclass(frozen=True)
class _Layer:
    """A word of the expanded pattern, and how many stages there were before it."""

    word: str
    at: int
    stage: int


def convnet(
    pattern: str, input: tuple[int, int, int] = (3, 32, 32), channels: int | Sequence[int] = 32, classes: int = 10,
    hidden: int = 256, *, rng: np.random.Generator | None = None, dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """Build a network from its pattern.

    ``CONV`` is a 3x3 convolution with stride 1 and padding that keeps the size, ``POOL`` the maximum of 2x2 pixels
    with stride 2, ``POOL?`` the same where the map still has 2 pixels each way and else nothing, ``FC`` a fully
    connected layer; ``[...]*n`` repeats, also 0 times. Convolutions up to a pooling, or within one repetition of
    brackets around brackets, are a stage and have the same number of channels.

    Parameters
    ----------
    pattern : str
        Begins with ``INPUT`` and ends with ``FC``, the scores of the classes.
    input : (int, int, int), default (3, 32, 32)
        Channels, height and width of an image.
    channels : int or sequence of int, default 32
        Of the first stage, and twice as many in each that follows; or of each stage.
    classes : int, default 10
        Outputs of the last ``FC``.
    hidden : int, default 256
        Outputs of the others.
    rng, dtype
        As in `Conv2d`.

    Returns
    -------
    Sequential

    Raises
    ------
    ValueError
        If the pattern has a mistake, which the message points to, pools a map that is too small, or does not fit
        `channels`; if `input` is not three sizes, or one of the numbers is not positive.

    Examples
    --------
    >>> net = convnet("INPUT -> [[CONV -> RELU]*2 -> POOL]*3 -> [FC -> RELU]*1 -> FC")
    >>> len(net), net[0].weight.value.shape, net[-1].weight.value.shape
    (19, (32, 3, 3, 3), (10, 256))
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a str, got {shown(pattern)}")
    image = as_size(input, "input", None)
    if len(image) != 3 or min(image) < 1:
        raise ValueError(f"input must be channels, height and width of an image, got {shown(input)}")
    classes, hidden = integer(classes, "classes", least=1), integer(hidden, "hidden", least=1)
    layers = _Parser(pattern).layers()
    stages = max((layer.stage for layer in layers if layer.word == "CONV"), default=-1) + 1
    if isinstance(channels, (tuple, list)):
        widths = [integer(width, "channels", least=1) for width in channels]
    else:
        widths = [integer(channels, "channels", least=1) * 2**n for n in range(stages)]
    if len(widths) != stages:
        raise ValueError(f"channels must be those of {stages} stages, got {shown(channels)}")
    build = _Builder(pattern, (image[0], image[1], image[2]), {"rng": rng, "dtype": dtype})
    for layer in layers[:-1]:
        build.add(layer, widths[layer.stage] if layer.word == "CONV" else hidden)
    build.add(layers[-1], classes)
    return Sequential(*build.modules)


class _Parser:
    """Recursive descent over ``chain = item ("->" item)*``, ``item = word | "[" chain "]" ("*" number)?``."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.tokens = [_Token(match[1], match.start(1)) for match in _TOKEN.finditer(pattern)]
        self.next = 0
        self.stage = 0

    def layers(self) -> list[_Layer]:
        """The layers in order, repetitions written out; their sequence has been checked."""
        found = self._chain()
        if (rest := self._peek()).text:
            raise _mistake(self.pattern, rest.at, f"'->' must come between layers, got {rest.text!r}")
        _check_order(self.pattern, found)
        return _with_stages(found)

    def _peek(self) -> _Token:
        return self.tokens[self.next] if self.next < len(self.tokens) else _Token("", len(self.pattern))

    def _take(self) -> _Token:
        token = self._peek()
        self.next += 1
        return token

    def _chain(self) -> list[_Layer]:
        found = self._item()
        while self._peek().text == "->":
            self._take()
            found += self._item()
        return found

    def _item(self) -> list[_Layer]:
        token = self._take()
        if token.text in _WORDS:
            return [_Layer(token.text, token.at, 0)]
        if token.text != "[":
            got = repr(token.text) if token.text else "the end"
            raise _mistake(self.pattern, token.at, f"a layer must be one of {', '.join(_WORDS)} or '[', got {got}")
        start = self.next
        inside = self._chain()
        nested = any(token.text == "[" for token in self.tokens[start : self.next])
        if self._peek().text != "]":
            raise _mistake(self.pattern, self._peek().at, f"']' must close the bracket at column {token.at + 1}")
        self._take()
        inside, times = inside + [_Layer("stage", token.at, 0)] * nested, self._times()
        if times * len(inside) > _MOST_LAYERS:
            raise _mistake(self.pattern, token.at, f"a bracket must stand for at most {_MOST_LAYERS} layers")
        return inside * times

    def _times(self) -> int:
        if self._peek().text != "*":
            return 1
        self._take()
        number = self._take()
        if not number.text.isdecimal() or len(number.text) > _MOST_DIGITS:
            raise _mistake(self.pattern, number.at, "'*' must be followed by how often, such as 2")
        return int(number.text)


# What may come right before each layer; "" is the beginning.
_BEFORE = {
    "INPUT": ("",), "CONV": ("INPUT", "CONV", "RELU", "POOL", "POOL?"), "RELU": ("CONV", "FC"),
    "POOL": ("INPUT", "CONV", "RELU", "POOL", "POOL?"), "FC": ("INPUT", "CONV", "RELU", "POOL", "POOL?", "FC"),
}  # fmt: skip


def _check_order(pattern: str, layers: list[_Layer]) -> None:
    before, flat = "", False
    for layer in layers:
        if layer.word == "stage":
            continue
        allowed = _BEFORE[layer.word.rstrip("?")]
        if before not in allowed:
            wanted = "at the beginning" if allowed == ("",) else f"after {' or '.join(allowed)}"
            raise _mistake(pattern, layer.at, f"{layer.word} must come {wanted}, not after {before or 'nothing'}")
        if flat and layer.word in ("CONV", "POOL", "POOL?"):
            raise _mistake(pattern, layer.at, f"{layer.word} must not come after FC, which leaves no map")
        before, flat = layer.word, flat or layer.word == "FC"
    if before != "FC":
        raise _mistake(pattern, len(pattern), "a pattern must end with FC, the scores of the classes")


def _with_stages(layers: list[_Layer]) -> list[_Layer]:
    """Number the stages, leaving out their ends and those without a convolution."""
    found, stage, fresh = [], 0, True
    for layer in layers:
        if layer.word == "CONV":
            fresh = False
        elif layer.word in ("stage", "POOL", "POOL?") and not fresh:
            stage, fresh = stage + 1, True
        if layer.word != "stage":
            found.append(_Layer(layer.word, layer.at, stage))
    return found


class _Builder:
    """The modules so far, and the shape that they make of an image."""

    def __init__(self, pattern: str, image: tuple[int, int, int], own: dict[str, Any]) -> None:
        self.pattern, self.own = pattern, own
        self.channels, self.height, self.width = image
        self.modules: list[Module] = []
        self.flat = False

    def add(self, layer: _Layer, outputs: int) -> None:
        if layer.word == "CONV":
            self.modules.append(Conv2d(self.channels, outputs, 3, padding=1, **self.own))
            self.channels = outputs
        elif layer.word == "RELU":
            self.modules.append(ReLU())
        elif layer.word == "FC":
            self._connect(outputs)
        elif layer.word == "POOL" or (layer.word == "POOL?" and min(self.height, self.width) >= 2):
            self._pool(layer)

    def _pool(self, layer: _Layer) -> None:
        if min(self.height, self.width) < 2:
            size = f"{self.height}x{self.width} pixels"
            raise _mistake(self.pattern, layer.at, f"POOL must have at least 2x2 pixels, got {size}")
        self.modules.append(MaxPool2d(2))
        self.height, self.width = self.height // 2, self.width // 2

    def _connect(self, outputs: int) -> None:
        if not self.flat:
            self.modules.append(Flatten())
            self.channels, self.flat = self.channels * self.height * self.width, True
        self.modules.append(Linear(self.channels, outputs, **self.own))
        self.channels = outputs


def _mistake(pattern: str, at: int, message: str) -> ValueError:
    """The message, and the pattern with a mark under the place; a pattern of several lines is put on one."""
    on_one_line = re.sub(r"\s", " ", pattern)
    return ValueError(f"{message}\n  {on_one_line}\n  {' ' * at}^")

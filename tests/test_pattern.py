"""Networks from their pattern: structure, widths, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn, optim


def kinds(net: nn.Sequential) -> str:
    letters = {"Conv2d": "C", "ReLU": "r", "MaxPool2d": "P", "Flatten": "-", "Linear": "F"}
    return "".join(letters[type(layer).__name__] for layer in net)


@pytest.mark.parametrize(("pattern", "expected"), [
    ("INPUT -> FC", "-F"),
    ("INPUT -> [CONV -> RELU -> POOL]*2 -> FC -> RELU -> FC", "CrPCrP-FrF"),
    ("INPUT -> [[CONV -> RELU]*2 -> POOL]*3 -> [FC -> RELU]*2 -> FC", "CrCrPCrCrPCrCrP-FrFrF"),
    ("INPUT->[[CONV->RELU]*0->POOL]*1->[FC->RELU]*0->FC", "P-F"),
    ("INPUT -> [[CONV -> RELU]*3]*2 -> FC", "CrCrCrCrCrCr-F"),
    ("INPUT -> [[CONV -> RELU] -> POOL?]*6 -> FC", "CrPCrPCrPCrPCrPCr-F"),
])  # fmt: skip
def test_structure(pattern: str, expected: str) -> None:
    net = nn.convnet(pattern, (1, 32, 33), 2, 7, 5)
    assert kinds(net) == expected
    assert net(np.zeros((2, 1, 32, 33), np.float32)).shape == (2, 7)


@pytest.mark.parametrize(("pattern", "channels", "expected"), [
    ("INPUT -> [[CONV -> RELU]*2 -> POOL]*3 -> FC", 4, [4, 4, 8, 8, 16, 16]),
    ("INPUT -> [[CONV -> RELU]*2]*2 -> FC", (3, 5), [3, 3, 5, 5]),
    ("INPUT -> CONV -> POOL -> POOL -> CONV -> CONV -> FC", (6, 2), [6, 2, 2]),
])  # fmt: skip
def test_a_stage_has_one_width(pattern: str, channels: Any, expected: list[int]) -> None:
    net = nn.convnet(pattern, (3, 16, 16), channels, dtype="float64")
    assert [layer.weight.value.shape[0] for layer in net if isinstance(layer, nn.Conv2d)] == expected
    assert {p.value.dtype for p in net.parameters()} == {np.dtype("float64")}


@pytest.mark.parametrize(("pattern", "word", "message"), [
    ("INPUT -> [CONV -> RLU]*2 -> FC", "RLU", "must be one of"),
    ("INPUT -> [CONV -> RELU -> FC", "", "']' must close the bracket at column 10"),
    ("INPUT -> [CONV]*x -> FC", "x", "how often"),
    ("INPUT CONV -> FC", "CONV", "'->' must come between"),
    ("CONV -> FC", "CONV", "CONV must come after INPUT"),
    ("INPUT -> INPUT -> FC", "INPUT -> FC", "INPUT must come at the beginning"),
    ("INPUT -> RELU -> FC", "RELU", "RELU must come after CONV or FC"),
    ("INPUT -> FC -> RELU -> CONV -> FC", "CONV", "CONV must not come after FC"),
    ("INPUT -> FC -> POOL -> FC", "POOL", "POOL must come after"),
    ("INPUT -> CONV ->", "", "got the end"),
    ("INPUT -> CONV", "", "must end with FC"),
    ("INPUT -> [CONV -> POOL]*5 -> FC", "POOL", "at least 2x2 pixels, got 1x2"),
    ("", "", "got the end"),
])  # fmt: skip
def test_a_mistake_is_pointed_to(pattern: str, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).*") as error:
        nn.convnet(pattern, (3, 16, 33))
    said, shown, mark = str(error.value).rsplit("\n", 2)
    at = pattern.rindex(word) if word else len(pattern)
    assert message in said and shown == "  " + pattern and mark == " " * (2 + at) + "^"


def test_channels_must_fit() -> None:
    with pytest.raises(ValueError, match=r"channels must be those of 2 stages, got \(3,\)"):
        nn.convnet("INPUT -> [CONV -> POOL]*2 -> FC", channels=(3,))


def test_channels_may_be_a_number_of_numpys() -> None:
    net = nn.convnet("INPUT -> [CONV -> POOL]*2 -> FC", channels=np.int64(3))
    assert [net[n].weight.value.shape[0] for n in (0, 2)] == [3, 6]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"input": (3, 32)}, "input must be channels, height and width"),
    ({"input": (3, 0, 32)}, "input must be channels, height and width"),
    ({"classes": 0}, "classes must be at least 1, got 0"), ({"hidden": 0}, "hidden must be at least 1, got 0"),
])  # fmt: skip
def test_sizes_must_be_positive(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.convnet("INPUT -> FC -> FC", **arguments)


def test_it_learns() -> None:
    rng = np.random.default_rng(0)
    net = nn.convnet("INPUT -> [CONV -> RELU -> POOL]*2 -> FC", (1, 8, 8), 8, 2, rng=rng)
    x = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    labels = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).astype(np.int64)
    loss, update = nn.CrossEntropyLoss(), optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        update.zero_grad()
        losses.append(loss(net(x), labels))
        net.backward(loss.backward(), input_grad=False)
        update.step()
    assert losses[-1] < 0.2 * losses[0]

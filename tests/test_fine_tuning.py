"""Fine-tuning: layers frozen by name, rates by name, new heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn, optim


def network() -> nn.Sequential:
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    return nn.Sequential({"features": features, "flatten": nn.Flatten(), "fc": nn.Linear(16, 3)})


def step(net: nn.Sequential, optimizer: Any) -> dict[str, bool]:
    """Names of parameters, and whether a step of training moves them."""
    before = net.state_dict()
    scores = net(np.ones((2, 1, 6, 6), np.float32))
    net.backward(np.ones_like(scores), input_grad=False)
    optimizer.step()
    return {name: not np.array_equal(value, net.state_dict()[name]) for name, value in before.items()}


@pytest.mark.parametrize(("pattern", "frozen"), [
    ("*", {"features.0.weight", "features.0.bias", "features.2.weight", "fc.weight", "fc.bias"}),
    ("features.*", {"features.0.weight", "features.0.bias", "features.2.weight"}),
    ("*.bias", {"features.0.bias", "fc.bias"}), ("features.[02].weight", {"features.0.weight", "features.2.weight"}),
])  # fmt: skip
def test_frozen_by_name(pattern: str, frozen: set[str]) -> None:
    net = network().freeze(pattern)
    assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == frozen
    moved = step(net, optim.SGD(net.parameters(), lr=0.1))
    assert moved == {name: name not in frozen for name in moved}
    net.requires_grad_(pattern=pattern)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_pattern_must_fit() -> None:
    with pytest.raises(ValueError, match="pattern must fit the name of a parameter, got 'feature'"):
        network().freeze("feature")
    assert not list(nn.ReLU().freeze().parameters())


def test_rates_by_name() -> None:
    net = network()
    groups = optim.parameter_groups(net, 0.5, {"features.0.bias": 0, "features.*": 0.1})
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0), (2, 0.05), (2, 0.5)]
    gradients = {name: np.ones_like(p.value) for name, p in net.named_parameters()}
    before = net.state_dict()
    for name, parameter in net.named_parameters():
        parameter.grad = gradients[name]
    optim.SGD(groups).step()
    rates = {name: float(np.ravel(before[name] - value)[0]) for name, value in net.state_dict().items()}
    expected = {"features.0.bias": 0, "features.0.weight": 0.05, "features.2.weight": 0.05, "fc.weight": 0.5}
    assert rates == pytest.approx(expected | {"fc.bias": 0.5}, rel=1e-4)


def test_all_parameters_may_have_multipliers_and_shared_ones_come_once() -> None:
    layer = nn.Linear(4, 4)
    groups = optim.parameter_groups(nn.Sequential(layer, nn.ReLU(), layer), 1.0, {"*": 2})
    assert [len(group["params"]) for group in groups] == [2] and groups[0]["lr"] == 2


@pytest.mark.parametrize(("multipliers", "message"), [
    ({"fc.*": -1}, "must not be negative"), ({"fc.*": float("nan")}, "must not be negative"),
    ({"conv*": 1}, r"got \['conv\*'\]"), ({"fc.*": 1, "fc.bias": 2}, r"got \['fc.bias'\]"),
])  # fmt: skip
def test_multipliers_must_make_sense(multipliers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.parameter_groups(network(), 1.0, multipliers)


def test_a_new_head_is_like_the_old_one() -> None:
    net = network().eval()
    old = net.fc
    features = net.state_dict()["features.0.weight"]
    assert nn.replace_head(net, 7, rng=np.random.default_rng(0)) is net
    assert net.fc is not old and net.fc.weight.value.shape == (7, 16) and net.fc.bias is not None
    assert not net.fc.training and np.array_equal(features, net.state_dict()["features.0.weight"])
    assert net(np.zeros((1, 1, 6, 6), np.float32)).shape == (1, 7)


@pytest.mark.parametrize("last", [
    nn.Linear(16, 3, bias=False, dtype="float64"),
    nn.Sequential(nn.Dropout(), nn.Linear(16, 3, bias=False, dtype="float64"), nn.Softmax(1)),
])  # fmt: skip
def test_a_head_is_found_inside_and_before_layers_without_parameters(last: nn.Module) -> None:
    net = nn.replace_head(nn.Sequential(nn.Flatten(), last, nn.ReLU()), 2)
    (weight,) = net.parameters()
    assert weight.value.shape == (2, 16) and weight.value.dtype == np.float64


def test_the_head_of_a_fully_convolutional_network_is_a_convolution() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Linear(4, 3))
    net = nn.replace_head(nn.to_fully_convolutional(classifier, (1, 3, 3)), 5)
    assert net(np.zeros((1, 1, 3, 4), np.float32)).shape == (1, 5, 1, 2)


def test_a_convolution_at_the_end_keeps_its_stride() -> None:
    net = nn.replace_head(nn.Sequential(nn.Conv2d(3, 4, 1, 2)), 5)
    assert net(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 5, 4, 4)


@pytest.mark.parametrize("net", [
    nn.Linear(3, 4), nn.Sequential(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4)),
    nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Sequential(nn.Conv2d(4, 2, 1, groups=2)),
    nn.Sequential(nn.Residual(nn.Linear(3, 3))),
])  # fmt: skip
def test_a_network_without_a_head(net: nn.Module) -> None:
    with pytest.raises(TypeError, match="last layer with parameters"):
        nn.replace_head(net, 2)

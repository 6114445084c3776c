"""Inference: batch normalisation folded, activation and pooling fused, plans kept until weights change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format

from fastconv import nn
from fastconv.arrays import memory_format
from fastconv.nn import conv as conv_module

STACKS = {
    "conv": lambda: [nn.Conv2d(3, 6, 3, padding=1)],
    "conv norm": lambda: [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)],
    "conv norm relu pool": lambda: [
        nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ],
    "conv relu avg": lambda: [nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)],
    "conv norm relu6": lambda: [nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU6()],
    "conv relu6 avg": lambda: [nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.AvgPool2d(2)],
    "conv leaky lp": lambda: [nn.Conv2d(3, 6, (3, 1), 2), nn.LeakyReLU(), nn.LPPool2d(2, 2)],
    "conv pool relu": lambda: [nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU()],
    "conv leaky of another slope": lambda: [nn.Conv2d(3, 6, 3), nn.LeakyReLU(0.3), nn.MaxPool2d(2)],
    "conv relu norm": lambda: [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)],
    "conv norm without affine": lambda: [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()],
    "conv norm of the batch": lambda: [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()],
    "two": lambda: [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()],
}  # fmt: skip
FUSED = {"conv": 1, "conv pool relu": 2, "conv leaky of another slope": 3, "conv relu norm": 2, "two": 3}  # stages left
stacks = pytest.mark.parametrize("name", STACKS)
formats = pytest.mark.parametrize("format", FORMATS)


def trained(name: str) -> tuple[list[nn.Module], nn.Sequential]:
    """The modules with statistics that are not those of the start, and the same ones as a network."""
    nn.manual_seed(0)
    modules = STACKS[name]()
    rng = np.random.default_rng(0)
    for module in modules:
        for key, buffer in module.named_state():
            if key == "running_var":
                buffer.value = rng.uniform(0.5, 2, buffer.value.shape).astype(np.float32)
            elif key != "num_batches_tracked":
                buffer.value = rng.standard_normal(buffer.value.shape).astype(np.float32)
    return modules, nn.Sequential(*modules)


def batch(format: Any, shape: tuple[int, ...] = (2, 3, 11, 13)) -> np.ndarray:
    return as_format(np.random.default_rng(1).standard_normal(shape).astype(np.float32), format)


@stacks
@formats
def test_inference_is_what_the_modules_compute_one_by_one(name: str, format: Any) -> None:
    modules, net = trained(name)
    net.eval()
    expected = x = batch(format)
    for module in modules:
        expected = module(expected)
    result = net(x)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    assert memory_format(result) == format
    stages = net._stages
    assert len(stages) == (3 if "of the batch" in name else FUSED.get(name, 1))


@stacks
@formats
def test_training_is_what_the_modules_compute_one_by_one(name: str, format: Any) -> None:
    modules, net = trained(name)
    twins, _ = trained(name)
    x = batch(format)
    expected = x
    for module in twins:
        expected = module(expected)
    result = net(x)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    grad = as_format(np.random.default_rng(2).standard_normal(result.shape).astype(np.float32), format)
    result = net.backward(grad)
    for module in reversed(twins):
        grad = module.backward(grad)
    np.testing.assert_allclose(result, grad, rtol=2e-4, atol=2e-4)
    for module, twin in zip(modules, twins, strict=True):
        for p, q in zip(module.parameters(), twin.parameters(), strict=True):
            np.testing.assert_allclose(p.grad, q.grad, rtol=2e-4, atol=2e-4)


def test_training_computes_the_activation_with_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("this pass over memory is not needed")

    monkeypatch.setattr("fastconv.nn.host.relu", refuse)
    _, net = trained("conv relu avg")
    net(batch("contiguous"))
    net.eval()
    net[0].train()  # records, and the activation does not
    with pytest.raises(AssertionError, match="not needed"):
        net(batch("contiguous"))


def test_a_layer_in_training_mode_is_not_folded() -> None:
    modules, net = trained("conv norm relu pool")
    net.eval()
    modules[1].train()
    x = batch("contiguous")
    net(x)
    assert modules[1].num_batches_tracked.value == 1


def test_subclasses_are_not_replaced() -> None:
    class Shifted(nn.ReLU):
        def forward(self, x: np.ndarray) -> np.ndarray:
            return super().forward(x) + 1

    net = nn.Sequential(nn.Conv2d(3, 2, 1), Shifted())
    for mode in (True, False):
        assert net.train(mode)(batch("contiguous")).min() >= 1


def test_plans_are_kept_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple] = []
    plan = conv_module.plan
    monkeypatch.setattr(conv_module, "plan", lambda shape, *a, **k: (made.append(shape), plan(shape, *a, **k))[1])
    modules, net = trained("conv norm relu pool")
    net.eval()
    x, other = batch("contiguous"), batch("contiguous", (1, 3, 8, 9))
    for _ in range(3):
        net(x)
        net(as_format(x, "channels_last"))
        net(other)
    assert made == [x.shape, x.shape, other.shape]
    conv, norm = modules[0], modules[1]

    def check() -> None:
        before = len(made)
        expected = modules[3](modules[2](norm(conv(x))))
        made_by_conv = len(made) - before
        np.testing.assert_allclose(net(x), expected, rtol=2e-5, atol=2e-5)
        assert len(made) == before + made_by_conv + 1, "the folded plan must be made anew"

    conv.weight.value = conv.weight.value * 2
    check()
    with norm.bias.edit() as value:
        value += 1
    check()
    norm.running_var.value = norm.running_var.value * 3
    check()
    net.load_state_dict({key: value * 2 for key, value in net.state_dict().items()})
    check()
    net.train()(x)
    net.eval()
    check()


def test_plans_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple] = []
    plan = conv_module.plan
    monkeypatch.setattr(conv_module, "plan", lambda shape, *a, **k: (made.append(shape), plan(shape, *a, **k))[1])
    layer = nn.Conv2d(1, 1, 1).eval()
    for _ in range(2):
        for width in range(conv_module._MOST_PLANS):
            layer(np.ones((1, 1, 1, width + 1), np.float32))
    assert len(made) == conv_module._MOST_PLANS
    layer(np.ones((1, 1, 2, 2), np.float32))
    assert len(layer._plans._plans) == 1


def test_empty_batch() -> None:
    _, net = trained("conv norm relu pool")
    assert net.eval()(np.zeros((0, 3, 11, 13), np.float32)).shape == (0, 6, 6, 7)

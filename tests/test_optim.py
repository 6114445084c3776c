"""Optimizers: recorded figures, torch step for step, groups, frozen parameters, state."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support import guarded

from fastconv import nn, optim

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2},
    "SGD nesterov": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    "Adagrad": {},
    "Adagrad decays": {"lr": 0.3, "lr_decay": 0.1, "weight_decay": 0.2, "initial_accumulator_value": 0.4, "eps": 0.01},
    "RMSprop": {},
    "RMSprop centered": {"lr": 0.05, "alpha": 0.8, "eps": 0.01, "weight_decay": 0.2, "centered": True},
    "RMSprop momentum": {"lr": 0.05, "momentum": 0.9},
    "RMSprop all": {"lr": 0.05, "alpha": 0.7, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
    "Adam": {},
    "Adam betas": {"lr": 0.1, "betas": (0.7, 0.9), "eps": 0.01, "weight_decay": 0.2},
    "Adam amsgrad": {"lr": 0.1, "betas": (0.5, 0.6), "amsgrad": True},
}

# Made with torch 2.13.0, CPU:
#
#     for name, options in RULES.items():
#         value = torch.nn.Parameter(torch.linspace(-1, 2, 4, dtype=torch.float64))
#         optimizer = getattr(torch.optim, name.split()[0])([value], **options)
#         for step in range(5):
#             value.grad = torch.cos(torch.arange(4.0, dtype=torch.float64) + 2 * step) * (step + 1) / 3
#             optimizer.step()
#         print(f'    "{name}": {value.tolist()},')
RECORDED = {
    "SGD": [-1.0439985480624425, 0.07095794743310795, 1.1206760332979995, 2.059445130674751],
    "SGD momentum": [-0.8935677668521913, 0.004436058762379016, 0.8983613924087513, 1.7007869472150703],
    "SGD nesterov": [-0.8370579737214174, 0.09903505821842586, 0.9440757143558196, 1.5982491584461485],
    "Adagrad": [-1.0022023693093638, -0.0045094283692524205, 1.020206737628792, 2.0042611992135595],
    "Adagrad decays": [-0.8277893342616393, 0.029532710441619453, 0.9992007503762366, 1.6689877138052365],
    "RMSprop": [-1.0216941341352033, -0.045247124335446906, 1.202445033983131, 2.0424428913721],
    "RMSprop centered": [-0.9313848373169964, -0.04824285505393211, 0.9917934722641558, 1.702195533349199],
    "RMSprop momentum": [-1.5438738369957068, -1.2893810399205958, 4.030880236520255, 2.756737501018904],
    "RMSprop all": [-0.9668787389934722, -0.1498732094386147, 1.3451330327191073, 1.9258634311084444],
    "Adam": [-1.0009401761334251, -0.0005082314036639444, 1.0018940609555096, 2.0011636339090733],
    "Adam betas": [-0.9485329486469254, -0.042332697216220995, 0.901256026858917, 1.6983302953477022],
    "Adam amsgrad": [-1.0607633192216384, -0.05439100961437612, 1.1945155506196752, 2.088172287017997],
}
rules = pytest.mark.parametrize("name", RULES)


def make(name: str, params: Any) -> optim.Optimizer:
    return getattr(optim, name.split()[0])(params, **RULES[name])


def gradient(step: int) -> np.ndarray:
    return np.cos(np.arange(4.0) + 2 * step) * (step + 1) / 3


@rules
def test_recorded_figures(name: str) -> None:
    parameter = nn.Parameter(np.linspace(-1, 2, 4))
    optimizer = make(name, [parameter])
    for step in range(5):
        parameter.grad = gradient(step)
        optimizer.step()
    np.testing.assert_allclose(parameter.value, RECORDED[name], rtol=1e-13)
    assert parameter.version == 5


@rules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_like_torch(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    # More elements than one job, fewer than a vector, and none.
    values = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 11, 1009), (5,), (0, 2))]
    parameters, twins = [nn.Parameter(v) for v in values], [torch.nn.Parameter(torch.tensor(v)) for v in values]
    optimizer, twin = make(name, parameters), getattr(torch.optim, name.split()[0])(twins, **RULES[name])
    bound = {"rtol": 1e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    for _ in range(4):
        for ours, theirs in zip(parameters, twins, strict=True):
            ours.grad = rng.standard_normal(ours.value.shape).astype(dtype)
            theirs.grad = torch.tensor(ours.grad)
        optimizer.step()
        twin.step()
        for ours, theirs in zip(parameters, twins, strict=True):
            np.testing.assert_allclose(ours.value, theirs.detach().numpy(), **bound)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam"])
def test_options_and_defaults_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    own = getattr(optim, name)([nn.Parameter(np.zeros(1))]).param_groups[0]
    torchs = getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert {key: torchs[key] for key in own if key != "params"} == {k: v for k, v in own.items() if k != "params"}


@rules
def test_update_stays_inside_its_arrays(name: str) -> None:
    for end in (True, False):
        parameter = nn.Parameter(np.linspace(-1, 2, 4))
        parameter._value = guarded(parameter._value, end)
        optimizer = make(name, [parameter])
        for step in range(5):
            parameter.grad = guarded(gradient(step), end)
            optimizer.step()
            state = optimizer.state.get(parameter, {})
            state.update({k: guarded(v, end) for k, v in state.items() if isinstance(v, np.ndarray)})
        np.testing.assert_allclose(parameter.value, RECORDED[name], rtol=1e-13)


def test_gradients_of_any_strides() -> None:
    parameter = nn.Parameter(np.zeros((2, 3)))
    parameter.grad = np.arange(6.0).reshape(3, 2).T
    optim.SGD([parameter], lr=1).step()
    np.testing.assert_array_equal(parameter.value, [[0, -2, -4], [-1, -3, -5]])


@rules
def test_frozen_parameters_and_those_without_gradient_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, without = nn.Parameter(np.ones(3), requires_grad=False), nn.Parameter(np.ones(3))
    frozen.grad = np.ones(3)
    optimizer = make(name, [frozen, without])
    monkeypatch.setattr("fastconv.nn.host.update", None)
    optimizer.step()
    assert (frozen.value == 1).all() and (without.value == 1).all() and frozen.version == without.version == 0
    optimizer.zero_grad()
    assert frozen.grad is None


def test_groups() -> None:
    layers = [nn.Linear(2, 2, dtype="float64") for _ in range(2)]
    before = [layer.state_dict() for layer in layers]
    optimizer = optim.SGD([{"params": layers[0].parameters()}, {"params": layers[1].parameters(), "lr": 0.5}], lr=0.1)
    for layer in layers:
        for parameter in layer.parameters():
            parameter.grad = np.ones_like(parameter.value)
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    for layer, old, lr in zip(layers, before, (0.2, 0.5), strict=True):
        np.testing.assert_allclose(layer.weight.value, old["weight"] - lr)
        np.testing.assert_allclose(layer.bias.value, old["bias"] - lr)


@rules
def test_state_goes_on_where_it_was(name: str) -> None:
    parameter = nn.Parameter(np.linspace(-1, 2, 4))
    optimizer = make(name, [parameter])
    for step in range(5):
        if step == 2:
            state = copy.deepcopy(optimizer.state_dict())
            parameter = nn.Parameter(parameter.value)
            optimizer = getattr(optim, name.split()[0])([parameter], lr=7)
            optimizer.load_state_dict(state)
        parameter.grad = gradient(step)
        optimizer.step()
    np.testing.assert_allclose(parameter.value, RECORDED[name], rtol=1e-13)
    if "step" in optimizer.state.get(parameter, {}):
        assert state["state"][0]["step"] == 2, "a state dict is a copy"


def test_load_state_dict_errors() -> None:
    optimizer = optim.Adam([nn.Parameter(np.zeros(3))])
    with pytest.raises(ValueError, match=r"state_dict must have groups of \[1\] parameters, got \[2\]"):
        optimizer.load_state_dict(optim.Adam([nn.Parameter(np.zeros(3)), nn.Parameter(np.zeros(3))]).state_dict())
    other = nn.Parameter(np.zeros(4))
    other.grad = np.ones(4)
    larger = optim.Adam([other], lr=5)
    larger.step()
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 must have shape \(3,\), got \(4,\)"):
        optimizer.load_state_dict(larger.state_dict())
    with pytest.raises(ValueError, match=r"an optimizer with the options \['amsgrad', .*, got \['dampening'"):
        optimizer.load_state_dict(optim.SGD([nn.Parameter(np.zeros(3))], lr=5).state_dict())
    with pytest.raises(ValueError, match=r"got none of its \['param_groups', 'state'\]"):
        optimizer.load_state_dict({"a": 1})
    assert optimizer.param_groups[0]["lr"] == 1e-3 and not optimizer.state


PARAMETER = nn.Parameter(np.zeros(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.SGD([]), ValueError, "params must hold at least one Parameter"),
        (lambda: optim.SGD([np.zeros(3)]), TypeError, r"params must be fastconv\.nn\.Parameter objects, got ndarray"),
        (lambda: optim.SGD([PARAMETER, PARAMETER]), ValueError, "params must hold each Parameter once"),
        (lambda: optim.SGD([PARAMETER], lr=-1), ValueError, "lr must not be negative, got -1"),
        (lambda: optim.SGD([PARAMETER], lr=float("nan")), ValueError, "lr must not be negative, got nan"),
        (lambda: optim.SGD([{"params": [PARAMETER], "speed": 1}]), ValueError, r"got \['speed'\]"),
        (lambda: optim.SGD([{"lr": 1}]), TypeError, "must be a dict with the key 'params'"),
        (lambda: optim.SGD([PARAMETER], nesterov=True), ValueError, "nesterov needs momentum > 0 and dampening 0"),
        (lambda: optim.SGD([{"params": [PARAMETER], "momentum": -1}]), ValueError, "momentum must not be negative"),
        (lambda: optim.Adam([PARAMETER], betas=(0.9, 1.0)), ValueError, r"betas must be in \[0, 1\)"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_step_makes_inference_use_the_new_weights() -> None:
    layer, x = nn.Conv2d(2, 3, 3), np.ones((1, 2, 5, 5), np.float32)
    old = layer.eval()(x)
    layer.train()
    layer.backward(np.ones_like(layer(x)))
    optim.SGD(layer.parameters(), lr=1).step()
    assert not np.allclose(layer.eval()(x), old)
    np.testing.assert_allclose(layer(x), layer.train()(x), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, options in RULES.items() if "weight_decay" not in options])
def test_an_infinite_parameter_does_not_become_nan(name: str) -> None:
    parameter = nn.Parameter(np.array([np.inf, -np.inf, 1.0]))
    optimizer = make(name, [parameter])
    for _ in range(2):
        parameter.grad = np.full(3, 0.5)
        optimizer.step()
    assert parameter.value[:2].tolist() == [np.inf, -np.inf]  # there is no decay for 0 * inf to come from
    assert np.isfinite(parameter.value[2])

"""Parameters, state dicts, containers: what holds layers together."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.nn import init


def network(dtype: str = "float32") -> nn.Sequential:
    """A small residual network for images of 3 channels."""
    nn.manual_seed(3)
    block = nn.Residual(
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=dtype), nn.BatchNorm2d(4, dtype=dtype)),
        nn.Sequential(),
    )
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2), block, nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5, dtype=dtype),
    )  # fmt: skip


KEYS = [
    "0.weight", "0.bias", "3.0.0.weight", "3.0.1.weight", "3.0.1.bias", "3.0.1.running_mean", "3.0.1.running_var",
    "3.0.1.num_batches_tracked", "6.weight", "6.bias",
]  # fmt: skip


def images(seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 3, 7, 9)).astype(dtype)


def test_parameter_notices_every_change() -> None:
    parameter = nn.Parameter(np.arange(3.0))
    with pytest.raises(ValueError, match="read-only"):
        parameter.value[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        parameter.value *= 2
    assert parameter.version == 0
    parameter.value = parameter.value + 1
    with parameter.edit() as value:
        value *= 2
    assert parameter.version == 2
    np.testing.assert_array_equal(parameter.value, [2, 4, 6])
    with pytest.raises(ValueError, match="read-only"):
        parameter.value[0] = 1


def test_parameter_owns_its_value() -> None:
    source = np.arange(3.0)
    parameter = nn.Parameter(source)
    source[0] = 7
    assert parameter.value[0] == 0
    parameter.value = source
    source[0] = 8
    assert parameter.value[0] == 7
    for twin in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        np.testing.assert_array_equal(twin.value, parameter.value)
        with pytest.raises(ValueError, match="read-only"):
            twin.value[0] = 1


def test_parameter_refuses_what_does_not_fit() -> None:
    parameter = nn.Parameter(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"value must have shape \(2, 3\), got \(3,\)"):
        parameter.value = np.zeros(3, np.float32)
    with pytest.raises(TypeError, match="value must have dtype float32, got float64"):
        parameter.value = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"grad must have shape \(2, 3\), got \(2,\)"):
        parameter.accumulate(np.zeros(2, np.float32))
    assert repr(parameter) == "Parameter((2, 3), float32)"


def test_gradients_add_up_until_zero_grad() -> None:
    layer, x = nn.Linear(3, 2), np.ones((4, 3), np.float32)
    given = np.ones((4, 2), np.float32)
    layer(x)
    layer.backward(given)
    first = layer.weight.grad
    layer(x)
    layer.backward(given)
    np.testing.assert_array_equal(layer.weight.grad, 2 * first)
    np.testing.assert_array_equal(layer.bias.grad, [8, 8])
    np.testing.assert_array_equal(first, np.full((2, 3), 4))
    layer.zero_grad()
    assert layer.weight.grad is None and layer.bias.grad is None


def test_names() -> None:
    net = network()
    assert list(net.state_dict()) == KEYS
    assert [name for name, _ in net.named_parameters()] == [k for k in KEYS if "running" not in k and "num" not in k]
    assert len(list(net.parameters())) == 7
    assert (len(net), net[6].weight.value.shape, [type(m) for m in net][1]) == (7, (5, 4), nn.ReLU)


def test_first_values() -> None:
    # torch: kaiming_uniform(a=sqrt(5)), which is uniform within 1/sqrt(fan_in); ConvTranspose2d counts as in torch.
    for layer, fan_in in (
        (nn.Conv2d(6, 40, (3, 5), groups=2), 45), (nn.ConvTranspose2d(6, 40, 3, groups=2), 180),
        (nn.Linear(30, 50), 30),
    ):  # fmt: skip
        for parameter in (layer.weight, layer.bias):
            bound = fan_in**-0.5
            assert 0.85 * bound < np.abs(parameter.value).max() <= bound
            assert abs(parameter.value.std() / (bound / 3**0.5) - 1) < 0.3
    assert nn.Conv2d(1, 1, 1, bias=False).bias is None


def test_seeds() -> None:
    first, second = network().state_dict(), network().state_dict()
    double = network("float64").state_dict()
    for key in KEYS:
        np.testing.assert_array_equal(first[key], second[key])
        np.testing.assert_array_equal(first[key], double[key].astype(first[key].dtype))
    nn.manual_seed(4)
    expected = nn.Linear(3, 4).weight.value
    assert not np.array_equal(expected, nn.Linear(3, 4).weight.value)
    np.testing.assert_array_equal(expected, nn.Linear(3, 4, rng=np.random.default_rng(4)).weight.value)
    assert init.generator(None) is not np.random.default_rng(4)


def test_state_dict_is_a_copy() -> None:
    net = network()
    state = net.state_dict()
    state["0.weight"][...] = 0
    assert net[0].weight.value.any()
    net(images())
    assert state["3.0.1.num_batches_tracked"] == 0 and net.state_dict()["3.0.1.num_batches_tracked"] == 1


def test_load_state_dict() -> None:
    net, other = network(), network()
    net(images())
    assert other.load_state_dict(net.state_dict()) == ([], [])
    np.testing.assert_array_equal(net.eval()(images(1)), other.eval()(images(1)))


def test_load_state_dict_lists_what_does_not_fit_and_loads_nothing() -> None:
    net = network()
    before, state = net.state_dict(), {key: value + 1 for key, value in net.state_dict().items()}
    del state["6.bias"]
    state |= {"new.weight": np.zeros(1), "0.bias": np.zeros(5, np.float32), "6.weight": np.zeros((5, 4))}
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state)
    for text in (
        "missing: 6.bias", "unexpected: new.weight", "0.bias must be float32 (4,), got float32 (5,)",
        "6.weight must be float32 (5, 4), got float64 (5, 4)",
    ):  # fmt: skip
        assert text in str(caught.value)
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    with pytest.raises(ValueError, match=r"0\.bias must be"):
        net.load_state_dict(state, strict=False)
    del state["0.bias"], state["6.weight"]
    assert net.load_state_dict(state, strict=False) == (["0.bias", "6.weight", "6.bias"], ["new.weight"])
    np.testing.assert_array_equal(net[0].weight.value, before["0.weight"] + 1)


def test_state_dicts_from_and_to_torch() -> None:
    torch = pytest.importorskip("torch")

    class Sum(torch.nn.Sequential):
        def forward(self, x):
            return sum(branch(x) for branch in self)

    t = torch.nn
    branch = t.Sequential(t.Conv2d(4, 4, 3, padding=1, bias=False), t.BatchNorm2d(4))
    twin = t.Sequential(
        t.Conv2d(3, 4, 3, padding=1), t.ReLU(), t.MaxPool2d(2), Sum(branch, t.Identity()), t.AdaptiveAvgPool2d(1),
        t.Flatten(), t.Linear(4, 5),
    )  # fmt: skip
    net, x = network(), images()
    twin(torch.tensor(x))
    net.load_state_dict(twin.state_dict())
    bound = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(net.eval()(x), twin.eval()(torch.tensor(x)).detach().numpy(), **bound)
    net.train()(x)
    twin.load_state_dict({key: torch.tensor(value) for key, value in net.state_dict().items()})
    np.testing.assert_allclose(net.eval()(x), twin.eval()(torch.tensor(x)).detach().numpy(), **bound)


def test_train_and_eval_reach_every_module() -> None:
    net = network()
    assert net.eval() is net
    assert not any(m.training for m in (net, net[0], net[3], net[3][0], net[3][0][1]))
    assert net.train() is net
    assert all(m.training for m in (net, net[0], net[3], net[3][0], net[3][0][1]))


def test_freezing() -> None:
    net, x = network(), images()
    assert net.freeze() is net
    assert not net.trainable
    net[6].requires_grad_()
    assert net.trainable
    net.backward(np.ones_like(net(x)))
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["6.weight", "6.bias"]
    net.freeze()
    assert net[6].weight.grad is None, "a frozen parameter must not move at the next step"


def test_sequential_stops_below_the_lowest_trainable_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(module: nn.Module, name: str) -> None:
        backward = module.backward
        monkeypatch.setattr(module, "backward", lambda *a, **k: (calls.append(name), backward(*a, **k))[1])

    net, x = network(), images()
    for n, module in enumerate(net):
        recorded(module, str(n))
    recorded(net[3][0][0], "3.0.0")
    recorded(net[3][0][1], "3.0.1")
    net[0].freeze()
    net[3][0][0].freeze()
    grad = np.ones_like(net(x))
    assert net.backward(grad, input_grad=False) is None
    assert calls == ["6", "5", "4", "3", "3.0.1"]
    assert net[3][0][1].weight.grad is not None
    assert all(module._kept is None for module in (*net, net[3][0][0])), "what was kept below must be let go"
    calls.clear()
    net(x)
    assert net.backward(grad).shape == x.shape
    assert calls == ["6", "5", "4", "3", "3.0.1", "3.0.0", "2", "1", "0"]
    calls.clear()
    net.freeze()(x)
    assert net.backward(grad, input_grad=False) is None
    assert calls == []


def test_gradients_are_the_same_with_and_without_that_of_the_input() -> None:
    net, x = network(), images()
    grad = np.ones_like(net(x))
    net.backward(grad)
    expected = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    net(x)
    net.backward(grad, input_grad=False)
    for name, parameter in net.named_parameters():
        np.testing.assert_array_equal(parameter.grad, expected[name])


def test_network_gradients() -> None:
    fastconv.gradcheck(network("float64"), images(dtype="float64"), atol=1e-7, rtol=1e-5)


def test_empty_sequential_is_the_identity() -> None:
    x = images()
    assert nn.Sequential()(x) is x
    assert nn.Sequential().backward(x) is x
    assert nn.Sequential().backward(x, input_grad=False) is None
    double = nn.Residual(nn.Sequential(), nn.Sequential())
    np.testing.assert_array_equal(double(x), 2 * x)
    np.testing.assert_array_equal(double.backward(x), 2 * x)


def test_residual_of_three_branches() -> None:
    layers = [nn.Conv2d(3, 3, 1, dtype="float64"), nn.LeakyReLU(0.3), nn.Sequential()]
    x = images(dtype="float64")
    net = nn.Residual(*layers)
    np.testing.assert_allclose(net(x), layers[0](x) + layers[1](x) + x)
    fastconv.gradcheck(net, x, atol=1e-7)
    layers[0].freeze()
    net(x)
    assert net.backward(x, input_grad=False) is None


def test_backward_twice() -> None:
    net = network()
    grad = np.ones_like(net(images()))
    net.backward(grad)
    with pytest.raises(RuntimeError, match=r"Linear\.backward needs what forward keeps"):
        net.backward(grad)


def test_modules_computed_in_one_pass_forget_what_was_kept() -> None:
    inner, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)).eval(), images()
    nn.Sequential(inner)(x)
    assert all(module._kept is not None for module in inner)
    inner(x)
    assert all(module._kept is None for module in inner)


@pytest.mark.parametrize("training", [False, True])
def test_a_module_that_appears_twice(training: bool) -> None:
    relu = nn.ReLU().train(training)
    net, x = nn.Sequential(relu, nn.Residual(relu, nn.Sequential(relu))), images()
    output = net(x)
    np.testing.assert_array_equal(output, 2 * np.maximum(x, 0))
    assert relu.recording == training
    with pytest.raises(RuntimeError, match=r"ReLU\.backward needs what forward keeps"):  # of its last use only
        net.backward(np.ones_like(output))


@pytest.mark.parametrize("block", [False, True])
def test_containers_still_take_the_right_gradient_after_a_wrong_one(block: bool) -> None:
    x = images()
    net, twin = (nn.Sequential(nn.Residual(network(), network())) if block else network() for _ in range(2))
    grad = np.random.default_rng(1).standard_normal(net(x).shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"grad_output must have shape \(2, 5\), got \(2, 4\)"):
        net.backward(grad[:, :4])
    with pytest.raises(TypeError, match="grad_output must have dtype float32, got float64"):
        net.backward(grad.astype(np.float64))
    twin(x)
    np.testing.assert_array_equal(net.backward(grad), twin.backward(grad))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad, q.grad)


def test_containers_take_modules_only() -> None:
    with pytest.raises(TypeError, match=r"modules must be fastconv\.nn modules, got 5"):
        nn.Sequential(nn.ReLU(), 5)


def test_user_defined_module() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            self.factor = nn.Parameter(np.full((), 3.0))

        def forward(self, x: np.ndarray) -> np.ndarray:
            self.keep(x)
            return self.factor.value * x

        def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
            (x,) = self.take()
            self.factor.accumulate(np.asarray((grad_output * x).sum()))
            return self.factor.value * grad_output if input_grad else None

    net = nn.Sequential(nn.Linear(2, 3, dtype="float64"), Scale())
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.factor"]
    fastconv.gradcheck(net, np.random.default_rng(0).standard_normal((4, 2)))


@pytest.mark.parametrize("missing", [{"forward"}, {"backward"}, {"forward", "backward"}], ids=sorted)
def test_a_module_needs_forward_and_backward(missing: set[str]) -> None:
    kind = type("Half", (nn.Module,), {name: getattr(nn.ReLU, name) for name in {"forward", "backward"} - missing})
    with pytest.raises(TypeError, match=rf"abstract.* '?{sorted(missing)[0]}"):
        kind()


def test_user_defined_module_made_of_modules() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            self.conv = nn.Conv2d(3, 2, 3, dtype="float64")
            self.norm = nn.BatchNorm2d(2, dtype="float64").eval()

        def forward(self, x: np.ndarray) -> np.ndarray:
            with self.recorded():
                return self.norm(self.conv(x))

        def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
            return self.conv.backward(self.norm.backward(grad_output), input_grad=input_grad)

    layer, x = Normalised(), images(dtype="float64")
    fastconv.gradcheck(layer, x, atol=1e-7)
    assert len(fastconv.gradcheck(nn.Sequential(layer), x, atol=1e-7).comparisons) == 5
    assert not layer.norm.running_mean.value.any() and not layer.norm.recording


def test_copies_are_independent() -> None:
    net, x = network().eval(), images()
    expected = net(x)
    twin = copy.deepcopy(net)
    twin.load_state_dict({key: value * 0 for key, value in twin.state_dict().items()})
    assert not twin(x).any()
    np.testing.assert_array_equal(net(x), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net))(x), expected)


def test_a_replaced_parameter_is_noticed_in_eval_mode() -> None:
    conv, x = nn.Conv2d(2, 3, 3).eval(), np.ones((1, 2, 4, 4), np.float32)
    before = conv.forward(x)
    conv.weight = nn.Parameter(2 * conv.weight.value)
    conv.bias = nn.Parameter(2 * conv.bias.value)
    np.testing.assert_allclose(conv.forward(x), 2 * before, rtol=1e-6)


def test_a_linear_layer_takes_an_empty_batch() -> None:
    layer, x = nn.Linear(3, 2), np.empty((0, 3), np.float32)
    assert layer.forward(x).shape == (0, 2)
    assert layer.backward(np.empty((0, 2), np.float32)).shape == (0, 3)
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def test_a_shared_parameter_comes_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert len(list(nn.Sequential(first, second).parameters())) == 3


def test_modules_finds_all_below() -> None:
    net = network()
    assert [type(m).__name__ for m in net.modules()] == [
        "Sequential", "Conv2d", "ReLU", "MaxPool2d", "Residual", "Sequential", "Conv2d", "BatchNorm2d", "Sequential",
        "AdaptiveAvgPool2d", "Flatten", "Linear",
    ]  # fmt: skip


def test_a_slice_shares_the_modules() -> None:
    net, x = network(), images()
    head = net[:3]
    assert isinstance(head, nn.Sequential) and [*head] == [net[0], net[1], net[2]]
    head.freeze()
    assert not net[0].trainable and net[6].trainable
    np.testing.assert_array_equal(net[3:].eval()(head.eval()(x)), net.eval()(x))


def test_repr_is_a_tree() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Residual(nn.ReLU(), nn.Sequential()))
    assert repr(net).splitlines() == [
        "Sequential(", "  (0): Conv2d(weight: (2, 1, 3, 3), bias: (2,))", "  (1): Residual(", "    (0): ReLU()",
        "    (1): Sequential()", "  )", ")",
    ]  # fmt: skip


def named_block() -> nn.Sequential:
    """A block whose main path has its names in the block's own namespace, as those of residual networks have."""
    path = nn.Sequential({"conv1": nn.Conv2d(2, 3, 1), "relu1": nn.ReLU(), "conv2": nn.Conv2d(3, 3, 1, bias=False)})
    return nn.Sequential({"": nn.Residual({"": path, "shortcut": nn.Sequential(nn.Conv2d(2, 3, 1))}), "out": nn.ReLU()})


def test_names_of_a_dict() -> None:
    net = nn.Sequential({"block": named_block(), "fc": nn.Sequential(nn.Flatten(), nn.Linear(36, 2))})
    assert list(net.state_dict()) == [
        "block.conv1.weight", "block.conv1.bias", "block.conv2.weight", "block.shortcut.0.weight",
        "block.shortcut.0.bias", "fc.1.weight", "fc.1.bias",
    ]  # fmt: skip
    assert net.fc is net[1] and net.block.conv1 is net[0][0][0][0] and net.block.shortcut is net[0][0][1]
    assert [type(module) for module in net.block] == [nn.Residual, nn.ReLU] and len(net.block) == 2
    assert list(net[1:].state_dict()) == ["fc.1.weight", "fc.1.bias"]
    assert "(fc): Sequential(" in repr(net)
    with pytest.raises(AttributeError, match="Sequential has no attribute 'conv3', nor a module of that name"):
        net.block.conv3  # noqa: B018
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(twin.eval()(x), net.eval()(x))
    assert twin.block.conv1 is not net.block.conv1


def test_gradients_through_named_modules() -> None:
    block = named_block()
    twin = nn.Sequential(nn.Residual(nn.Sequential(*block[0][0]), block[0][1]), block[1])
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    grad = np.ones_like(block(x))
    given = block.backward(grad)
    np.testing.assert_array_equal(block(x), twin(x))
    np.testing.assert_array_equal(given, twin.backward(grad))


def test_modules_are_replaced_by_name_and_by_number() -> None:
    net, x = (
        nn.Sequential({"": named_block(), "flat": nn.Flatten(), "fc": nn.Linear(36, 2)}),
        np.ones((1, 2, 3, 4), np.float32),
    )
    first = nn.Conv2d(2, 3, 1)
    net.fc, net.conv1 = nn.Linear(36, 5), first
    assert net.eval()(x).shape == (1, 5)
    assert net[0][0][0][0] is first and next(net.parameters()) is first.weight
    net[-1] = nn.Linear(36, 7)
    assert net.fc.weight.value.shape == (7, 36)
    assert net(x).shape == (1, 7)
    numbered = nn.Sequential(nn.ReLU(), nn.ReLU())
    numbered[1] = nn.LeakyReLU()
    assert numbered(-x).max() == 0 and type(numbered[1]) is nn.LeakyReLU
    fused = nn.Sequential({"conv": nn.Conv2d(2, 3, 1, bias=False), "act": nn.ReLU()}).eval()
    fused.conv.weight.value = -np.ones((3, 2, 1, 1), np.float32)
    assert fused(x).max() == 0
    fused.act = nn.Sequential()
    assert fused(x).max() == -2
    with pytest.raises(AttributeError, match="Sequential has no module 'fcc' to replace"):
        net.fcc = nn.Linear(36, 2)
    with pytest.raises(TypeError, match=r"modules must be fastconv\.nn modules, got 5"):
        net.fc = 5
    with pytest.raises(IndexError):
        net[3] = nn.ReLU()


@pytest.mark.parametrize("name", ["a.b", "forward", "training", 3, "_modules"])
def test_names_that_cannot_be(name: object) -> None:
    with pytest.raises(ValueError, match=r"names that are strings without a dot .* got "):
        nn.Sequential({name: nn.ReLU()})


def test_joined_names_must_differ() -> None:
    two = {"": nn.Sequential({"fc": nn.Linear(2, 3)}), "fc": nn.Linear(3, 4)}
    with pytest.raises(ValueError, match=r"must not share names with their neighbours, got 'fc\.weight' twice"):
        nn.Sequential(two)
    net = nn.Sequential({"": nn.Sequential(), "fc": nn.Linear(3, 4)})
    with pytest.raises(ValueError, match="twice"):
        net[0] = two[""]
    assert len(net[0]) == 0, "nothing may be changed by what is refused"
    with pytest.raises(TypeError, match="modules must be"):
        nn.Sequential({"fc": nn.Linear(2, 3)}, nn.ReLU())
    with pytest.raises(ValueError, match="branches must be given"):
        nn.Residual({})


def test_counts_of_batches_may_be_missing() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2))
    state = {key: value + 1 for key, value in net.state_dict().items() if "num_batches" not in key}
    assert net.load_state_dict(state) == ([], [])
    assert net[0].running_mean.value.tolist() == [1, 1] and net[0].num_batches_tracked.value == 0

"""Layers, losses and optimizers on the simulated GPU against the same ones on the CPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format, spread

from fastconv import nn, optim
from fastconv.cpu import updates as host_updates
from fastconv.cuda import updates
from fastconv.nn import gpu

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # of random numbers, which is meant


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sent(host: np.ndarray) -> Any:
    """The same memory as an array of the GPU."""
    return FakeCUDAArray(host)


def received(array: Any) -> np.ndarray:
    assert isinstance(array, FakeCUDAArray)
    return array.copy_to_host()


def assert_close(actual: Any, expected: np.ndarray, bound: float = 1e-5) -> None:
    np.testing.assert_allclose(received(actual), expected, rtol=bound, atol=bound)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (nn.ReLU, (2, 3, 2, 5)),
    "relu6": (nn.ReLU6, (2, 3, 2, 5)),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), (2, 3, 2, 5)),
    "turning_relu": (lambda: nn.LeakyReLU(-0.5), (2, 7)),
    "dropout": (lambda: nn.Dropout(0.4, rng=np.random.default_rng(3)), (2, 3, 3, 5)),
    "softmax": (lambda: nn.Softmax(1), (3, 7)),
    "softmax_of_channels": (lambda: nn.Softmax(-3), (2, 5, 2, 3)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 3, 4)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), (1, 4, 2, 3)),
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear_without_bias": (lambda: nn.Linear(3, 2, bias=False), (1, 3)),
    "local": (lambda: nn.LocallyConnected2d(2, 3, (3, 4), 2), (2, 2, 3, 4)),
    "norm": (lambda: nn.BatchNorm2d(3), (2, 3, 2, 4)),
    "plain_norm": (lambda: nn.BatchNorm2d(3, momentum=None, affine=False), (2, 3, 2, 4)),
    "max": (lambda: nn.MaxPool2d(2, padding=1), (1, 2, 3, 5)),
    "avg": (lambda: nn.AvgPool2d(2, ceil_mode=True), (1, 2, 3, 5)),
    "lp": (lambda: nn.LPPool2d(2, 2), (1, 2, 3, 5)),
    "global_avg": (lambda: nn.AdaptiveAvgPool2d(1), (2, 3, 2, 3)),
    "adaptive_avg": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 4, 3)),
    "adaptive_avg_up": (lambda: nn.AdaptiveAvgPool2d((None, 4)), (2, 3, 2, 3)),
    "flatten": (nn.Flatten, (2, 3, 2, 3)),
    "residual": (lambda: nn.Residual(nn.Sequential(), nn.ReLU()), (2, 3, 2, 3)),
}


@pytest.mark.parametrize(
    ("name", "format"),
    [
        (name, format)
        for name, (_, shape) in LAYERS.items()
        for format in FORMATS
        if len(shape) == 4 or format == "contiguous"
    ],
)
def test_layer_is_that_of_the_cpu(name: str, format: Any) -> None:
    make, shape = LAYERS[name]
    nn.manual_seed(1)
    host, device = make(), make()
    for seed, (own, other) in enumerate(zip(host.parameters(), device.parameters(), strict=True)):
        own.value = other.value = numbers(own.value.shape, seed=seed)
    device.to("cuda")
    x = as_format(numbers(shape), format) if len(shape) == 4 else numbers(shape)
    for _ in range(2):  # gradients add up
        expected = host(x)
        output = device(sent(x))
        assert_close(output, expected)
        grad = numbers(expected.shape, seed=2)
        assert_close(device.backward(sent(grad)), host.backward(grad))
    for own, other in zip(host.parameters(), device.parameters(), strict=True):
        assert_close(other.grad, own.grad, 1e-4)
    assert device.state_dict().keys() == host.state_dict().keys()
    for key, value in device.state_dict().items():
        np.testing.assert_allclose(value, host.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_dropout_zeroes_the_elements_that_it_does_on_the_cpu() -> None:
    x = np.ones((3, 5, 7), np.float32)
    layers = [nn.Dropout(0.3, rng=np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(received(layers[0](sent(x))), layers[1](x))
    assert layers[0].eval()(given := sent(x)) is given


def test_arrays_with_gaps_and_empty_batches() -> None:
    x, grad = spread(numbers((2, 3, 3, 4)), "contiguous"), numbers((2, 3, 3, 4), seed=1)
    host, device = nn.ReLU(), nn.ReLU()
    assert_close(device(sent(x)), host(x))
    view = grad.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)
    assert_close(device.backward(sent(view)), host.backward(grad))
    layer = nn.Linear(3, 2).to("cuda")
    assert layer(sent(np.empty((0, 3), np.float32))).shape == (0, 2)
    assert layer.backward(sent(np.empty((0, 2), np.float32))).shape == (0, 3)
    assert not received(layer.weight.grad).any() and not received(layer.bias.grad).any()


def test_nan_passes_through_activations() -> None:
    x = np.array([np.nan, -np.inf, np.inf, -0.5], np.float32)
    for layer in (nn.ReLU(), nn.LeakyReLU(0.1)):
        np.testing.assert_array_equal(received(layer(sent(x))), layer(x))


def network() -> nn.Sequential:
    nn.manual_seed(4)
    # No bias before the normalisation: its gradient is rounding, which Adam makes as large as any other.
    layers = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def test_training_gives_the_parameters_of_the_cpu() -> None:
    host, device = network(), network().to("cuda")
    steppers = [optim.Adam(net.parameters(), lr=0.01) for net in (host, device)]
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss()]
    for step in range(3):
        x, classes = as_format(numbers((2, 2, 4, 4), seed=step), "channels_last"), np.array([0, 2])
        inputs = (x, classes), (sent(x), sent(classes))
        found = []
        for net, loss, stepper, (image, target) in zip((host, device), losses, steppers, inputs, strict=True):
            found.append(loss(net(image), target))
            net.backward(loss.backward(), input_grad=False)
            stepper.step()
            stepper.zero_grad()
        assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert all(p.device == "cuda" for p in device.parameters())
    for key, value in device.state_dict().items():
        np.testing.assert_allclose(value, host.state_dict()[key], rtol=1e-4, atol=1e-4, err_msg=key)
    x = as_format(numbers((2, 2, 4, 4), seed=9), "channels_last")
    expected = host.eval()(x)
    assert_close(device.eval()(sent(x)), expected, 1e-4)
    device.load_state_dict(network().state_dict())  # NumPy's arrays, which plans must notice
    assert_close(device(sent(x)), network().eval()(x), 1e-4)
    np.testing.assert_allclose(device.to("cpu")(x), network().eval()(x), rtol=1e-5)


@pytest.mark.parametrize("members", [(), (nn.BatchNorm2d(3), nn.LeakyReLU(), nn.AvgPool2d(2)), (nn.LPPool2d(2, 2),)])
@pytest.mark.parametrize("bias", [True, False])
def test_inference_folds_what_follows_a_convolution(members: tuple, bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 2, bias=bias), *copy.deepcopy(members)).eval()
    for name, buffer in net.named_state():
        if buffer.value.dtype == np.float32:
            buffer.value = np.abs(numbers(buffer.value.shape, seed=len(name))) + 0.1
    x = np.abs(numbers((2, 2, 5, 4)))
    expected = net(x)
    assert_close(net.to("cuda")(sent(x)), expected)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {"weight_decay": 0.1}),
    "momentum": (optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    "rmsprop": (optim.RMSprop, {"momentum": 0.5}),
    "centered": (optim.RMSprop, {"centered": True, "weight_decay": 0.1}),
    "adam": (optim.Adam, {"weight_decay": 0.1}),
    "amsgrad": (optim.Adam, {"amsgrad": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizer_steps_are_those_of_the_cpu(name: str, dtype: str) -> None:
    kind, options = OPTIMIZERS[name]
    devices = []
    for device in ("cpu", "cuda"):
        values = [numbers((3, 7), dtype, seed) for seed in range(3)]
        values[0][0, 0] = np.inf  # 0 * inf is NaN, but only where there is weight decay
        parameters = [nn.Parameter(value).to(device) for value in values]
        parameters[1].requires_grad = False
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.3}]
        devices.append((parameters, kind(groups, lr=0.05, **options)))
    for step in range(3):
        for parameters, stepper in devices:
            for n, parameter in enumerate(parameters):
                grad = numbers((3, 7), dtype, 10 * step + n)
                parameter.grad = grad if parameter.device == "cpu" else sent(grad)
            stepper.step()
    (host, first), (device, second) = devices
    bound = 1e-5 if dtype == "float32" else 1e-12
    for own, other in zip(host, device, strict=True):
        assert_close(other.value, own.value, bound)
    np.testing.assert_array_equal(received(device[1].value), numbers((3, 7), dtype, 1))  # frozen
    state, expected = second.state_dict(), first.state_dict()
    for number, values in expected["state"].items():
        for key, value in values.items():
            assert type(state["state"][number][key]) is type(value)
            np.testing.assert_allclose(state["state"][number][key], value, rtol=bound, atol=bound)
    second.load_state_dict(expected)  # goes back to the GPU with the next step
    for stepper in (first, second):
        stepper.step()
    assert_close(device[0].value, host[0].value, bound)


def test_rules_have_the_numbers_of_the_cpu() -> None:
    names = [name for name in vars(host_updates) if name.isupper() and isinstance(getattr(host_updates, name), int)]
    wanted = {name: getattr(host_updates, name) for name in names if name != "CHUNK"}
    assert {name: getattr(updates, name) for name in wanted} == wanted
    assert len(wanted) == len(updates.RULES)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(reduction: str, smoothing: float) -> None:
    host, device = (nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing) for _ in range(2))
    scores, classes = 3 * numbers((3, 9)), np.array([8, 0, 4], np.int32)
    expected, found = host(scores, classes), device(sent(scores), sent(classes))
    if reduction == "none":
        assert_close(found, expected)
    else:
        assert found == pytest.approx(expected, rel=1e-5)
    assert_close(device.backward(), host.backward())


def test_cross_entropy_of_infinite_scores_and_unknown_classes() -> None:
    scores = np.array([[0, -np.inf, 1], [0, 1, 2]], np.float32)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert_close(loss(sent(scores), sent(np.array([2, 0]))), loss(scores, np.array([2, 0])))
    values = received(loss(sent(scores), sent(np.array([0, 3]))))
    gradient = received(loss.backward())
    assert np.isfinite(values[0]) and np.isnan(values[1])
    assert np.isfinite(gradient[0]).all() and np.isnan(gradient[1]).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_squared_error(reduction: str) -> None:
    host, device = nn.MSELoss(reduction), nn.MSELoss(reduction)
    output, target = as_format(numbers((2, 3, 2, 2)), "channels_last"), numbers((2, 3, 2, 2), seed=1)
    expected, found = host(output, target), device(sent(output), sent(target))
    np.testing.assert_allclose(received(found) if reduction == "none" else found, expected, rtol=1e-5)
    assert_close(device.backward(), host.backward())


def test_copies_and_pickles_stay_on_the_gpu() -> None:
    layer = nn.Linear(3, 2).to("cuda")
    x = numbers((2, 3))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.weight.device == "cuda" and other.weight.value is not layer.weight.value
        np.testing.assert_array_equal(received(other(sent(x))), received(layer(sent(x))))


def test_moving() -> None:
    layer = nn.BatchNorm2d(2)
    layer.weight.grad = np.ones(2, np.float32)
    assert layer.to("cuda") is layer and layer.weight.device == "cuda"
    assert layer.num_batches_tracked.device == "cpu"
    received(layer.weight.grad)
    layer.to("cpu")
    assert isinstance(layer.weight.grad, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.value[0] = 3
    with pytest.raises(ValueError, match="device must be one of"):
        layer.to("tpu")


def test_errors_name_what_is_on_another_device() -> None:
    x = numbers((2, 2, 3, 3))
    conv, linear, norm = nn.Conv2d(2, 2, 1).to("cuda"), nn.Linear(3, 2).to("cuda"), nn.BatchNorm2d(2).to("cuda")
    for layer, array in ((conv, x), (conv.eval(), x), (linear, x[0, 0]), (norm, x)):
        with pytest.raises(ValueError, match=r"^x must be on the device of .*'cuda', got an array on 'cpu'"):
            layer(array)
    with pytest.raises(ValueError, match=r"^x must be on the device of weight, 'cpu'"):
        nn.Conv2d(2, 2, 1)(sent(x))
    norm(sent(x))
    with pytest.raises(ValueError, match=r"^grad_output must be on the device of the output, 'cuda'"):
        norm.backward(x)
    norm.backward(sent(x))
    with pytest.raises(ValueError, match=r"^target must be on the device of output"):
        nn.CrossEntropyLoss()(sent(numbers((2, 3))), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^target must be on the device of output"):
        nn.MSELoss()(sent(x), x)
    with pytest.raises(ValueError, match=r"^grad must be on the device of"):
        linear.weight.accumulate(numbers((2, 3)))
    parameter = nn.Parameter(np.ones(3)).to("cuda")
    parameter.grad = np.ones(3)
    with pytest.raises(ValueError, match=r"^grad must be on the device of"):
        optim.SGD([parameter]).step()
    with pytest.raises(TypeError, match="target must be int64 or int32, got float32"):
        nn.CrossEntropyLoss()(sent(numbers((2, 3))), sent(numbers((2,))))
    with pytest.raises(ValueError, match="at most 6 axes"):
        gpu.reshape(sent(np.ones((1, 1, 1, 1, 2, 3, 2)).transpose(0, 1, 2, 3, 4, 6, 5)), (12,))


@pytest.mark.parametrize("options", [{}, {"average": False}, {"average": False, "shifts": 2}, {"shifts": 2}])
def test_a_classifier_slides_on_the_gpu(options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    images = numbers((1, 2, 9, 8))
    expected = nn.dense_scores(nn.to_fully_convolutional(net, (2, 6, 6)), images, **options)
    whole = nn.to_fully_convolutional(net.to("cuda"), (2, 6, 6))
    assert_close(nn.dense_scores(whole, sent(images), **options), expected)


def test_a_new_head_is_where_the_old_one_was() -> None:
    net = nn.replace_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to("cuda"), 2)
    assert net[1].weight.device == net[1].bias.device == "cuda"


def test_a_network_on_the_gpu_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("fastconv.summary")  # fastconv.summary is the function
    monkeypatch.setattr(module, "free_bytes", lambda device: {"cuda": 1 << 20}[device])
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    found = module.summary(net.to("cuda"), (2, 6, 6), 3)
    assert found.free_bytes == 1 << 20 and found.largest_batch > 3
    assert found.training["parameters"] == 4 * found.parameters

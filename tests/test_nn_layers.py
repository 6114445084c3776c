"""Every layer: finite differences, torch, and what it keeps between forward and backward."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format

import fastconv
from fastconv import nn
from fastconv.arrays import memory_format

# Name, positional and named arguments, shape of the input; odd sizes throughout.
CONVOLUTIONS = [
    ("Conv2d", (3, 4, 3), {}, (2, 3, 5, 7)),
    ("Conv2d", (3, 4, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}, (2, 3, 7, 5)),
    ("Conv2d", (2, 5, 3), {"padding": "same", "dilation": 2, "bias": False}, (1, 2, 6, 7)),
    ("Conv2d", (2, 3, (2, 4)), {"padding": "same"}, (1, 2, 5, 6)),
    ("Conv2d", (4, 6, 3), {"groups": 2, "stride": 2, "padding": 1}, (1, 4, 7, 9)),
    ("Conv2d", (5, 10, 3), {"groups": 5, "padding": 1}, (2, 5, 5, 4)),
    ("Conv2d", (6, 3, 1), {}, (2, 6, 3, 5)),
    ("ConvTranspose2d", (3, 4, 3), {}, (2, 3, 4, 5)),
    ("ConvTranspose2d", (2, 3, (3, 4)), {"stride": 2, "padding": 1, "output_padding": (1, 0)}, (2, 2, 3, 4)),
    (
        "ConvTranspose2d",
        (2, 3, 3),
        {"stride": (1, 2), "padding": (1, 2), "output_padding": 2, "dilation": 3},
        (1, 2, 4, 3),
    ),
    ("ConvTranspose2d", (4, 6, 3), {"groups": 2, "dilation": 2, "bias": False}, (1, 4, 3, 5)),
]
LOCAL = [  # torch has no such layer
    ("LocallyConnected2d", (2, 3, (5, 6), 3), {}, (2, 2, 5, 6)),
    ("LocallyConnected2d", (3, 2, (6, 5), (2, 3)), {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}, (1, 3, 6, 5)),
    ("LocallyConnected2d", (2, 2, 4, 1), {"bias": False}, (3, 2, 4, 4)),
]
POOLS = [
    ("MaxPool2d", (2,), {}, (2, 3, 6, 7)),
    ("MaxPool2d", (3, 2, 1), {"ceil_mode": True}, (2, 3, 6, 8)),
    ("MaxPool2d", ((2, 3), 1), {"dilation": (2, 1)}, (1, 2, 6, 5)),
    ("AvgPool2d", (2,), {}, (2, 3, 5, 6)),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True}, (2, 3, 6, 8)),
    ("AvgPool2d", (3, 2, 1, True, False), {}, (2, 3, 6, 8)),
    ("AvgPool2d", ((3, 2), 1), {}, (1, 2, 6, 5)),
    ("LPPool2d", (2, 3, 2), {}, (2, 3, 7, 6)),
    ("LPPool2d", (3, (2, 3), 1), {"ceil_mode": True}, (1, 2, 5, 5)),
    ("LPPool2d", (1, 2), {"ceil_mode": True}, (1, 2, 5, 7)),
    ("AdaptiveAvgPool2d", (1,), {}, (2, 3, 5, 7)),
    ("AdaptiveAvgPool2d", ((1, 1),), {}, (2, 3, 1, 4)),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, (2, 3, 4, 9)),
    ("AdaptiveAvgPool2d", (7,), {}, (2, 3, 10, 17)),
    ("AdaptiveAvgPool2d", (7,), {}, (1, 2, 1, 3)),
    ("AdaptiveAvgPool2d", ((None, 4),), {}, (2, 3, 5, 6)),
]
OTHERS = [
    ("BatchNorm2d", (3,), {}, (2, 3, 5, 7)),
    ("BatchNorm2d", (4,), {"eps": 0.1, "momentum": None, "affine": False}, (3, 4, 1, 5)),
    ("BatchNorm2d", (2,), {"momentum": 0.7, "track_running_stats": False}, (1, 2, 4, 3)),
    ("ReLU", (), {}, (2, 3, 5, 7)),
    ("ReLU6", (), {}, (2, 3, 5, 7)),
    ("LeakyReLU", (), {}, (2, 3, 5, 7)),
    ("LeakyReLU", (-0.3,), {}, (2, 3, 5, 7)),
    ("LeakyReLU", (0.0,), {}, (2, 3, 5, 7)),
    ("LeakyReLU", (1.7,), {}, (2, 3)),
    ("Flatten", (), {}, (2, 3, 5, 7)),
    ("Flatten", (0, 2), {}, (2, 3, 5, 7)),
    ("Softmax", (1,), {}, (4, 5)),
    ("Softmax", (-3,), {}, (2, 3, 2, 2)),
    ("Linear", (5, 3), {}, (4, 5)),
    ("Linear", (7, 2), {"bias": False}, (1, 7)),
    ("Linear", (1, 1), {}, (3, 1)),
]
WITH_DTYPE = ("Conv2d", "ConvTranspose2d", "LocallyConnected2d", "BatchNorm2d", "Linear")
TORCHS = CONVOLUTIONS + POOLS + OTHERS


def each(cases: list[tuple]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case[0]}{case[1]}{case[2] or ''}")


cases = each(TORCHS + LOCAL)
formats = pytest.mark.parametrize("format", FORMATS)


def make(case: tuple, dtype: str) -> nn.Module:
    """The layer, with parameters and buffers that are nowhere 0 or 1."""
    name, arguments, options, _ = case
    layer = getattr(nn, name)(*arguments, **options, **({"dtype": dtype} if name in WITH_DTYPE else {}))
    rng = np.random.default_rng(1)
    for key, buffer in layer.named_state():
        if buffer.value.dtype == dtype and "var" not in key:
            buffer.value = rng.standard_normal(buffer.value.shape).astype(dtype)
    return layer


def batch(shape: tuple[int, ...], dtype: str, format: Any, seed: int = 0) -> np.ndarray:
    """Normally distributed numbers."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return as_format(x, format) if len(shape) == 4 else x


def gradcheck(layer: nn.Module, x: np.ndarray) -> fastconv.gradcheck:
    return fastconv.gradcheck(layer, x, atol=1e-7, rtol=1e-5)


@cases
@formats
def test_gradients(case: tuple, format: Any) -> None:
    x = batch(case[3], "float64", format)
    if case[0] == "LPPool2d":  # whose powers and roots have no derivative at 0
        x = np.abs(x) + 0.2
    result = gradcheck(make(case, "float64"), x)
    assert len(result.comparisons) == 1 + len(list(make(case, "float64").parameters()))


@cases
def test_gradients_in_eval_mode_inside_a_network_in_training(case: tuple) -> None:
    x, layer = np.abs(batch(case[3], "float64", "channels_last")) + 0.2, make(case, "float64").eval()
    before = layer.state_dict()
    result = gradcheck(nn.Sequential(layer), x)
    assert len(result.comparisons) == 1 + len(list(layer.parameters()))
    nn.Sequential(layer)(x)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)


@each(TORCHS)
@formats
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_like_torch(case: tuple, format: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    name, arguments, options, shape = case
    layer = make(case, dtype)
    twin = getattr(torch.nn, name)(*arguments, **options).to(getattr(torch, dtype))
    twin.load_state_dict({key: torch.tensor(value) for key, value in layer.state_dict().items()})
    x = batch(shape, dtype, format)
    x = np.abs(x) if name == "LPPool2d" else x
    bound = {"rtol": 2e-5, "atol": 2e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-11}
    for _ in range(2):  # gradients add up; running averages move twice
        x_torch = torch.tensor(x, requires_grad=True)
        expected = twin(x_torch)
        output = layer.forward(x)
        np.testing.assert_allclose(output, expected.detach().numpy(), **bound)
        grad_output = batch(output.shape, dtype, format, 1)
        expected.backward(torch.tensor(grad_output))
        np.testing.assert_allclose(layer.backward(grad_output), x_torch.grad.numpy(), **bound)
        for (key, parameter), twins in zip(layer.named_parameters(), twin.parameters(), strict=True):
            np.testing.assert_allclose(parameter.grad, twins.grad.numpy(), **bound, err_msg=key)
    for key, value in twin.state_dict().items():
        np.testing.assert_allclose(layer.state_dict()[key], value.numpy(), **bound, err_msg=key)
    np.testing.assert_allclose(layer.eval()(x), twin.eval()(torch.tensor(x)).detach().numpy(), **bound)


@cases
@formats
def test_results_keep_the_dtype_and_the_memory_format(case: tuple, format: Any) -> None:
    layer, x = make(case, "float32"), batch(case[3], "float32", format)
    x = np.abs(x) if case[0] == "LPPool2d" else x
    output = layer(x)
    grad = layer.backward(np.ones_like(output))
    assert output.dtype == grad.dtype == np.float32
    assert output.shape == layer.eval()(x).shape
    for result in (output, grad):
        if x.ndim == result.ndim == 4 and max(result.shape[2:]) > 1:
            assert memory_format(result) == format


@cases
def test_backward_needs_a_forward_in_training(case: tuple) -> None:
    layer, x = make(case, "float32"), np.abs(batch(case[3], "float32", "contiguous"))
    grad = np.ones_like(layer(x))
    layer.release()
    message = f"{case[0]}.backward needs what forward keeps in training mode"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(grad)
    layer(x)
    layer.backward(grad)
    with pytest.raises(RuntimeError, match=message):
        layer.backward(grad)
    layer(x)
    layer.eval()(x)
    assert layer._kept is None, "eval mode keeps nothing, nor what was kept before"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(grad)


@cases
def test_a_forward_that_does_not_record_forgets_what_was_kept(case: tuple) -> None:
    layer, x = make(case, "float32").eval(), np.abs(batch(case[3], "float32", "contiguous"))
    grad = np.ones_like(nn.Sequential(layer)(x))
    assert layer._kept is not None
    layer(x)
    with pytest.raises(RuntimeError, match=f"{case[0]}.backward needs what forward keeps in training mode"):
        layer.backward(grad)


@cases
def test_no_input_gradient_if_nobody_needs_it(case: tuple) -> None:
    layer, x = make(case, "float32"), np.abs(batch(case[3], "float32", "contiguous"))
    grad = np.ones_like(layer(x))
    layer.backward(grad)
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x)
    assert layer.backward(grad, input_grad=False) is None
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


@pytest.mark.parametrize("padding", [((1, 0), (2, 1)), ((0, 2), (0, 0))], ids=str)
@formats
def test_asymmetric_padding(padding: Any, format: Any) -> None:
    gradcheck(nn.Conv2d(2, 3, 3, stride=2, padding=padding, dtype="float64"), batch((1, 2, 6, 5), "float64", format))


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("this gradient is not needed")


@each([c for c in CONVOLUTIONS if c[2].get("bias", True)] + [("Linear", (5, 3), {}, (4, 5))])
def test_frozen_parameters_do_no_work(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make(case, "float32"), batch(case[3], "float32", "contiguous")
    for place, name in product(("conv", "host"), ("conv2d_weight", "conv2d_bias")):
        monkeypatch.setattr(f"fastconv.nn.{place}.{name}", refuse)
    grad = np.ones_like(layer.freeze()(x))
    assert layer.backward(grad) is not None
    assert layer.weight.grad is None and layer.bias.grad is None
    layer(x)
    layer.bias.requires_grad = True
    with pytest.raises(AssertionError, match="not needed"):
        layer.backward(grad)
    # An input that no gradient needs is not kept alive.
    layer(x)
    assert not any(value is x for value in layer._kept)


def test_frozen_locally_connected_parameters_do_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.nn.local.locally_connected2d_weight", refuse)
    layer, x = make(LOCAL[0], "float32").freeze(), batch(LOCAL[0][3], "float32", "contiguous")
    assert layer.backward(np.ones_like(layer(x))) is not None
    assert layer.weight.grad is None and layer.bias.grad is None
    monkeypatch.setattr("fastconv.nn.local.locally_connected2d_input", refuse)
    assert layer.backward(np.ones_like(layer(x)), input_grad=False) is None


def test_locally_connected_with_equal_weights_is_a_convolution() -> None:
    layer = nn.LocallyConnected2d(2, 3, (7, 6), 3, 2, 1, dtype="float64")
    twin = nn.Conv2d(2, 3, 3, 2, 1, dtype="float64")
    assert layer.weight.value.shape == (3, 2, 3, 3, 4, 3)
    layer.weight.value = np.broadcast_to(twin.weight.value[..., None, None], layer.weight.value.shape)
    layer.bias.value = np.broadcast_to(twin.bias.value[:, None, None], (3, 4, 3))
    x = batch((2, 2, 7, 6), "float64", "channels_last")
    grad = batch((2, 3, 4, 3), "float64", "channels_last", 1)
    np.testing.assert_allclose(layer(x), twin(x))
    np.testing.assert_allclose(layer.backward(grad), twin.backward(grad))
    np.testing.assert_allclose(layer.weight.grad.sum((-1, -2)), twin.weight.grad)
    np.testing.assert_allclose(layer.bias.grad.sum((-1, -2)), twin.bias.grad)


def test_input_gradient_does_no_work_if_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("conv", "conv2d_input"), ("host", "conv2d_input"), ("host", "norm_input")):
        monkeypatch.setattr(f"fastconv.nn.{module}.{name}", refuse)
    for layer, shape in (
        (nn.Conv2d(2, 3, 3), (1, 2, 5, 5)),
        (nn.Linear(4, 3), (2, 4)),
        (nn.BatchNorm2d(2), (1, 2, 3, 3)),
    ):
        output = layer(np.ones(shape, np.float32))
        layer.backward(np.ones_like(output), input_grad=False)
        assert all(parameter.grad is not None for parameter in layer.parameters())


def test_batch_norm_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.BatchNorm2d(2).freeze(), batch((3, 2, 4, 5), "float32", "contiguous")
    reference = nn.BatchNorm2d(2)
    grad = batch((3, 2, 4, 5), "float32", "contiguous", 1)
    np.testing.assert_array_equal(layer(x), reference(x))
    np.testing.assert_array_equal(layer.backward(grad), reference.backward(grad))
    assert layer.weight.grad is None and layer.bias.grad is None
    monkeypatch.setattr("fastconv.nn.host.channel_products", refuse)
    layer(x)
    assert layer.backward(grad, input_grad=False) is None


@pytest.mark.parametrize("trainable", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@formats
def test_batch_norm_in_eval_mode_does_no_work_that_is_not_needed(
    trainable: tuple, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make(("BatchNorm2d", (2,), {}, ()), "float32").eval(), batch((3, 2, 4, 5), "float32", format)
    for name in ("weight", "bias"):
        getattr(layer, name).requires_grad = name in trainable
    if "weight" not in trainable:
        monkeypatch.setattr("fastconv.nn.host.channel_products", refuse)
    if not trainable:
        monkeypatch.setattr("fastconv.nn.host.channel_sums", refuse)
    nn.Sequential(layer)(x)
    assert any(value is x for value in layer._kept) == ("weight" in trainable)
    grad = batch(x.shape, "float32", format, 1)
    result = layer.backward(grad)
    constants = [v.astype(np.float64)[:, None, None] for v in layer.state_dict().values() if v.ndim]
    weight, _, mean, deviation = *constants[:3], np.sqrt(constants[3] + layer.eps)
    expected = {"weight": (grad * (x - mean) / deviation).sum((0, 2, 3)), "bias": grad.sum((0, 2, 3))}
    np.testing.assert_allclose(result, grad * weight / deviation, rtol=1e-5)
    assert memory_format(result) == format
    for name in ("weight", "bias"):
        gradient = getattr(layer, name).grad
        assert (gradient is not None) == (name in trainable)
        if gradient is not None:
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_batch_norm_running_statistics(momentum: float | None) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum, dtype="float64")
    batches = [batch((2, 3, 4, 5), "float64", "channels_last", seed) * (seed + 1) + seed for seed in range(3)]
    mean, var = np.zeros(3), np.ones(3)
    for n, x in enumerate(batches):
        layer(x)
        share = 1 / (n + 1) if momentum is None else momentum
        mean += share * (x.mean((0, 2, 3)) - mean)
        var += share * (x.var((0, 2, 3), ddof=1) - var)
    np.testing.assert_allclose(layer.running_mean.value, mean)
    np.testing.assert_allclose(layer.running_var.value, var)
    assert layer.num_batches_tracked.value == 3
    layer.eval()(batches[0])
    np.testing.assert_allclose(layer.running_mean.value, mean)


def test_batch_norm_errors() -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match=r"x must have 3 channels, got shape \(1, 2, 4, 4\)"):
        layer(np.ones((1, 2, 4, 4), np.float32))
    with pytest.raises(ValueError, match="at least two pixels"):
        layer(np.ones((1, 3, 1, 1), np.float32))
    with pytest.raises(TypeError, match="x must have the layer's dtype float32, got float64"):
        layer(np.ones((1, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"grad_output must have shape \(1, 3, 4, 4\), got \(1, 3, 4, 5\)"):
        layer(np.ones((1, 3, 4, 4), np.float32))
        layer.backward(np.ones((1, 3, 4, 5), np.float32))
    layer.eval()(np.ones((1, 3, 1, 1), np.float32))


def test_batch_norm_of_large_mean() -> None:
    rng = np.random.default_rng(0)
    x = (3000 + rng.standard_normal((4, 2, 20, 20))).astype(np.float32)
    y = nn.BatchNorm2d(2)(x)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean((0, 2, 3), keepdims=True)) / x64.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, expected, atol=3e-4)  # half a unit in the last place of a mean of 3000
    np.testing.assert_allclose(y.std((0, 2, 3)), 1, rtol=1e-4)


def test_relu6_at_its_ends_like_torch() -> None:
    torch = pytest.importorskip("torch")
    x = np.array([-np.inf, -1.0, 0.0, 1e-30, 3.0, 6.0, 6.5, np.inf, np.nan], np.float32)
    layer, twin = nn.ReLU6(), torch.tensor(x, requires_grad=True)
    output = torch.nn.functional.relu6(twin)
    output.backward(torch.full(x.shape, 2.0))
    np.testing.assert_array_equal(layer(x), output.detach().numpy())
    np.testing.assert_array_equal(layer.backward(np.full(x.shape, 2, np.float32)), twin.grad.numpy())


@formats
def test_adaptive_pooling_leaves_nan_where_it_is(format: Any) -> None:
    x = batch((1, 2, 5, 5), "float32", format)
    x[0, 1, 0, 4] = np.nan
    assert np.argwhere(np.isnan(nn.AdaptiveAvgPool2d(3)(x))).tolist() == [[0, 1, 0, 2]]


def test_dropout() -> None:
    x = batch((2, 3, 40, 40), "float64", "channels_last")
    layer = nn.Dropout(0.4, rng=np.random.default_rng(5))
    output = layer(x)
    mask = output / x
    grad = layer.backward(np.ones(x.shape))  # in the other format
    np.testing.assert_allclose(grad, mask)
    assert set(np.round(np.unique(mask), 9)) == {0, round(1 / 0.6, 9)}
    assert abs((mask > 0).mean() - 0.6) < 0.03
    assert not np.array_equal(layer(x), output), "each forward draws anew"
    again = nn.Dropout(0.4, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(again(x), output)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=r"p must be between 0 and 1, got 1\.5"):
        nn.Dropout(1.5)


def test_dropout_gradcheck() -> None:
    def forward(x: np.ndarray) -> np.ndarray:
        layer.rng = np.random.default_rng(1)
        return layer(x)

    layer = nn.Dropout(0.5)
    fastconv.gradcheck((forward, lambda grad, x: layer.backward(grad)), batch((2, 3, 4, 5), "float64", "channels_last"))


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda: nn.AdaptiveAvgPool2d((7, 0)), r"output_size must be at least 1, got \(7, 0\)"),
        (lambda: nn.AdaptiveAvgPool2d((None, 2.0)), "output_size must be an int or a pair of ints"),
        (lambda: nn.AdaptiveAvgPool2d(2)(np.ones((1, 2, 0, 3), np.float32)), "x must have pixels to average"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups must divide in_channels 3 and out_channels 4, got 2"),
        (lambda: nn.Conv2d(3, 4, 3, 2, "same"), "padding='same' needs stride 1"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, dilation=0), "dilation must be at least 1, got 0"),
        (lambda: nn.Conv2d(0, 4, 3), "in_channels must be at least 1, got 0"),
        (lambda: nn.LocallyConnected2d(2, 3, 4, 5), "kernel_size 5 with dilation 1 spans 5 pixels"),
        (lambda: nn.MaxPool2d(2, padding=2), r"padding must be at most half the \(dilated\) kernel"),
        (lambda: nn.LPPool2d(0, 2), "norm_type must be positive and finite, got 0"),
        (lambda: nn.Linear(4, 3)(np.ones((2, 5), np.float32)), r"x must have 4 features, got shape \(2, 5\)"),
        (lambda: nn.Conv2d(3, 4, 3)(np.ones((3, 8, 8), np.float32)), r"x must have 4 axes, got shape \(3, 8, 8\)"),
        (lambda: nn.Flatten(2, 1)(np.ones((2, 5, 2), np.float32)), "start_dim 2 comes after end_dim 1"),
        (lambda: nn.Residual(), "branches must be given"),
    ],
)
def test_errors(make_layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layer()


@each(TORCHS + LOCAL + [("Dropout", (0.4,), {}, (2, 3, 4, 5))])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_wrong_grad_output_is_refused_and_the_right_one_still_works(case: tuple, training: bool) -> None:
    layer, x = make(case, "float32").train(training), np.abs(batch(case[3], "float32", "contiguous"))
    net = nn.Sequential(layer)

    def output() -> np.ndarray:
        if case[0] == "Dropout":
            layer.rng = np.random.default_rng(0)
        return net(x)

    grad = batch(output().shape, "float32", "contiguous", 1)
    expected = layer.backward(grad)
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    output()
    wide = np.ones((*grad.shape[:-1], grad.shape[-1] + 1), np.float32)
    for wrong, error, message in (
        (wide, ValueError, "grad_output must have shape"),
        (grad[None], ValueError, "grad_output must have shape"),
        (grad[:1, :1] if grad.shape[:2] != (1, 1) else wide, ValueError, "grad_output must have shape"),
        (grad.astype(np.float64), TypeError, "grad_output must have dtype float32, got float64"),
        (grad.astype(int), TypeError, "grad_output must be float32 or float64, got int64"),
    ):
        with pytest.raises(error, match=message):
            layer.backward(wrong)
    assert all(parameter.grad is None for parameter in layer.parameters())
    np.testing.assert_array_equal(layer.backward(grad), expected)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_a_layer_of_another_dtype_is_refused(dtype: str) -> None:
    for make in (lambda: nn.Conv2d(2, 3, 3, dtype=dtype), lambda: nn.BatchNorm2d(3, dtype=dtype)):
        with pytest.raises(TypeError, match=f"dtype must be float32 or float64, got {dtype}"):
            make()


@pytest.mark.parametrize("size", [np.uint8(127), (np.int8(127), None), [None, np.uint16(127)]])
def test_adaptive_sizes_may_be_small_numpy_integers(size: Any) -> None:
    x = np.arange(300, dtype=np.float32).reshape(1, 1, 3, 100)
    plain = [None if n is None else int(n) for n in (size if isinstance(size, (tuple, list)) else (size, size))]
    np.testing.assert_array_equal(nn.AdaptiveAvgPool2d(size)(x), nn.AdaptiveAvgPool2d(plain)(x))


def test_flatten_takes_no_list_of_other_numbers() -> None:
    layer = nn.Flatten(0)
    layer(np.ones((2, 1)))
    with pytest.raises(TypeError, match="grad_output must be float32 or float64"):
        layer.backward([1, 2])


def test_flatten_takes_a_list() -> None:
    layer = nn.Flatten(0)
    layer(np.ones((2, 1)))
    np.testing.assert_array_equal(layer.backward([3.0, 4.0]), [[3.0], [4.0]])

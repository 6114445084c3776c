"""A network's account: sizes, parameters and operations by hand, memory against what a training step really takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn, optim
from fastconv.free_memory import free_bytes


def stack(layers: int, kernel: int, channels: int = 5) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(channels, channels, kernel, bias=False) for _ in range(layers)))


def test_three_small_kernels_cost_less_than_a_large_one() -> None:
    small, large = (fastconv.summary(net, (5, 20, 20)) for net in (stack(3, 3), stack(1, 7)))
    assert small.layers[-1].out_shape == large.layers[-1].out_shape == (1, 5, 14, 14)
    assert (small.parameters, large.parameters) == (27 * 5**2, 49 * 5**2)


def test_layers_are_counted_by_hand() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.BatchNorm2d(8), nn.ReLU()), nn.MaxPool2d(2),
        nn.ConvTranspose2d(8, 6, 2, 2), nn.LocallyConnected2d(6, 4, (8, 10), 3, padding=1), nn.Flatten(),
        nn.Linear(320, 7),
    )  # fmt: skip
    net[0][0].freeze()
    found = fastconv.summary(net, (3, 8, 10), batch=2)
    assert [layer.name for layer in found.layers] == ["0.0", "0.1", "0.2", "1", "2", "3", "4", "5"]
    assert [layer.kind for layer in found.layers][:2] == ["Conv2d", "BatchNorm2d"]
    assert [layer.out_shape for layer in found.layers] == [
        (2, 8, 8, 10), (2, 8, 8, 10), (2, 8, 8, 10), (2, 8, 4, 5), (2, 6, 8, 10), (2, 4, 8, 10), (2, 320), (2, 7),
    ]  # fmt: skip
    local = 4 * 80 * 6 * 9
    assert [layer.parameters for layer in found.layers] == [224, 16, 0, 0, 198, local + 4 * 80, 0, 2247]
    assert found.parameters - found.trainable == 224 == found.layers[0].parameters - found.layers[0].trainable
    convolution, transposed = 2 * 2 * 8 * 80 * 27, 2 * 2 * 8 * 20 * 6 * 4
    assert [layer.flops for layer in found.layers] == [
        convolution, 0, 0, 2 * 8 * 20 * 4, transposed, 2 * 2 * local, 0, 2 * 2 * 7 * 320,
    ]  # fmt: skip
    assert found.flops == sum(layer.flops for layer in found.layers)


def test_adaptive_averages_are_counted_as_other_averages() -> None:
    adaptive, plain = (nn.AdaptiveAvgPool2d((3, 2)), nn.AvgPool2d((2, 4)))
    of_one, of_other = (fastconv.summary(nn.Sequential(layer), (5, 6, 8), 2).flops for layer in (adaptive, plain))
    assert of_one == of_other == 2 * 5 * 6 * 8
    # of 5 rows, parts 0-1, 1-3 and 3-4; of 3 columns, twice 2
    assert fastconv.summary(nn.Sequential(adaptive), (5, 5, 3)).flops == 5 * (2 + 3 + 2) * 4


def test_parameters_that_layers_share_count_once() -> None:
    layer = nn.Linear(4, 4)
    found = fastconv.summary(nn.Sequential(layer, nn.ReLU(), layer), (4,))
    assert found.parameters == 20 and found.training["gradients"] == 80


def plain(dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, dtype=dtype), nn.BatchNorm2d(16, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, dtype=dtype), nn.ReLU(), nn.LPPool2d(2, 2), nn.Flatten(),
        nn.Linear(32 * 49, 64, dtype=dtype), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 10, dtype=dtype),
    )  # fmt: skip


def residual(dtype: str) -> nn.Sequential:
    def block() -> nn.Residual:
        convolutions = [nn.Conv2d(16, 16, 3, padding=1, bias=False, dtype=dtype) for _ in range(2)]
        first, second = (nn.BatchNorm2d(16, dtype=dtype) for _ in range(2))
        return nn.Residual(nn.Sequential(convolutions[0], first, nn.ReLU(), convolutions[1], second), nn.Sequential())

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, dtype=dtype), block(), nn.ReLU(), block(), nn.AvgPool2d(2), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10, dtype=dtype),
    )  # fmt: skip


def frozen(dtype: str) -> nn.Sequential:
    net = plain(dtype)
    for layer in list(net)[:5]:
        layer.freeze()
    return net


def wide(dtype: str) -> nn.Sequential:
    """Most of its memory is weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64 * 64, 300, dtype=dtype), nn.ReLU(), nn.Linear(300, 10, dtype=dtype)
    )


MODULE = import_module("fastconv.summary")  # fastconv.summary is the function
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda net: optim.Adam(net.parameters()),
    "sgd": lambda net: optim.SGD(net.parameters(), lr=0.1),
    "sgd_momentum": lambda net: optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "rmsprop": lambda net: optim.RMSprop(net.parameters()),
    "adagrad": lambda net: optim.Adagrad(net.parameters()),
}
CASES = [
    (plain, "adam", "float32"), (plain, "sgd", "float64"), (residual, "sgd_momentum", "float32"),
    (residual, "adam", "float64"), (frozen, "rmsprop", "float32"), (wide, "adagrad", "float32"),
    (wide, "adam", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "optimizer", "dtype"), CASES)
def test_training_takes_the_memory_that_is_predicted(build: Any, optimizer: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 64, 64, 3)).astype(dtype).transpose(0, 3, 1, 2)
    labels = rng.integers(0, 10, len(x))

    def train(net: nn.Sequential, steps: int) -> None:
        loss, update = nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](net)
        for _ in range(steps):
            update.zero_grad()
            loss(net(x), labels)
            net.backward(loss.backward(), input_grad=False)
            update.step()

    train(build(dtype), 1)  # compiles
    tracemalloc.start()
    net = build(dtype)
    tracemalloc.reset_peak()  # first values are drawn in float64
    train(net, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = fastconv.summary(net, (3, 64, 64), len(x), optimizer)
    assert 0.95 < peak / (found.training_bytes - found.training["input"]) < 1.05
    assert found.training["input"] == x.nbytes


def test_a_network_in_eval_mode_is_accounted_for_as_if_it_trained() -> None:
    net = plain("float32")
    trained = fastconv.summary(net, (3, 64, 64), 4)
    net.eval()
    net[2].train()
    assert fastconv.summary(net, (3, 64, 64), 4).training == trained.training
    assert not net.training and net[2].training and not net[3].training


def test_bytes_follow_the_dtype_and_the_optimizer() -> None:
    net = wide("float32")
    single, double = (fastconv.summary(net, (3, 64, 64), dtype=dtype) for dtype in (None, "float64"))
    assert double.training["parameters"] == 2 * single.training["parameters"] == 8 * single.parameters
    states = {name: fastconv.summary(net, (3, 64, 64), optimizer=name).training["optimizer"] for name in OPTIMIZERS}
    expected = {"adam": 2, "sgd": 0, "sgd_momentum": 1, "rmsprop": 1, "adagrad": 1}
    assert states == {name: 4 * times * single.parameters for name, times in expected.items()}
    assert fastconv.summary(net, (3, 64, 64), optimizer=None).training["optimizer"] == 0


def test_the_largest_batch_fills_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    net = plain("float32")
    needed = fastconv.summary(net, (3, 64, 64), 40)
    monkeypatch.setattr(MODULE, "free_bytes", lambda device: needed.training_bytes - 4 * needed.parameters)
    assert abs(fastconv.summary(net, (3, 64, 64), 8).largest_batch - 40) <= 1
    monkeypatch.setattr(MODULE, "free_bytes", lambda device: 1000)
    assert fastconv.summary(net, (3, 64, 64)).largest_batch == 0
    monkeypatch.setattr(MODULE, "free_bytes", lambda device: None)
    found = fastconv.summary(net, (3, 64, 64))
    assert found.largest_batch is None and "fits" not in str(found)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "alexnet"])
def test_one_image_more_than_the_largest_batch_does_not_fit(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another moment of the step is the fullest than with few images."""
    net, free = getattr(nn.models, name)(10), 4 << 30
    monkeypatch.setattr(MODULE, "free_bytes", lambda device: free)
    most = fastconv.summary(net, (3, 224, 224), batch).largest_batch
    fits, too_much = (fastconv.summary(net, (3, 224, 224), n) for n in (most, most + 1))
    assert fits.training_bytes <= free + 4 * fits.parameters < too_much.training_bytes


def test_it_prints_and_turns_to_json() -> None:
    found = fastconv.summary(plain("float32"), (3, 64, 64), 2)
    text = str(found)
    assert "2x16x30x30" in text and f"{found.parameters:,}" in text and "a batch of" in text
    values = found.as_dict()
    assert values["training_bytes"] == sum(values["training"].values()) == found.training_bytes
    assert values["layers"][0]["kind"] == "Conv2d" and values["inference_bytes"] == found.inference_bytes


class Own(nn.Module):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> Any:
        return grad_output


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: fastconv.summary(stack(1, 3), (5, 9, 9), 0), ValueError, "batch must be at least 1"),
    (lambda: fastconv.summary(stack(1, 3), (5, 9, 9), optimizer="lion"), ValueError, "optimizer must be None or one"),
    (lambda: fastconv.summary(stack(1, 3), (4, 9, 9)), ValueError, "channels"),
    (lambda: fastconv.summary(stack(1, 3), (5, 2, 2)), ValueError, "."),
    (lambda: fastconv.summary(nn.Sequential(Own()), (5, 2, 2)), TypeError, "Own"),
])  # fmt: skip
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_free_memory_is_what_the_system_says() -> None:
    free = free_bytes()
    assert free is None or 0 < free < 1 << 50


def test_a_container_has_a_limit_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.free_memory._CGROUP", tmp_path)
    before = free_bytes()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_bytes() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() is None or before is None or free_bytes() > 3000


def test_layers_say_what_they_see() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 5), 2), nn.ReLU(), nn.MaxPool2d(2))
    found = fastconv.summary(net, (3, 20, 20))
    assert [layer.receptive_field.size for layer in found.layers] == [(3, 5), (3, 5), (5, 7)]
    assert found.layers[-1].receptive_field.jump == (4, 4) and found.layers[0].receptive_field.offset == (1, 2)
    assert "3x5" in str(found) and found.as_dict()["layers"][0]["receptive_field"]["size"] == (3, 5)


def test_vgg16_is_counted_as_published() -> None:
    found = fastconv.summary(nn.models.vgg16(), (3, 224, 224))
    assert found.parameters == 138_357_544
    assert found.flops // 2 == pytest.approx(15.47e9, rel=1e-2)  # multiplications, as in Canziani et al. 2016
    assert found.layers[-1].receptive_field.size == (404, 404)

"""The prediction of a training step's memory, against what the layers really keep and pass on."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastconv import nn, optim


def every_kind(dtype: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network with all kinds of layers, one after the other, and the shape of a batch for it."""
    layers = [
        nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1, dtype=dtype), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.BatchNorm2d(8, dtype=dtype), nn.ConvTranspose2d(8, 6, 3, (2, 3), 1, (1, 2), 2, dtype=dtype),
        nn.LeakyReLU(0.3), nn.LeakyReLU(-0.5), nn.AvgPool2d(2),
        nn.Dropout(0.2), nn.Conv2d(6, 4, 3, padding="same", groups=2, dtype=dtype),
        nn.LPPool2d(2, 2), nn.LocallyConnected2d(4, 5, (4, 6), 3, padding=1, dtype=dtype), nn.Softmax(1),
        nn.AdaptiveAvgPool2d((3, None)), nn.Flatten(2), nn.Flatten(), nn.Linear(90, 7, dtype=dtype), nn.ReLU6(),
    ]  # fmt: skip
    return nn.Sequential(*layers), (2, 3, 30, 16)


def kept(module: Any) -> Iterator[np.ndarray]:
    """The arrays that the layers of a module keep."""
    yield from (value for value in module._kept or () if isinstance(value, np.ndarray))
    for _, child in module.named_children():
        yield from kept(child)


def largest_pair(net: nn.Sequential, grad: np.ndarray) -> int:
    """Run backward; the most bytes of a layer's two gradients."""
    pairs = []

    def watched(backward: Any) -> Any:
        def run(grad_output: np.ndarray, *, input_grad: bool = True) -> Any:
            result = backward(grad_output, input_grad=input_grad)
            alone = result is not None and not np.may_share_memory(result, grad_output)
            pairs.append(grad_output.nbytes + (result.nbytes if alone else 0))
            return result

        return run

    for layer in net:
        layer.backward = watched(layer.backward)  # type: ignore[method-assign]
    net.backward(grad, input_grad=False)
    return max(pairs, default=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("frozen", [0, 1, 6, 17])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_the_parts_are_those_of_a_real_step(dtype: str, frozen: int, training: bool) -> None:
    net, shape = every_kind(dtype)
    for number, layer in enumerate(net):
        layer.train(training)
        if number < frozen:
            layer.freeze()
    predicted = nn.activation_bytes(net, shape)
    y = net(np.random.default_rng(0).standard_normal(shape).astype(dtype))
    at_address = {array.ctypes.data: array.nbytes for array in kept(net)}
    pair = largest_pair(net, np.ones_like(y))
    gradients = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    assert predicted == sum(at_address.values()) + gradients + pair


def test_a_residual_holds_the_gradients_of_its_output_and_of_branches_that_are_done() -> None:
    block = nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()), nn.Sequential())
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), block)
    image, weights = 4 * 2 * 4 * 5 * 6, 2 * 4 * 4 * 4
    # Kept: the input and the outputs of both ReLUs. While the inner ReLU runs: its two gradients, and the block's.
    assert nn.activation_bytes(net, (2, 4, 5, 6)) == 3 * image + weights + 3 * image
    two = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Residual(*(nn.AvgPool2d(1) for _ in range(2))))
    assert nn.activation_bytes(two, (2, 4, 5, 6)) == image + weights // 2 + (1 + 1 + 2) * image


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_with_constant_statistics_keeps_its_input_for_its_weight_only(training: bool, frozen: bool) -> None:
    norm = nn.BatchNorm2d(4).train(training).requires_grad_(not frozen)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Residual(norm, nn.Sequential()))
    image, statistics, weights = 4 * 2 * 4 * 5 * 6, 2 * 8 * 4, 4 * (3 * 4 + (0 if frozen else 2 * 4))
    predicted = nn.activation_bytes(net, (2, 3, 5, 6))
    net(np.ones((2, 3, 5, 6), np.float32))
    at_address = {array.ctypes.data: array.nbytes for array in kept(net)}
    assert sum(at_address.values()) == 3 * image // 4 + statistics + (image if training or not frozen else 0)
    assert predicted == sum(at_address.values()) + weights + 3 * image  # gradients: the block's, and the norm's two


def test_dropout_in_eval_mode_passes_gradients_on() -> None:
    dropout = nn.Dropout(0.5)
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), dropout)
    sizes = []
    for training in (True, False):
        dropout.train(training)
        sizes.append(nn.activation_bytes(net, (2, 1, 4, 5)))
    assert sizes == [4 * (40 + 1 + 2 * 40), 4 * (40 + 1 + 40)]


def test_nothing_is_kept_in_eval_mode() -> None:
    net, shape = every_kind("float32")
    net.eval()
    gradients = 2 * 4 * (2 * 6 * 16 * 27)  # of a LeakyReLU's output and input
    assert nn.activation_bytes(net, shape) == sum(p.value.nbytes for p in net.parameters()) + gradients
    assert nn.activation_bytes(net.freeze(), shape) == 0


def test_global_pooling_and_what_has_no_parameters() -> None:
    assert nn.activation_bytes(nn.AdaptiveAvgPool2d(1), (2, 3, 4, 5)) == 0
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1))
    assert nn.activation_bytes(net, (2, 1, 4, 5)) == 4 * (40 + 1 + 40 + 2)


def test_a_step_really_takes_no_more() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * 256, 10),
    )  # fmt: skip
    optimizer, x = optim.SGD(net.parameters(), momentum=0.9), np.ones((16, 3, 32, 32), np.float32)

    def step() -> None:
        grad = np.ones_like(net(x.copy()))
        net.backward(grad, input_grad=False)
        optimizer.step()
        optimizer.zero_grad()

    step()
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    predicted = nn.activation_bytes(net, x.shape)
    assert 0.5 * predicted < peak < 1.05 * predicted


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv2d(3, 4, 3), (1, 4, 8, 8), "channels"),
        (nn.Conv2d(3, 4, 9), (1, 3, 8, 8), "kernel_size 9"),
        (nn.ConvTranspose2d(3, 4, 3), (1, 4, 8, 8), "4 axes and 3 features"),
        (nn.Linear(3, 4), (1, 4), "2 axes and 3 features"),
        (nn.Linear(3, 4), (3,), "2 axes and 3 features"),
        (nn.BatchNorm2d(3), (1, 4, 8, 8), "4 axes and 3 features"),
        (nn.MaxPool2d(2), (4, 8, 8), "4 axes"),
        (nn.LocallyConnected2d(3, 4, 8, 3), (1, 3, 9, 9), "last two axes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_shape_that_does_not_fit(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.activation_bytes(nn.Sequential(layer), shape)


def test_an_unknown_kind_of_layer() -> None:
    class Doubled(nn.ReLU):
        pass

    with pytest.raises(TypeError, match=r"fastconv.nn's own layers, got a Doubled"):
        nn.activation_bytes(nn.Sequential(nn.ReLU(), Doubled()), (1, 2))


def test_it_counts_and_does_not_compute() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    million = (1_000_000, 3, 224, 224)
    assert nn.activation_bytes(net, million) == 4 * (math.prod(million) + 3 * 8 * math.prod(million) // 3 + 8 * 28)

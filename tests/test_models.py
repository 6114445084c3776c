"""Named networks: torchvision's names and counts, and the numbers of the same networks written with torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.nn import models

PARAMETERS = {
    "alexnet": 61_100_840, "vgg16": 138_357_544, "vgg19": 143_667_240, "resnet18": 11_689_512,
    "resnet50": 25_557_032, "mobilenet_v2": 3_504_872,
    # 7x7, 5x5 and three 3x3 convolutions, 6x6 features, by hand from figure 3 of the paper
    "zfnet": 96 * (3 * 49 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)
    + 4096 * (9216 + 1) + 4096 * (4096 + 1) + 1000 * (4096 + 1),
}  # fmt: skip
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_as_published(name: str) -> None:
    assert sum(p.value.size for p in getattr(models, name)().parameters()) == PARAMETERS[name]
    assert name in models.__all__


def affine(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def conv_norm(conv: str, norm: str) -> list[str]:
    return [f"{conv}.weight", *(f"{norm}.{field}" for field in NORM)]


def resnet_keys(depths: tuple[int, ...], convolutions: int, first_widens: bool) -> Iterator[str]:
    yield from conv_norm("conv1", "bn1")
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            for n in range(1, convolutions + 1):
                yield from conv_norm(f"{at}.conv{n}", f"{at}.bn{n}")
            if block == 0 and (stage > 1 or first_widens):
                yield from conv_norm(f"{at}.downsample.0", f"{at}.downsample.1")
    yield from affine("fc")


def mobilenet_keys() -> Iterator[str]:
    yield from conv_norm("features.0.0", "features.0.1")
    for block in range(1, 18):
        at, inner = f"features.{block}.conv", 1 if block == 1 else 2
        for n in range(inner):
            yield from conv_norm(f"{at}.{n}.0", f"{at}.{n}.1")
        yield from conv_norm(f"{at}.{inner}", f"{at}.{inner + 1}")
    yield from conv_norm("features.18.0", "features.18.1")
    yield from affine("classifier.1")


def plain_keys(features: list[int], classifier: list[int]) -> list[str]:
    names = [f"features.{n}" for n in features] + [f"classifier.{n}" for n in classifier]
    return [key for name in names for key in affine(name)]


KEYS = {
    "alexnet": plain_keys([0, 3, 6, 8, 10], [1, 4, 6]),
    "zfnet": plain_keys([0, 3, 6, 8, 10], [1, 4, 6]),
    "vgg16": plain_keys([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], [0, 3, 6]),
    "vgg19": plain_keys([0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34], [0, 3, 6]),
    "resnet18": list(resnet_keys((2, 2, 2, 2), 2, False)),
    "resnet50": list(resnet_keys((3, 4, 6, 3), 3, True)),
    "mobilenet_v2": list(mobilenet_keys()),
}


@pytest.mark.parametrize("name", KEYS)
def test_names_are_torchvisions(name: str) -> None:
    net = getattr(models, name)(num_classes=3)
    assert [key for key, _ in net.named_state()] == KEYS[name]
    assert list(net.parameters())[-1].value.shape == (3,)


def test_shapes_are_torchvisions() -> None:
    shapes = {name: buffer.value.shape for name, buffer in models.resnet50(num_classes=3).named_state()}
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv1.weight"] == (128, 256, 1, 1) and shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1) and shapes["fc.weight"] == (3, 2048)
    shapes = {name: buffer.value.shape for name, buffer in models.mobilenet_v2().named_state()}
    assert shapes["features.2.conv.0.0.weight"] == (96, 16, 1, 1) and shapes["features.17.conv.2.weight"][0] == 320
    assert shapes["features.4.conv.1.0.weight"] == (144, 1, 3, 3)


def test_the_stride_of_a_bottleneck_is_that_of_its_3x3_convolution() -> None:
    block = models.resnet50(num_classes=3).layer2[0]
    assert [block.conv1.options[0], block.conv2.options[0], block.downsample[0].options[0]] == [1, 2, 2]


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v2"])
def test_scores_and_first_values(name: str) -> None:
    rng = np.random.default_rng(0)
    net = getattr(models, name)(num_classes=5, rng=np.random.default_rng(1)).eval()
    scores = net(rng.standard_normal((2, 3, 224, 192), np.float32))
    assert scores.shape == (2, 5) and np.isfinite(scores).all() and np.ptp(scores[0]) > 0
    again = getattr(models, name)(num_classes=5, rng=np.random.default_rng(1))
    assert all(np.array_equal(a.value, b.value) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("name", "layer"), [
    ("resnet18", "layer4.1.conv2"), ("mobilenet_v2", "features.17.conv.1.0"), ("mobilenet_v2", "features.18.0"),
])  # fmt: skip
def test_first_values_are_spread_as_torchs(name: str, layer: str) -> None:
    torch = pytest.importorskip("torch")
    weight = getattr(models, name)(5, rng=np.random.default_rng(0)).state_dict()[f"{layer}.weight"]
    drawn = torch.nn.init.kaiming_normal_(torch.empty(weight.shape), mode="fan_out")
    assert np.std(weight) == pytest.approx(float(drawn.std()), rel=0.05)


def torch_network(torch: Any, name: str) -> Any:
    """The network as torchvision's classes compute it, with modules of torch; names come with the parameters."""
    functional = torch.nn.functional

    def conv_norm(state: dict, x: Any, conv: str, norm: str, training: bool, **options: Any) -> Any:
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, padding=weight.shape[2] // 2, **options)
        mean, variance = (state[f"{norm}.running_{what}"].clone() for what in ("mean", "var"))
        return functional.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], training)

    def resnet18(state: dict, x: Any, training: bool) -> Any:
        x = functional.relu(conv_norm(state, x, "conv1", "bn1", training, stride=2))
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            for block in range(2):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = functional.relu(conv_norm(state, x, f"{at}.conv1", f"{at}.bn1", training, stride=stride))
                y = conv_norm(state, y, f"{at}.conv2", f"{at}.bn2", training)
                if f"{at}.downsample.0.weight" in state:
                    x = conv_norm(state, x, f"{at}.downsample.0", f"{at}.downsample.1", training, stride=stride)
                x = functional.relu(x + y)
        return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])

    def mobilenet_v2(state: dict, x: Any, training: bool) -> Any:
        strides = {2: 2, 4: 2, 7: 2, 14: 2}
        x = functional.relu6(conv_norm(state, x, "features.0.0", "features.0.1", training, stride=2))
        for block in range(1, 18):
            at, y, depthwise = f"features.{block}.conv", x, 0 if block == 1 else 1
            for n in range(depthwise + 1):
                groups = y.shape[1] if n == depthwise else 1
                stride = strides.get(block, 1) if n == depthwise else 1
                y = conv_norm(state, y, f"{at}.{n}.0", f"{at}.{n}.1", training, groups=groups, stride=stride)
                y = functional.relu6(y)
            y = conv_norm(state, y, f"{at}.{depthwise + 1}", f"{at}.{depthwise + 2}", training)
            x = x + y if x.shape == y.shape else y
        x = functional.relu6(conv_norm(state, x, "features.18.0", "features.18.1", training))
        return functional.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])

    return {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}[name]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_scores_and_gradients_are_those_of_torch(name: str, training: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    net = getattr(models, name)(4, rng=rng, dtype="float64").train(training)
    if name == "mobilenet_v2":
        net.classifier[0].eval()  # dropout
    for key, buffer in net.named_state():
        if key.endswith(("running_mean", "running_var")):
            buffer.value = rng.uniform(0.5, 1.5, buffer.value.shape)
    x = rng.standard_normal((2, 3, 64, 96))
    state = {key: torch.from_numpy(np.array(value)) for key, value in net.state_dict().items()}
    trained = [key for key, _ in net.named_parameters()]
    for key in trained:
        state[key].requires_grad_()
    expected = torch_network(torch, name)(state, torch.from_numpy(x), training)
    scores = net(x)
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-7, atol=1e-9)
    if training:
        grad = rng.standard_normal(scores.shape)
        net.backward(grad, input_grad=False)
        expected.backward(torch.from_numpy(grad))
        for key, parameter in net.named_parameters():
            wanted = state[key].grad.numpy()
            np.testing.assert_allclose(parameter.grad, wanted, rtol=1e-6, atol=1e-9 * abs(wanted).max() + 1e-12)


def test_a_layer_is_replaced_by_its_name() -> None:
    net = models.resnet18(num_classes=3)
    net.fc = nn.Linear(512, 7)
    assert net.eval()(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 7)

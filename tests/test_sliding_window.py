"""Networks that slide over larger images: each score is that of its window, cut out and computed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.nn.peak import Step


def plain(**own: Any) -> nn.Sequential:
    """Made for 16x18 pixels, with a stride of 4; nothing pads."""
    return nn.Sequential({
        "features": nn.Sequential(
            nn.Conv2d(3, 8, 3, **own), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 9, (2, 3), **own), nn.ReLU(),
            nn.AvgPool2d(2),
        ),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(nn.Linear(9 * 9, 20, **own), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5, **own)),
    }).eval()  # fmt: skip


def averaging(**own: Any) -> nn.Sequential:
    """The same size and stride; batch normalisation, a residual block, and the average of the whole map."""
    block = nn.Residual(nn.Sequential(), nn.Sequential(nn.Conv2d(8, 8, 1, **own), nn.ReLU()))
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, **own), nn.BatchNorm2d(8, dtype=own["dtype"]), block, nn.MaxPool2d((3, 2), 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False, **own), nn.Softmax(1),
    ).eval()  # fmt: skip


def parts(**own: Any) -> nn.Sequential:
    """An average of 2x2 parts of a map of 4x4."""
    return nn.Sequential(
        nn.Conv2d(3, 6, (13, 15), **own), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5, **own)
    ).eval()


HEIGHT, WIDTH = 16, 18
OWN: Any = {"rng": np.random.default_rng(0), "dtype": "float64"}
STRIDES = {plain: 4, averaging: 4, parts: 2}


def windows(net: nn.Module, images: np.ndarray, step: int) -> np.ndarray:
    """The scores of every window, one by one."""
    rows, columns = ((size - own) // step + 1 for size, own in zip(images.shape[2:], (HEIGHT, WIDTH), strict=True))
    found = np.empty((len(images), 5, rows, columns))
    for i in range(rows):
        for j in range(columns):
            cut = images[:, :, i * step : i * step + HEIGHT, j * step : j * step + WIDTH]
            found[:, :, i, j] = net(np.ascontiguousarray(cut))
    return found


@pytest.mark.parametrize("build", STRIDES)
@pytest.mark.parametrize("size", [(16, 18), (16, 31), (29, 38), (40, 41)])
def test_every_score_is_that_of_its_window(build: Any, size: tuple[int, int]) -> None:
    net = build(**OWN)
    whole = nn.to_fully_convolutional(net, (3, HEIGHT, WIDTH))
    images = np.random.default_rng(1).standard_normal((2, 3, *size))
    expected = windows(net, images, STRIDES[build])
    np.testing.assert_allclose(whole(images), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(nn.dense_scores(whole, images), expected.mean((2, 3)), rtol=1e-10)
    np.testing.assert_allclose(nn.dense_scores(whole, images[0], average=False), expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("build", "shifts"), [(plain, 2), (plain, 4), (averaging, 2), (parts, 2)])
@pytest.mark.parametrize("size", [(16, 18), (17, 22), (29, 38), (40, 41)])
def test_shifted_maps_are_stitched_to_a_finer_one(build: Any, shifts: int, size: tuple[int, int]) -> None:
    net = build(**OWN)
    whole = nn.to_fully_convolutional(net, (3, HEIGHT, WIDTH))
    images = np.random.default_rng(1).standard_normal((2, 3, *size))
    expected = windows(net, images, STRIDES[build] // shifts)
    found = nn.dense_scores(whole, images, average=False, shifts=shifts)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(nn.dense_scores(whole, images, shifts=shifts), expected.mean((2, 3)), rtol=1e-10)


def test_the_copy_has_the_models_names_and_numbers_and_nothing_in_common() -> None:
    net = plain(**OWN).train()
    net.features[0].freeze()
    whole = nn.to_fully_convolutional(net, (3, HEIGHT, WIDTH))
    before, after = net.state_dict(), whole.state_dict()
    assert list(before) == list(after) and after["classifier.0.weight"].shape == (20, 9, 3, 3)
    assert all(np.array_equal(value.ravel(), after[name].ravel()) for name, value in before.items())
    assert whole.training and not whole.features[0].trainable and whole.classifier[0].trainable
    for parameter in whole.parameters():
        parameter.value = np.zeros(parameter.value.shape)
    assert all(np.array_equal(value, net.state_dict()[name]) for name, value in before.items())


def test_a_padded_network_has_the_same_scores_on_its_own_size_and_a_map_on_a_larger_one() -> None:
    net = nn.convnet("INPUT -> [[CONV -> RELU]*1 -> POOL]*5 -> [FC -> RELU]*1 -> FC", (3, 64, 64), 8).eval()
    whole = nn.to_fully_convolutional(net, (3, 64, 64))
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(whole(images)[:, :, 0, 0], net(images), rtol=1e-4, atol=1e-5)
    assert whole(np.zeros((1, 3, 64 + 5 * 32, 64), np.float32)).shape == (1, 10, 6, 1)


def test_vgg_for_224_gives_6x6_scores_at_384() -> None:
    net = nn.to_fully_convolutional(nn.models.vgg16(num_classes=2), (3, 224, 224))
    assert Step.of_shapes(net, (1, 3, 384, 384)).root.output.shape == (1, 2, 6, 6)


def test_it_learns_on_larger_images() -> None:
    whole = nn.to_fully_convolutional(plain(**OWN).train(), (3, HEIGHT, WIDTH))
    scores = whole(np.ones((1, 3, 24, 26)))
    whole.backward(np.ones_like(scores))
    assert all(parameter.grad.shape == parameter.value.shape for parameter in whole.parameters())


@pytest.mark.parametrize(("call", "message"), [
    (lambda net: nn.dense_scores(net, np.zeros((1, 3, 16, 18))), "convert it by to_fully_convolutional"),
    (lambda net: nn.dense_scores(nn.to_fully_convolutional(net, (3, 16, 18)), np.zeros((3, 20, 20)), shifts=3),
     "shifts must divide the network's stride"),
    (lambda net: nn.dense_scores(nn.to_fully_convolutional(net, (3, 16, 18)), np.zeros((3, 20, 20)), shifts=0),
     "shifts must be at least 1"),
    (lambda net: nn.dense_scores(nn.to_fully_convolutional(net, (3, 16, 18)), np.zeros((3, 8, 20))), "kernel_size"),
    (lambda net: nn.to_fully_convolutional(net, (3, 20, 20)), "features"),
    (lambda net: nn.to_fully_convolutional(nn.Sequential(nn.AdaptiveAvgPool2d(2)), (3, 5, 4)), "share no pixels"),
    (lambda net: nn.to_fully_convolutional(nn.Sequential(nn.Flatten(2)), (3, 5, 4)), "Flatten must make rows"),
])  # fmt: skip
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(plain(**OWN))

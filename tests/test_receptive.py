"""Receptive fields: the arithmetic against the pixels that really move an output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.nn.receptive import receptive_field


def conv(*arguments: Any, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, *arguments, bias=False, dtype="float64", **options)
    layer.weight.value = np.ones(layer.weight.value.shape)
    return layer


def transposed(*arguments: Any, **options: Any) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(1, 1, *arguments, bias=False, dtype="float64", **options)
    layer.weight.value = np.ones(layer.weight.value.shape)
    return layer


def seen(net: nn.Module, at: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """First and last row, and first and last column, of the pixels that an output depends on."""
    grad = np.zeros_like(net(np.ones((1, 1, size, size))))
    grad[0, 0, at[0], at[1]] = 1
    rows, columns = np.nonzero(net.backward(grad)[0, 0])
    return [(rows.min(), rows.max()), (columns.min(), columns.max())]


NETWORKS = {
    "three": lambda: nn.Sequential(conv(3), conv(3), conv(3)),
    "odd": lambda: nn.Sequential(conv((3, 5), (2, 1), (1, 0)), nn.ReLU(), nn.AvgPool2d(2), conv(2, dilation=3)),
    "asymmetric": lambda: nn.Sequential(conv(4, padding=((0, 2), (3, 1))), nn.AvgPool2d(3, 2, 1), conv((1, 3))),
    "residual": lambda: nn.Sequential(
        conv(3, 2), nn.Residual(conv(5, padding=2), nn.Sequential(conv(3, padding=1), conv(5, padding=2))), conv(2),
    ),
    "transposed": lambda: nn.Sequential(conv(3, 2, 1), transposed(5, 1, 2), conv(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("at", [(3, 3), (4, 5)])
def test_the_field_is_the_pixels_that_matter(name: str, at: tuple[int, int]) -> None:
    net = NETWORKS[name]()
    field = receptive_field(net, (1, 48, 48))
    for axis, (first, last) in enumerate(seen(net, at, 48)):
        centre = field.offset[axis] + at[axis] * field.jump[axis]
        assert (first, last) == (centre - (field.size[axis] - 1) / 2, centre + (field.size[axis] - 1) / 2)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(4, 2, 1, 1), (3, 2, 0, 1), (3, 2, 1, 2), (2, 3, 0, 1), (5, 3, 2, 2)],
)
def test_of_a_transposed_convolutions_outputs_the_one_that_sees_most_counts(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    net = nn.Sequential(conv(3, 1, 1), transposed(kernel, stride, padding, dilation=dilation))
    field = receptive_field(net, (1, 16, 16))
    shape = net(np.ones((1, 1, 16, 16))).shape
    heights = []
    for row in range(12, 12 + stride):
        grad = np.zeros(shape)
        grad[0, 0, row] = 1
        net(np.ones((1, 1, 16, 16)))
        rows = np.nonzero(net.backward(grad)[0, 0])[0]
        heights.append(np.ptp(rows) + 1 if rows.size else 0)  # dilation can leave an output without any
    assert field.size == (max(heights), max(heights)) and field.jump == (1 / stride, 1 / stride)


def test_three_small_kernels_see_what_a_large_one_sees() -> None:
    assert receptive_field(NETWORKS["three"](), (1, 20, 20)) == receptive_field(conv(7), (1, 20, 20))


def test_after_flatten_and_global_pooling_everything_is_seen() -> None:
    for last in (nn.Flatten(), nn.AdaptiveAvgPool2d(1)):
        net = nn.Sequential(conv(3, 2), last)
        assert receptive_field(net, (1, 9, 13)).size == (9, 13)


def test_known_networks() -> None:
    vgg = nn.Sequential(*(nn.Sequential(*[conv(3, padding=1)] * n, nn.MaxPool2d(2)) for n in (2, 2, 3, 3, 3)))
    assert receptive_field(vgg, (1, 224, 224)) == nn.ReceptiveField((212, 212), (32, 32), (15.5, 15.5))


def test_branches_must_have_the_same_stride() -> None:
    with pytest.raises(ValueError, match="same stride"):
        receptive_field(nn.Residual(conv(1, 2), nn.AvgPool2d(2, 3)), (1, 2, 2))

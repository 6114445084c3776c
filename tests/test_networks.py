"""The layer tables against numbers that were published elsewhere."""

from __future__ import annotations

import math

import pytest

from fastconv import networks
from fastconv.descriptor import parse


def layers(name):
    """All layers, repeated ones included, where the table knows them."""
    return list(networks._NETWORKS[name](batch=1, dtype="float32", memory_format="channels_last"))


def weights(problem):
    return math.prod(problem.weight_shape)


def test_names():
    assert networks.names() == ["alexnet", "vgg16", "resnet50", "mobilenet_v2"]


@pytest.mark.parametrize(("name", "count"), [("alexnet", 5), ("vgg16", 9), ("resnet50", 20), ("mobilenet_v2", 30)])
def test_distinct_layers(name, count):
    found = networks.problems(name)
    assert len(found) == len(set(found)) == count


def test_resnet50_has_the_sizes_of_the_paper():
    found = networks.problems("resnet50")
    assert found[0].descriptor == "n1c3h224w224k64r7s7p3u2_f32_nhwc"
    assert found[0].out_shape == (1, 64, 112, 112)
    assert {p.in_size[0] for p in found} == {224, 56, 28, 14, 7}
    assert all(p.conv_size[0] in (112, 56, 28, 14, 7) and not p.bias and p.activation is None for p in found)
    # Times that each occurs in the network (He et al., table 1), in the order of the table.
    times = [1, 4, 1, 3, 2, 1, 1, 4, 4, 3, 1, 1, 6, 6, 5, 1, 1, 3, 3, 2]
    # 25 557 032 parameters, less 2 049 000 of the classifier and 53 120 of batch norm.
    assert sum(n * weights(p) for n, p in zip(times, found, strict=True)) == 23_454_912
    # 3.8 GFLOP counts a multiply-add as one.
    assert sum(n * p.flops for n, p in zip(times, found, strict=True)) / 2 == pytest.approx(3.86e9, rel=0.01)


def test_mobilenet_v2_has_the_parameters_of_the_paper():
    found = layers("mobilenet_v2")
    assert len(found) == 52
    # torchvision's 3 504 872 parameters, less 1 281 000 of the classifier and 34 112 of batch norm.
    assert sum(map(weights, found)) == 2_189_760
    assert found[-1].in_shape == (1, 320, 7, 7)
    depthwise = [p for p in found if p.groups > 1]
    assert len(depthwise) == 17
    assert all(p.groups == p.in_channels == p.out_channels and p.activation == "relu6" for p in depthwise)
    # 300 million multiply-adds, of which the classifier has 1.28.
    assert sum(p.flops for p in found) / 2 == pytest.approx(299.5e6, rel=0.01)


def test_alexnet_has_the_parameters_of_torchvision():
    found = networks.problems("alexnet")
    assert sum(weights(p) + p.out_channels for p in found) == 2_469_696
    assert [p.out_size[0] for p in found] == [27, 13, 13, 13, 6]
    assert found[0].descriptor == "n1c3h224w224k64r11s11p2u4_f32_nhwc_bias_relu_max3u2"


def test_vgg16_has_the_layers_of_configuration_d():
    found = networks.problems("vgg16")
    times = [1, 1, 1, 1, 1, 2, 1, 2, 3]
    assert sum(n * (weights(p) + p.out_channels) for n, p in zip(times, found, strict=True)) == 14_714_688
    assert all(p.out_size == p.in_size and p.activation == "relu" and p.bias for p in found)


@pytest.mark.parametrize("name", networks.names())
def test_arguments_reach_every_layer(name):
    found = networks.problems(name, batch=4, dtype="float64", memory_format="contiguous")
    assert {(p.batch, p.dtype, p.memory_format) for p in found} == {(4, "float64", "contiguous")}
    assert [parse(p.descriptor) for p in found] == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lenet"}, "name must be one of alexnet, .* got 'lenet'"),
        ({"name": "vgg16", "batch": 0}, "batch must be at least 1, got 0"),
        ({"name": "vgg16", "dtype": "f32"}, "dtype must be one of float32, float64, got 'f32'"),
        ({"name": "vgg16", "memory_format": "nhwc"}, "memory_format must be one of .* got 'nhwc'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.problems(**arguments)

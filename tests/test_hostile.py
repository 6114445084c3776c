"""Hostile calls: some of each function, with little memory, and many of a few."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hostile import limits, runs
from hostile.arrays import Own
from hostile.inventory import INVENTORY, missing

import fastconv
from fastconv import grad, nn, optim

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and guard pages as Linux has them")

FAMILIES: dict[str, list[str]] = {}
for _name in INVENTORY:
    FAMILIES.setdefault(_name.rsplit(".", 1)[0], []).append(_name)


X, WEIGHT = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 1, 1), np.float32)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: nn.Parameter(np.array([None, "a"], object)), TypeError, "value must be an array of numbers"),
    (lambda: fastconv.conv2d(np.ma.MaskedArray(X, X > 0), WEIGHT), TypeError, "x must not be a masked array"),
    (lambda: fastconv.conv2d(X, WEIGHT, stride=2**63), ValueError, "stride must be at most"),
    (lambda: fastconv.conv2d(X, WEIGHT, padding=2**30), MemoryError, "takes .* bytes"),
    (lambda: fastconv.conv2d(X, WEIGHT, padding=10**5000), ValueError, "padding must be at most"),
    (lambda: fastconv.conv2d(X, WEIGHT, algorithm=[]), TypeError, "algorithm must be"),
    (lambda: fastconv.conv2d(X, [[[[1.0]], [[1.0], [2.0]]]]), ValueError, "weight must be an array"),
    (lambda: fastconv.plan(X.shape, WEIGHT, dtype=10**5000), TypeError, "dtype must be"),
    (lambda: fastconv.max_pool2d(X, 2, ceil_mode=np.zeros(2)), TypeError, "ceil_mode must be True or False"),
    (lambda: fastconv.lp_pool2d(X, 2**1100, 2), ValueError, "norm_type must be positive and finite"),
    (lambda: grad.conv2d_input((1, 1, 3.0, 3), WEIGHT, X), ValueError, "input_size must be a shape"),
    (lambda: grad.conv2d_input((1, 1, 3, 0), WEIGHT, X), ValueError, "input_size's width must be at least 1"),
    (lambda: grad.conv2d_weight(X, (1, 2, 1, 1), X), ValueError, "weight_size has 2 channels"),
    (lambda: softmax(None), TypeError, "grad_output must be"),
    (lambda: fastconv.conv_transpose2d(X, WEIGHT, groups=2**62), ValueError, "groups must divide"),
    (lambda: nn.Softmax(5)(X), ValueError, "dim must be an axis"),
    (lambda: nn.Softmax(0)(np.broadcast_to(X[0, 0, 0, 0], (2**40,))), MemoryError, "allocate"),
    (lambda: nn.CrossEntropyLoss()(np.broadcast_to(X[0, 0, 0, 0], (1, 2**40)), [0]), MemoryError, "allocate"),
    (lambda: nn.AdaptiveAvgPool2d(1)(np.broadcast_to(X[..., :1, :1], (1, 1, 2**50, 1))), MemoryError, "allocate"),
    (lambda: grad.lp_pool2d(X, X[:, :0], X, 2, 1), ValueError, "input must not have an empty axis"),
    (lambda: nn.Flatten(2**62)(X), ValueError, "start_dim must be an axis"),
    (lambda: nn.convnet("INPUT -> [CONV]*999999999 -> FC"), ValueError, "at most"),
    (lambda: optim.Adam([nn.Parameter(X)], betas=()), TypeError, "betas must be two numbers"),
    (lambda: optim.SGD([nn.Parameter(X)], lr="fast"), TypeError, "lr must be a number"),
])  # fmt: skip
def test_what_hostile_calls_have_found(call, error, message):
    with pytest.raises(error, match=message):
        call()


def softmax(grad_output):
    layer = nn.Softmax(-1)
    layer(X)
    return layer.backward(grad_output)


def test_an_empty_result_has_no_elements_that_share_memory():
    out = np.empty((0, 1, 3, 3), np.float32)[::2]
    assert fastconv.conv2d(np.empty((0, 1, 3, 3), np.float32), WEIGHT, out=np.lib.stride_tricks.as_strided(
        out, out.shape, (0, 0, 0, 0))).shape == (0, 1, 3, 3)  # fmt: skip


@pytest.mark.parametrize("algorithm", [None, "reference", "im2col"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_plan_of_no_images_explains_itself(memory_format, algorithm):
    weight = np.ones((3, 3, 1, 1), np.float32)
    plan = fastconv.plan((0, 3, 5, 2), weight, memory_format=memory_format, algorithm=algorithm)
    assert str(plan.explain()).startswith("n0c3h5w2")


def test_subclasses_are_seen_as_plain_arrays():
    for x, weight in ((X.view(Own), WEIGHT), (X, WEIGHT.view(Own))):
        out = np.zeros_like(X).view(Own)
        for _ in range(2):  # the second call is one that is known
            assert fastconv.conv2d(x, weight, out=out) is out
            assert type(fastconv.conv2d(x, weight)) is np.ndarray


def test_a_result_goes_into_a_subclass():
    out = np.zeros((1, 1, 3), np.float32).view(Own)
    assert fastconv.conv1d(X[0, :, :1], WEIGHT[0], out=out) is out
    assert (np.asarray(out) == 1).all()


def test_every_public_function_has_calls():
    assert missing() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_end_in_a_right_answer_or_a_named_argument(family):
    found = runs.search(FAMILIES[family], 15)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.endings["compared"] > found.endings.total() / 10
    assert found.endings["refused"] > found.endings.total() / 10


def test_without_memory_nothing_is_half_done():
    found = limits.run("scarce")
    assert {name: ends["wrong"] for name, ends in found.items()} == {name: [] for name in found}
    assert all(ends["right"] and ends["MemoryError"] for ends in found.values()), found


def test_without_room_for_threads_there_is_an_error():
    found = limits.run("first")
    assert "stacks" in found["failed"]
    assert found["right"]


def test_memory_does_not_grow():
    found = limits.run("growth", "same", "3000")
    # What is new after the first shapes has been seen twice is noise of the allocator.
    assert found[-1] - found[4] < 8, found

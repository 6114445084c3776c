"""The command that accounts for a named network."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fastconv.cli.commands import app


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_summary_of_a_network():
    found = json.loads(
        run("summary", "resnet18", "--size", "64", "--batch", "2", "--optimizer", "sgd", "--json").stdout
    )
    assert found["parameters"] == 11_689_512 and found["training"]["optimizer"] == 0
    assert found["layers"][0]["out_shape"] == [2, 64, 32, 32] and found["layers"][0]["receptive_field"]["size"] == [
        7,
        7,
    ]
    text = run("summary", "resnet18", "--size", "64", "--classes", "10").stdout
    assert "layer1.0.conv1" in text and "11,181,642" in text and "training" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (("lenet",), "network must be one of alexnet"),
    (("alexnet", "--dtype", "int8"), "dtype must be one of float32, float64, got 'int8'"),
    (("alexnet", "--batch", "0"), "batch must be at least 1"),
])  # fmt: skip
def test_a_mistake_takes_one_line(arguments, message):
    assert message in run("summary", *arguments, code=2).stderr

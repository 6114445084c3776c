"""README's Python runs as it stands and gives what its comments say."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict:
    names: dict = {}
    with contextlib.chdir(tmp_path_factory.mktemp("readme")):
        for block in re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S):
            exec(compile(block, str(README), "exec"), names)
    return names


def test_shapes_are_those_of_the_comments(ran):
    assert ran["x"].shape == ran["blurred"].shape == (1, 3, 512, 512)
    assert ran["edges"].shape == (1, 2, 512, 512)
    assert ran["features"].shape == (1, 64, 256, 256)
    assert ran["pooled"].shape == (1, 64, 128, 128)


def test_a_blur_keeps_the_mean_away_from_the_border(ran):
    inside = np.s_[:, :, 16:-16, 16:-16]
    np.testing.assert_allclose(ran["blurred"][inside].mean(), ran["x"][inside].mean(), rtol=1e-3)


def test_results_keep_the_memory_format(ran):
    for name in ("blurred", "features", "pooled"):
        assert ran[name].transpose(0, 2, 3, 1).flags.c_contiguous, name


def test_the_network_learns(ran):
    assert ran["accuracy"] > 0.9
    frozen = [parameter for parameter in ran["net"].parameters() if not parameter.requires_grad]
    assert frozen == list(ran["net"][0].parameters())
    assert [group["lr"] for group in ran["groups"]] == pytest.approx([0.0003, 0.003])


def test_a_classifier_slides(ran):
    assert ran["scores"].shape == (1, 10, 3, 5) and ran["finer"].shape == (1, 10, 5, 9)
    np.testing.assert_allclose(ran["finer"][:, :, ::2, ::2], ran["scores"], rtol=1e-4, atol=1e-5)


def test_the_two_commands_are_there():
    text = README.read_text()
    assert '\npython -m pip install ".[cli]" && fastconv tune resnet50\n' in text
    assert '\npython -m pip install ".[test]" && pytest -n 2\n' in text

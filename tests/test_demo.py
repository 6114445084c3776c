"""``fastconv train-demo``: it learns, says so in both forms, and can be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fastconv
from fastconv import demo
from fastconv.cli.commands import app

pytest.importorskip("sklearn")
plt = pytest.importorskip("matplotlib.image")


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["train-demo", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def figures(output: Path, *options: Any) -> list[tuple]:
    """What --json says of each epoch, all but the speed."""
    lines = [json.loads(line) for line in run("--json", "--output", output, *options).stdout.splitlines()]
    assert all(line["images_per_second"] > 0 for line in lines)
    return [(line["epoch"], line["loss"], line["accuracy"]) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run as users start it, and its directory, which did not exist before."""
    output = tmp_path_factory.mktemp("demo") / "new" / "directory"
    return run("--output", output), output


def test_it_reads_98_percent_of_images_that_it_has_not_seen(trained: Any) -> None:
    result, output = trained
    words = result.stdout.split()
    assert words[0] == "accuracy" and float(words[1].rstrip("%")) >= 98
    assert result.stdout.count("\n") == 1, "one line"
    assert f"449 test images; {output / 'digits.npz'}, {output / 'digits.png'}" in result.stdout
    for word in ("epoch 20/20", "loss 0.", "accuracy 9", "images/s"):
        assert word in result.stderr


def test_the_checkpoint_gives_the_same_accuracy(trained: Any) -> None:
    result, output = trained
    data = demo.digits(np.random.default_rng(0))
    net = demo.network(np.random.default_rng(99))
    assert demo.accuracy(net, data) < 0.5
    net.load_state_dict(fastconv.load(output / "digits.npz"))
    assert f"accuracy {demo.accuracy(net, data):.2%} " in result.stdout


def test_the_plot_is_an_image_with_two_curves(trained: Any) -> None:
    image = plt.imread(trained[1] / "digits.png")
    assert image.shape == (400, 700, 4)
    colours = {tuple(colour) for colour in (255 * image[..., :3]).round().astype(int).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours, "matplotlib's C0 and C1"


def test_the_same_seed_gives_the_same_results(tmp_path: Path) -> None:
    options = ("--epochs", 2, "--batch-size", 128, "--learning-rate", 0.01)
    first = figures(tmp_path / "a", *options, "--seed", 5)
    assert [epoch for epoch, *_ in first] == [1, 2]
    assert first[1][1] < first[0][1]
    assert figures(tmp_path / "b", *options, "--seed", 5) == first
    a, b = (fastconv.load(tmp_path / name / "digits.npz") for name in "ab")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert figures(tmp_path / "a", *options, "--seed", 6) != first, "and another one others"


def test_json_leaves_stdout_to_the_epochs(tmp_path: Path) -> None:
    result = run("--json", "--epochs", 1, "--output", tmp_path)
    (line,) = result.stdout.splitlines()
    assert json.loads(line).keys() == {"epoch", "loss", "accuracy", "images_per_second"}
    assert f"{tmp_path / 'digits.npz'}" in result.stderr


def test_images_are_held_out() -> None:
    data, other = (demo.digits(np.random.default_rng(seed)) for seed in (0, 1))
    assert (len(data.train_images), len(data.test_images)) == (1348, 449)
    assert data.train_images.dtype == np.float32 and data.train_images.max() == 1 and data.train_images.min() == 0
    assert not np.array_equal(data.test_labels, other.test_labels)
    # Every image of the set is in one of both parts, with its label.
    sets = [
        sorted((label, image.tobytes()) for image, label in zip(*part, strict=True))
        for part in (
            (np.concatenate([d.train_images, d.test_images]), np.concatenate([d.train_labels, d.test_labels]))
            for d in (data, other)
        )
    ]
    assert sets[0] == sets[1] and len(sets[0]) == 1797


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be positive, got 0"),
        (["--batch-size", "-1"], "batch_size must be positive, got -1"),
        (["--learning-rate", "nan"], "learning_rate must be positive, got nan"),
        (["--seed", "-3"], "seed must not be negative, got -3"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, "--output", tmp_path, code=2)
    assert result.stderr == f"fastconv: {message}\n" and result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_spec = demo.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    result = run("--output", tmp_path / "new", code=1)
    assert result.stderr == "fastconv: train-demo needs scikit-learn: pip install 'fastconv[demo]'\n"
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "needs scikit-learn and matplotlib:" in run(code=1).stderr


def test_an_output_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--output", tmp_path / "file", code=1)
    assert "file" in result.stderr and len(result.stderr.splitlines()) == 1

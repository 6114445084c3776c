"""State dicts on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn

ENDINGS = [".npz", ".safetensors"]


@pytest.fixture(params=ENDINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"net.v1{request.param}"


def network(seed: int) -> nn.Sequential:
    nn.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False)))
    net(np.random.default_rng(seed).standard_normal((2, 2, 5, 5)).astype(np.float32))
    return net


def test_module(path: Path) -> None:
    net, other = network(0), network(1)
    fastconv.save(net, path)
    assert os.listdir(path.parent) == [path.name]
    other.load_state_dict(fastconv.load(path))
    for key, value in net.state_dict().items():
        loaded = other.state_dict()[key]
        assert loaded.dtype == value.dtype and loaded.shape == value.shape
        np.testing.assert_array_equal(loaded, value)


def test_arrays_of_any_layout(path: Path) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    state = {"a/b.c": x.transpose(2, 0, 1), "every other": x[:, ::2], "scalar": np.array(7), "none": np.zeros((0, 3))}
    state |= {"flags": np.array([True, False]), "half": np.float16([1, 2])}
    fastconv.save(state, str(path))
    loaded = fastconv.load(path)
    assert set(loaded) == set(state)
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype and loaded[key].shape == value.shape
        np.testing.assert_array_equal(loaded[key], value)
        loaded[key][...] = 0  # not a view of the file


def test_a_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastconv.save({"a": np.ones(3)}, path)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        fastconv.save({"a": np.zeros(3)}, path)
    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(fastconv.load(path)["a"], np.ones(3))


def test_damaged_files(path: Path) -> None:
    fastconv.save({"a": np.arange(1000.0)}, path)
    whole = path.read_bytes()
    for data in (b"", whole[:5000], b"{}" * 300):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"net\.v1\{path.suffix} cannot be read as \{path.suffix}"):
            fastconv.load(path)


def test_errors(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastconv.load(path)
    with pytest.raises(TypeError, match=r"values must be arrays of numbers, got object for 'a'"):
        fastconv.save({"a": np.array([None])}, path)
    for call in (lambda: fastconv.save({}, path.with_suffix(".pt")), lambda: fastconv.load(path.with_suffix(".pt"))):
        with pytest.raises(ValueError, match=r"path must end in \.npz or \.safetensors, got .*\.pt"):
            call()


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, a=np.array([{1: 2}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        fastconv.load(path)


def test_torch_reads_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    twin = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    fastconv.save(net, tmp_path / "ours.safetensors")
    twin.load_state_dict(files.load_file(tmp_path / "ours.safetensors"))
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_allclose(net.eval()(x), twin.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-5)
    files.save_file(twin.state_dict(), tmp_path / "torchs.safetensors")
    net.load_state_dict(fastconv.load(tmp_path / "torchs.safetensors"))
    files.save_file({"a": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="cannot be read as"):
        fastconv.load(tmp_path / "b.safetensors")


def test_safetensors_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    for call in (
        lambda: fastconv.save({}, tmp_path / "a.safetensors"),
        lambda: fastconv.load(tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'fastconv\[safetensors\]'"):
            call()
    assert not list(tmp_path.iterdir())

"""Checkpoints from strangers: refused with the file's name, and nothing in them runs, is written or fills memory."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from archives import HOSTILE, bomb, leftovers, make


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(name, tmp_path)
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as {path.suffix}: ")):
        fastconv.load(path)
    assert leftovers(path) == []


@pytest.mark.parametrize("name", ["a pickled array among good ones", "a negative size", "a member that is no array"])
def test_the_array_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'weight'"):
        fastconv.load(make(name, tmp_path))


def test_pickles_would_have_run(tmp_path: Path) -> None:
    """The files that must not run anything do so where somebody lets them."""
    path = make("a pickled array among good ones", tmp_path)
    np.load(path, allow_pickle=True)["weight"]
    assert leftovers(path) == ["canary"]


def test_a_bomb_is_measured_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, size = tmp_path / "bomb.npz", 1 << 24
    path.write_bytes(bomb(size, size))
    assert path.stat().st_size < size / 500
    monkeypatch.setattr(checkpoint, "free_bytes", lambda: size // 2)
    with pytest.raises(ValueError, match=r"bomb\.npz .*unpacks to \d+ bytes, more than the 8388608 that are free"):
        fastconv.load(path)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda: 2 * size)
    assert fastconv.load(path)["weight"].nbytes == size


def test_large_files_that_hardly_shrink_are_no_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is an estimate, so it does not decide on honest files."""
    monkeypatch.setattr(checkpoint, "free_bytes", lambda: 0)
    np.savez_compressed(tmp_path / "a.npz", a=np.tile(np.arange(100.0), 5))
    assert fastconv.load(tmp_path / "a.npz")["a"].shape == (500,)


@pytest.mark.parametrize("key", ["../outside", "{elsewhere}/outside", "a\\..\\b", "..", "C:x"])
def test_names_are_no_paths(key: str, tmp_path: Path) -> None:
    """A name like a path is a key like others."""
    array, folder, elsewhere = io.BytesIO(), tmp_path / "inner", tmp_path / "elsewhere"
    np.save(array, np.ones(3))
    folder.mkdir()
    elsewhere.mkdir()
    key = key.format(elsewhere=elsewhere)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr(f"{key}.npy", array.getvalue())
    assert list(fastconv.load(folder / "a.npz")) == [key]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.npz", "elsewhere", "inner"]

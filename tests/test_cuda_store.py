"""Machine code for GPUs on disk: found again, compiled again where damaged, and no matter where none can be kept."""

from __future__ import annotations

import pwd
from types import SimpleNamespace

import pytest

from fastconv.cuda.store import stored_cubin


@pytest.fixture
def kernel():
    """What counts how often it is compiled."""
    made = SimpleNamespace(features="", function=len, name="made_up", arguments=(), bounds=None, compiled=0)

    def cubin(target: tuple) -> bytes:
        made.compiled += 1
        return b"code for %d.%d" % target

    made.cubin = cubin
    return made


def test_code_is_compiled_once(kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CUDA_CACHE", str(tmp_path / "new"))
    assert [stored_cubin(kernel, (9, 0)) for _ in range(3)] == [b"code for 9.0"] * 3
    assert kernel.compiled == 1
    assert stored_cubin(kernel, (8, 0)) == b"code for 8.0"
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"?" + b[41:], lambda b: b[32:]]
)
def test_damaged_code_is_compiled_again(kernel, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("FASTCONV_CUDA_CACHE", str(tmp_path))
    stored_cubin(kernel, (9, 0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert [stored_cubin(kernel, (9, 0)) for _ in range(2)] == [b"code for 9.0"] * 2
    assert kernel.compiled == 2


def test_where_none_can_be_kept(kernel, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTCONV_CUDA_CACHE", str(tmp_path / "file"))
    assert stored_cubin(kernel, (9, 0)) == b"code for 9.0"
    for name in ("FASTCONV_CUDA_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert stored_cubin(kernel, (9, 0)) == b"code for 9.0"
    assert kernel.compiled == 2


def test_a_full_disk_leaves_nothing(kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CUDA_CACHE", str(tmp_path))
    monkeypatch.setattr("fastconv.cuda.store.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert stored_cubin(kernel, (9, 0)) == b"code for 9.0"
    assert list(tmp_path.iterdir()) == []

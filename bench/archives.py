"""Checkpoints that were made to do harm. `fastconv.load` must refuse each of them and run, write and grow nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CANARY = "canary"  # a file of this name appears beside a checkpoint that got its code to run
_TIB = 1 << 40


class _Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _npy(shape: str = "(3,)", descr: str = "'<f4'", data: bytes = bytes(12)) -> bytes:
    """An array file whose header says whatever it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"good": _npy(), **members}.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def _pickled_array(path: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([_Touch(path.with_name(CANARY))], dtype=object), allow_pickle=True)
    return _npz(weight=file.getvalue())


def bomb(claimed: int = 4 * _TIB, real: int = 1 << 26) -> bytes:
    """Zeros, a thousandth of their size when packed; the directory and the array's header claim more than there are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight.npy", _npy(f"({claimed // 4},)", data=bytes(real)))
        archive.infolist()[0].file_size = claimed + 1000
    return file.getvalue()


def _no_array() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weight", b"import os")
    return file.getvalue()


def _wrong_sum() -> bytes:
    data = bytearray(_npz(weight=_npy(data=b"*" * 12)))
    data[data.index(b"*" * 12)] ^= 1
    return bytes(data)


def _safetensors(header: Any, size: int | None = None, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _tensor(start: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# What it is -> its ending, and its bytes (from the path, for code that leaves a trace beside it).
HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "a pickled array among good ones": (".npz", _pickled_array),
    "a pickle instead of an archive": (".npz", lambda path: pickle.dumps(_Touch(path.with_name(CANARY)))),
    "objects as a field of records": (".npz", lambda _: _npz(weight=_npy(descr="[('a', '|O')]", data=bytes(24)))),
    "code in an array's header": (".npz", lambda _: _npz(weight=_npy(f"(open('{CANARY}', 'w'),)"))),
    "a header of 9000 brackets": (".npz", lambda _: _npz(weight=_npy("(" * 9000))),
    "a header of 4 GiB": (".npz", lambda _: _npz(weight=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1))),
    "64 MiB that claim to be 4 TiB": (".npz", lambda _: bomb()),
    "12 bytes of an array of 8 GiB": (".npz", lambda _: _npz(weight=_npy(f"({1 << 31},)"))),
    "12 bytes of an array of 4 TiB": (".npz", lambda _: _npz(weight=_npy(f"({_TIB},)"))),
    "a product of sizes that overflows": (".npz", lambda _: _npz(weight=_npy(f"({2**62}, {2**62})"))),
    "a negative size": (".npz", lambda _: _npz(weight=_npy("(-3,)"))),
    "a member that is no array": (".npz", lambda _: _no_array()),
    "a wrong checksum": (".npz", lambda _: _wrong_sum()),
    "an archive cut short": (".npz", lambda _: _npz(weight=_npy())[:-30]),
    "a header of 2^63 bytes": (".safetensors", lambda _: _safetensors({}, size=1 << 63)),
    "a header longer than the file": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 8)}, size=1000)),
    "a header of 100000 brackets": (".safetensors", lambda _: _safetensors(b'{"a":' + b"[" * 100_000)),
    "tensors that overlap": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 8), "b": _tensor(4, 12)})),
    "a gap between tensors": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 4, (1,)), "b": _tensor(8, 16)})),
    "offsets behind the end": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 1 << 40, (1 << 38,))})),
    "offsets that run backwards": (".safetensors", lambda _: _safetensors({"a": _tensor(8, 0)})),
    "a shape for another size": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 16, (1000,))})),
    "a shape that overflows": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 16, (2**62, 2**62, 4))})),
    "an unknown type": (".safetensors", lambda _: _safetensors({"a": _tensor(0, 16, (2,), "OBJECT")})),
}  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """Write the file of that name in `HOSTILE` into a folder."""
    ending, data = HOSTILE[name]
    path = folder / f"hostile{ending}"
    path.write_bytes(data(path))
    return path


def leftovers(path: Path) -> list[str]:
    """What lies beside the checkpoint that should not."""
    return sorted(set(os.listdir(path.parent)) - {path.name})


def load_elsewhere(name: str, folder: Path) -> dict[str, Any]:
    """Load the file in a process of its own: the error, and MiB that its memory grew by.

    Raises
    ------
    RuntimeError
        If it is taken, or leaves a file.
    """
    path = make(name, folder)
    done = subprocess.run(
        [sys.executable, __file__, str(path)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    if done.returncode or leftovers(path):
        raise RuntimeError(f"{name}: {done.stderr}{leftovers(path)}")
    return json.loads(done.stdout.splitlines()[-1])


def _load(path: str) -> None:
    import fastconv

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        fastconv.load(path)
    except ValueError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"error": str(error).partition(": ")[2], "mebibytes": grown / 1024}))
    else:
        raise SystemExit("it was taken")


if __name__ == "__main__":
    _load(sys.argv[1])

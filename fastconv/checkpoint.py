"""State dicts on disk: .npz, and .safetensors, which torch and others read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.arrays import plain
from fastconv.free_memory import free_bytes
from fastconv.nn.module import Module
from fastconv.sizes import shown

_SUFFIXES = (".npz", ".safetensors")
_BOMB = 50  # times that weights never shrink by


def save(state_dict: Module | Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write arrays to a file, which is replaced only when the new one is complete.

    Parameters
    ----------
    state_dict : Module or mapping of str to array
        Of a module, its `state_dict()`.
    path : path
        Ends in .npz, or in .safetensors (which needs the package of that name).

    Raises
    ------
    TypeError
        If a value is not an array of numbers.
    ValueError
        For another ending.
    ImportError
        If safetensors is needed and not installed.
    """
    path, values = _checked(path), state_dict.state_dict() if isinstance(state_dict, Module) else state_dict
    if not isinstance(values, Mapping):
        raise TypeError(f"state_dict must be a Module or a mapping from names to arrays, got {shown(values)}")
    arrays = {str(name): np.asarray(plain(v, f"state_dict[{name!r}]"), order="C") for name, v in values.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"values must be arrays of numbers, got {array.dtype} for {name!r}")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(unfinished, "xb") as file:
            if path.suffix == ".npz":
                np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
            else:
                file.write(_safetensors().save(arrays))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a file that `save`, or another program, wrote; nothing in it is executed.

    Parameters
    ----------
    path : path
        Ends in .npz or .safetensors.

    Returns
    -------
    dict of str to array

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For another ending, or a file that is damaged, holds what is no array or what NumPy has no type for, or
        would unpack to far more than its size and than there is memory.
    ImportError
        If safetensors is needed and not installed.
    """
    path = _checked(path)
    read = _read_npz if path.suffix == ".npz" else partial(_read_safetensors, _safetensors())
    try:
        return read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # damage shows as one of many classes, safetensors' own among them
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error!r}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:  # NumPy leaves a damaged one open
        # zipfile never reads more of a member than the size that is noted for it.
        size = sum(member.file_size for member in archive.zip.infolist())
        free = free_bytes()
        if size > _BOMB * path.stat().st_size and free is not None and size > free:
            raise ValueError(f"it unpacks to {size} bytes, more than the {free} that are free")
        return {name: _array(archive, name) for name in archive.files}


def _array(archive: Any, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:
        raise ValueError(f"{name!r}: {error}") from error
    if not isinstance(array, np.ndarray):  # a member of another kind comes as bytes
        raise ValueError(f"{name!r} is no array")
    return array


def _read_safetensors(safetensors: Any, path: Path) -> dict[str, np.ndarray]:
    # The arrays are views of the file's bytes, which are read-only.
    return {name: array.copy() for name, array in safetensors.load(path.read_bytes()).items()}


def _checked(path: str | os.PathLike) -> Path:
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"path must be a str or a path, got {shown(path)}")
    if Path(path).suffix not in _SUFFIXES or "\0" in str(path):
        raise ValueError(f"path must end in {' or '.join(_SUFFIXES)}, got {shown(str(path))}")
    return Path(path)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("this needs the package safetensors: pip install 'fastconv[safetensors]'") from error
    return safetensors.numpy

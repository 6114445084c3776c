"""Compiled kernels on disk: Numba's cache, with files that processes can share, be killed over and garble.

Numba numbers a function's files and keeps the numbers in an index, which it writes before the file. A process that is
killed in between, or two that write at once, leave a number that names the code of another kernel; many of ours have
the same signature, so it would be run. Here the name of a file is a hash of what it was compiled from, there is no
index, and what does not match its checksum, in which the name counts too, is compiled again. Where nothing can be
written, kernels are compiled for this process alone, with one warning.
"""

from __future__ import annotations

import os
import pickle
import warnings
from hashlib import sha256
from typing import Any

from numba import config
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.serialize import dumps

from fastconv.sealed import sealed, unsealed


class _Files(IndexDataCacheFile):
    """A file for each compiled signature, named by the hash of its key: the checksum, then what Numba keeps."""

    def save(self, key: Any, data: Any) -> None:
        place = self._place(key)
        with self._open_for_write(place) as file:
            file.write(sealed(dumps(data), os.path.basename(place)))

    def load(self, key: Any) -> Any:
        place = self._place(key)
        try:
            with open(place, "rb") as file:
                found = unsealed(file.read(), os.path.basename(place))
        except FileNotFoundError:
            return None
        return None if found is None else pickle.loads(found)

    def _place(self, key: Any) -> str:
        known_by = repr((self._version, self._source_stamp, key))
        return self._data_path(f"{self._index_name[:-4]}.{sha256(known_by.encode()).hexdigest()[:32]}.nbc")


class _Cache(FunctionCache):
    """Numba's cache of one function, which may fail without the call failing."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            return super().load_overload(signature, context)
        except OSError as error:
            _warn(f"{self._cache_path} cannot be read ({error})")
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            _warn(f"{self._cache_path} cannot be written ({error})")


def cache_of(function: Any) -> Any:
    """The cache of a function that is to be compiled; one that keeps nothing where no folder can be written."""
    try:
        return _Cache(function)
    except RuntimeError:
        _warn(f"neither the folder of {os.path.dirname(__file__)} nor the user's cache folder can be written")
        return NullCache()


class _Warned:
    once = False


def _warn(reason: str) -> None:
    if _Warned.once:
        return
    _Warned.once = True
    named = f", {config.CACHE_DIR} cannot" if config.CACHE_DIR else ""
    warnings.warn(
        f"compiled kernels are not kept for the next process: {reason}; let NUMBA_CACHE_DIR name a folder that can "
        f"be{named}", RuntimeWarning, stacklevel=3,
    )  # fmt: skip

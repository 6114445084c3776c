"""Machine code of kernels on disk, so that the next process does not compile it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastconv.cuda.toolkit import Capability, source_stamp
from fastconv.sealed import sealed, unsealed

if TYPE_CHECKING:
    from fastconv.cuda.kernel import Kernel


def folder() -> Path | None:
    """Where machine code is kept: ``FASTCONV_CUDA_CACHE``, or fastconv's folder for caches; None without a home."""
    chosen = os.environ.get("FASTCONV_CUDA_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    try:
        return user_cache_path("fastconv") / "cubin"
    except RuntimeError:
        return None


def stored_cubin(kernel: Kernel, capability: tuple[int, int]) -> bytes:
    """The kernel's machine code, from disk if it was compiled before.

    A folder that cannot be written does no harm, nor does a file that is damaged: a checksum comes first in it.
    """
    target: Capability = (*capability, kernel.features) if kernel.features else capability
    where = folder()
    if where is None:
        return kernel.cubin(target)
    path = where / f"{_key(kernel, target)}.cubin"
    with suppress(OSError):
        stored = unsealed(path.read_bytes(), path.name)
        if stored is not None:
            return stored
    code = kernel.cubin(target)
    with suppress(OSError):
        _keep(path, sealed(code, path.name))
    return code


def _keep(path: Path, data: bytes) -> None:
    """Write a file of which a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _key(kernel: Kernel, capability: Capability) -> str:
    """A name for what was compiled: the sources, which kernel of them, its types and what for."""
    what = (source_stamp(), kernel.function.__module__, kernel.name, kernel.arguments, kernel.bounds, capability)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

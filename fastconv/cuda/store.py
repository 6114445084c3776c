"""Machine code of kernels on disk, so that the next process does not compile it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastconv.cuda.toolkit import Capability, source_stamp

if TYPE_CHECKING:
    from fastconv.cuda.kernel import Kernel


def folder() -> Path:
    """Where machine code is kept: ``FASTCONV_CUDA_CACHE``, or fastconv's folder for caches."""
    chosen = os.environ.get("FASTCONV_CUDA_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("fastconv") / "cubin"


def stored_cubin(kernel: Kernel, capability: tuple[int, int]) -> bytes:
    """The kernel's machine code, from disk if it was compiled before; a folder that cannot be written does no harm."""
    target: Capability = (*capability, kernel.features) if kernel.features else capability
    path = folder() / f"{_key(kernel, target)}.cubin"
    with suppress(OSError):
        return path.read_bytes()
    code = kernel.cubin(target)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)  # a reader sees all of it or nothing
    return code


def _key(kernel: Kernel, capability: Capability) -> str:
    """A name for what was compiled: the sources, which kernel of them, its types and what for."""
    what = (source_stamp(), kernel.function.__module__, kernel.name, kernel.arguments, kernel.bounds, capability)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

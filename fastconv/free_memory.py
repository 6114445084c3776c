"""How much memory there is left, on this machine and on a GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # what a container may use, version 2


def free_bytes(device: str = "cpu") -> int | None:
    """Bytes that a program can still take, or None if nobody says.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Of the CPU, what the system could give away without swapping, within the limit of a container.
    """
    if device == "cuda":
        return import_module("fastconv.cuda.driver").free_bytes()
    found = [bytes_left for bytes_left in (_of_system(), _of_container()) if bytes_left is not None]
    return min(found, default=None)


def _of_system() -> int | None:
    with suppress(OSError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    with suppress(ValueError, OSError, AttributeError):  # other systems know these names, or have no such function
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_container() -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number: there is no limit
        return int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text())
    return None

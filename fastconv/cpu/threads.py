"""How many threads a launch may use: Numba's limit in this Python thread, and only one after an unsafe fork."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numba

from fastconv.sizes import integer

_STACK_BYTES = 8 << 20  # of a thread, where nobody says how many
_WARNING = (
    "fastconv computes on one thread in this process: it was forked from one that had loaded OpenMP or started Numba's "
    "threads, and they do not survive a fork. For more threads start it by "
    "multiprocessing.get_context('spawn'), or DataLoader(..., multiprocessing_context='spawn'); if one is what you "
    "want, compute in `with fastconv.threads(1):`"
)


class _Process:
    """What a fork has left to this process."""

    lost_threads = False
    warned = False


class _Limit(threading.local):
    """That of the innermost `threads` block, which a fork in it leaves to the child."""

    n: int | None = None


_limit = _Limit()


def _after_fork() -> None:
    # A child of a child that has lost them has lost them too: both answers stay what they are.
    _Process.lost_threads = _pool_started() or _openmp_loaded()


def _pool_started() -> bool:
    try:
        numba.threading_layer()
    except ValueError:  # not chosen yet
        return False
    return True


def _openmp_loaded() -> bool:
    """Whether the GNU OpenMP that Numba would use is loaded, perhaps with threads that PyTorch started.

    In a forked child it would wait for those for ever.
    """
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):  # not loaded; a system without RTLD_NOLOAD has no GNU OpenMP
        return False
    return True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def usable_threads(wanted: int) -> int:
    """Threads that a launch may use now: at most `wanted` and the limit of this Python thread."""
    if wanted == 1:
        return 1
    return _one() if _Process.lost_threads else min(wanted, numba.get_num_threads())


def _one() -> int:
    if not _Process.warned and _limit.n != 1:
        _Process.warned = True
        warnings.warn(_WARNING, RuntimeWarning, stacklevel=6)  # names the line that calls a function or a plan
    return 1


def check_stacks(count: int) -> None:
    """Raise MemoryError where so many threads would not find room for their stacks.

    OpenMP ends the process when it cannot start a thread.
    """
    if sys.platform == "win32":
        return
    import resource

    size = _STACK_BYTES
    if (limit := resource.getrlimit(resource.RLIMIT_STACK)[0]) != resource.RLIM_INFINITY:
        size = max(size, limit)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    held = []
    try:
        held += [mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ) for _ in range(count)]
    except (OSError, ValueError) as error:
        raise MemoryError(f"no memory for the stacks of {count} threads, of {size} bytes each") from error
    finally:
        for memory in held:
            memory.close()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Limit the threads that this Python thread's calls use: ``with fastconv.threads(n):``.

    It counts for calls of functions, layers and plans, also of plans made before, and for other code compiled by
    Numba, whose limit it is (``numba.set_num_threads``). Other Python threads keep their own limits. Where blocks are
    nested, the innermost counts. Results of plans do not change.

    Parameters
    ----------
    n : int
        At least 1. More than Numba was started with (``NUMBA_NUM_THREADS``) means all of those.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or is less than 1.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 3, 32, 32), np.float32), np.ones((8, 3, 5, 5), np.float32)
    >>> with fastconv.threads(1):
    ...     fastconv.conv2d(x, w).shape
    (1, 8, 28, 28)
    """
    n = integer(n, "n", least=1)
    outer, before = _limit.n, None if _Process.lost_threads else numba.get_num_threads()
    _set(n, min(int(n), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        _set(outer, before)


def _set(n: int | None, of_numba: int | None) -> None:
    _limit.n = n
    if of_numba is not None and not _Process.lost_threads:  # else Numba's lock may be one that nobody will release
        numba.set_num_threads(of_numba)

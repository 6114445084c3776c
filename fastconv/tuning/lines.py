"""A file of lines that processes add to under a lock: read in bounded memory, and never left with half a line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LONGEST = 1 << 16  # bytes of a line; those of wisdom have one to five thousand
MOST = 1 << 25  # bytes of a file that are read, the last ones
_PLAIN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for; bytes as they are
_PATIENCE = 60.0  # seconds to wait for another process, which holds the lock for a thousandth


def read(file: Path, regular: bool = True) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers; None in place of one that is too long.

    Each has its end, but the last one may have none: it is being written, or a crash tore it. Empty ones
    are left out. Of a file larger than `MOST` the last lines are read, and counted from there.

    Parameters
    ----------
    regular : bool, default True
        Refuse what is not a regular file: to open a pipe would wait for somebody to write.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with open(file, "rb", opener=_refuse_others if regular else None) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MOST:
            opened.seek(size - MOST - 1)
            _skip(opened)
        for number, line in enumerate(iter(lambda: opened.readline(LONGEST), b""), 1):
            whole = line.endswith(b"\n") or len(line) < LONGEST
            if not whole:
                _skip(opened)
            if line.strip():
                yield number, line if whole else None


def _refuse_others(file: str, flags: int) -> int:
    descriptor = os.open(file, flags | _PLAIN)
    try:
        _check(descriptor, file)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(descriptor: int, file: Any) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))


def _skip(opened: BinaryIO) -> None:
    """Read on to the end of a line."""
    while (part := opened.readline(LONGEST)) and not part.endswith(b"\n"):
        pass


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the file's lock, which processes that are killed give back; its folder is made.

    Raises
    ------
    OSError
        If the lock cannot be written or got, or the file system has none.
    """
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock", timeout=_PATIENCE)
    try:
        lock.acquire()
    except NotImplementedError as error:  # filelock's word for a file system without locks
        raise OSError(errno.ENOSYS, str(error), f"{file}.lock") from None
    try:
        yield
    finally:
        lock.release()


def append(file: Path, data: bytes, whole: Any) -> None:
    """Add lines, all or none of them; call it in `locked`.

    Parameters
    ----------
    whole : callable
        ``whole(line)`` says whether a last line without an end is all there: it gets one. Another one, which a
        crash tore, is taken away, unless it is longer than any that is written here.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | _PLAIN, 0o644)
    try:
        _check(descriptor, file)
        size = os.fstat(descriptor).st_size
        last = _last_line(descriptor, size)
        if len(last) == LONGEST or (last and whole(last)):
            data = b"\n" + data
        elif last:
            os.ftruncate(descriptor, size := size - len(last))
        try:
            while data:
                data = data[os.write(descriptor, data) :]  # a disk that fills up takes a part
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _last_line(descriptor: int, size: int) -> bytes:
    """What comes after the last end of a line; no more of it than `LONGEST`."""
    os.lseek(descriptor, max(0, size - LONGEST), os.SEEK_SET)
    return os.read(descriptor, LONGEST).rpartition(b"\n")[2]

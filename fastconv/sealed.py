"""Bytes that are kept in a file under a name, with a checksum that tells damage, and the name of another file."""

from __future__ import annotations

from hashlib import sha256

_CHECKSUM = sha256().digest_size


def sealed(data: bytes, name: str) -> bytes:
    """What to write for `data` in the file of this name."""
    return sha256(name.encode() + data).digest() + data


def unsealed(stored: bytes, name: str) -> bytes | None:
    """What was `sealed`, or None if that is not what the file of this name holds."""
    data = stored[_CHECKSUM:]
    return data if stored == sealed(data, name) else None

"""Elements as they lie in memory and as kernels compute with them: those of 16 bits are float32 in registers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.ptx import from_bf16, from_f16, pack_bf16, pack_f16
from fastconv.cuda.toolkit import device, float32, types, uint16


class Codec(NamedTuple):
    """How a kernel reads and writes elements of a dtype.

    Attributes
    ----------
    stored, real : Numba type
        Of an element in memory, and of what it is computed with.
    read : device function ``read(x, index)``
    write : device function ``write(x, index, value)``
        Rounds to the nearest.
    """

    stored: Any
    real: Any
    read: Any
    write: Any


@cache
def codec(dtype: str) -> Codec:
    """That of a dtype by its name in problems."""
    if dtype in ("float32", "float64"):
        return Codec(getattr(types, dtype), getattr(types, dtype), _read, _write)
    unpack, pack = (from_bf16, pack_bf16) if dtype == "bfloat16" else (from_f16, pack_f16)

    @device
    def read(x, index):
        return unpack(x[index])

    @device
    def write(x, index, value):
        x[index] = uint16(pack(value, float32(0)))

    return Codec(uint16, float32, read, write)


@device
def _read(x, index):
    return x[index]


@device
def _write(x, index, value):
    x[index] = value

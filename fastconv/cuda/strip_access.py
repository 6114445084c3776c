"""How a thread reads and writes its channels of a pixel: neighbours in memory at once, or each by itself.

In registers all are float32. Four neighbours of 32 bits are 16 bytes, those of 16 bits are 8.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fastconv.cuda.codec import codec
from fastconv.cuda.elements import activated
from fastconv.cuda.ptx import from_bf16, from_f16, load4, load_pairs, pack_bf16, pack_f16, store4, store_pairs
from fastconv.cuda.toolkit import device, int32, uint32

VECTOR, APART, ONE = "vector", "apart", "one"
WIDTH = 4  # channels of a thread, but for `ONE`


class Access(NamedTuple):
    """How a thread reads and writes its channels.

    ``read(window, q, x, at, step)`` loads `width` elements, `step` apart, into a row of a window;
    ``write(out, at, step, sums, p, epilogue)`` stores a row of sums, activated.

    Attributes
    ----------
    kind : str
        `VECTOR`, whose elements are neighbours and aligned as a vector of them is, `APART` or `ONE`.
    dtype : str
    width : int
    stored : Numba type
        Of an element in memory.
    read, write : device functions
    """

    kind: str
    dtype: str
    width: int
    stored: Any
    read: Any
    write: Any


@cache
def access(kind: str, dtype: str) -> Access:
    """That of a kind, to elements of a dtype."""
    width, functions = {VECTOR: (WIDTH, _by_vectors), APART: (WIDTH, _one_by_one), ONE: (1, _of_one)}[kind]
    return Access(kind, dtype, width, codec(dtype).stored, *functions(dtype))


def _by_vectors(dtype: str) -> tuple[Any, Any]:
    """`Access.read` and `Access.write` of neighbours."""
    load, store = (load4, store4) if dtype == "float32" else _halves(dtype)

    @device
    def read(window, q, x, at, step):
        window[q, 0], window[q, 1], window[q, 2], window[q, 3] = load(x, at)

    @device
    def write(out, at, step, sums, p, epilogue):
        t0, t1 = activated(sums[p, 0], epilogue), activated(sums[p, 1], epilogue)
        t2, t3 = activated(sums[p, 2], epilogue), activated(sums[p, 3], epilogue)
        store(out, at, (t0, t1, t2, t3))

    return read, write


def _halves(dtype: str) -> tuple[Any, Any]:
    """`load4` and `store4` of elements of 16 bits."""
    unpack, pack = (from_bf16, pack_bf16) if dtype == "bfloat16" else (from_f16, pack_f16)

    @device
    def load(x, at):
        low, high = load_pairs(x, at)
        return unpack(low), unpack(low >> uint32(16)), unpack(high), unpack(high >> uint32(16))

    @device
    def store(out, at, values):
        store_pairs(out, at, (pack(values[0], values[1]), pack(values[2], values[3])))

    return load, store


def _one_by_one(dtype: str) -> tuple[Any, Any]:
    """`Access.read` and `Access.write` of four elements that lie apart."""
    _, _, load, store = codec(dtype)

    @device
    def read(window, q, x, at, step):
        for v in range(WIDTH):
            window[q, v] = load(x, int32(at + v * step))

    @device
    def write(out, at, step, sums, p, epilogue):
        for v in range(WIDTH):
            store(out, int32(at + v * step), activated(sums[p, v], epilogue))

    return read, write


def _of_one(dtype: str) -> tuple[Any, Any]:
    """`Access.read` and `Access.write` of a single element."""
    _, _, load, store = codec(dtype)

    @device
    def read(window, q, x, at, step):
        window[q, 0] = load(x, at)

    @device
    def write(out, at, step, sums, p, epilogue):
        store(out, at, activated(sums[p, 0], epilogue))

    return read, write

"""Arrays in memory where no byte before or behind them may be touched, and in forms that few think of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from support import guarded

from hostile import values

_FOREIGN = (
    ">f4",
    ">f8",
    "i1",
    "i4",
    "i8",
    "u1",
    "u8",
    "?",
    "f2",
    "g",
    "F",
    "D",
    "O",
    "S4",
    "U2",
    "M8[s]",
    "m8[s]",
    "V8",
    [("a", "f4"), ("b", "i4")],
)
# Memory layouts, all with the values that were asked for: these have to be accepted.
LAYOUTS = ("contiguous", "channels_last", "fortran", "gaps", "backwards", "broadcast", "unaligned", "read_only")
# Other ways to say the same: accepted with the right values, or refused.
_DISGUISES = ("subclass", "masked", "memmap", "matrix", "list", "object", "interface")


class Own(np.ndarray):
    """A subclass that is in the way."""

    def __array_finalize__(self, other: Any) -> None:
        self.note = "own"

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("indexed")

    def __repr__(self) -> str:
        return "<Own>"

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


class Holder:
    """Not an array, but `__array__` or `__array_interface__` has one."""

    def __init__(self, array: np.ndarray, interface: bool) -> None:
        self._array = array
        if interface:
            self.__array_interface__ = array.__array_interface__

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array


def random_array(r: Random, shape: tuple[int, ...], dtype: str, special: bool = True) -> np.ndarray:
    """Values of order 1, now and then (`special`) with NaN and infinities among them."""
    array = np.random.default_rng(r.getrandbits(30)).standard_normal(shape).astype(dtype)
    if special and array.size and r.random() < 0.15:
        for _ in range(r.randrange(1, 4)):
            array.flat[r.randrange(array.size)] = r.choice((np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38))
    return array


def laid_out(array: np.ndarray, r: Random, layout: str | None = None) -> np.ndarray:
    """The same values in some layout, between pages of no access."""
    layout = layout or r.choice(LAYOUTS)
    end = r.random() < 0.5
    if layout == "channels_last" and array.ndim == 4:
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif layout == "fortran":
        array = np.asfortranarray(array)
    elif layout in ("gaps", "backwards"):
        steps = (..., *(slice(None, None, r.choice((1, 2, 3))) for _ in array.shape))
        wide = np.zeros(tuple(n * s.step for n, s in zip(array.shape, steps[1:], strict=True)), array.dtype)
        wide[steps] = array
        array = wide[steps]
        if layout == "backwards" and array.ndim:
            turned = (..., *(slice(None, None, r.choice((1, -1))) for _ in array.shape))
            array = guarded(array[turned], end)[turned]
            return array
    elif layout == "broadcast" and array.ndim and array.size:
        axis = r.randrange(array.ndim)
        array = np.broadcast_to(array.take([0], axis), array.shape)
    elif layout == "unaligned":
        memory = guarded(np.zeros(array.nbytes + 1, np.uint8), end)
        odd = memory[1:] if end else memory[:-1]
        start = odd if odd.ctypes.data % array.itemsize else memory[: array.nbytes] if end else memory[1:]
        view = start.view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    result = guarded(array, end)
    if layout in ("read_only", "broadcast"):
        result.flags.writeable = False
    return result


def disguised(array: np.ndarray, r: Random) -> Any:
    """The same values in something that is no plain array."""
    kind = r.choice(_DISGUISES)
    array = laid_out(array, r, "contiguous")
    if kind == "subclass":
        return array.view(Own)
    if kind == "masked":
        return np.ma.MaskedArray(array, mask=array > 1)
    if kind == "matrix" and array.ndim == 2:
        return array.view(np.matrix)
    if kind == "memmap" and array.size:
        return _memmap(array)
    if kind == "list":
        return array.tolist()
    return Holder(array, kind == "interface")


def _memmap(array: np.ndarray) -> np.memmap:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        mapped = np.memmap(Path(file.name), array.dtype, "w+", shape=array.shape)
    mapped[...] = array
    return mapped


def strange(array: np.ndarray, r: Random, huge: bool = True) -> Any:
    """Something that should have been this array: of another type, rank or size, or no array at all.

    Unless `huge`, it is not one of 2**20 or more elements.
    """
    kind = r.choice((0, 1, 2, 3, 4, 5) if huge else (0, 1, 2, 4, 5))
    if kind == 0:
        dtype = np.dtype(r.choice(_FOREIGN))
        return np.zeros(array.shape, dtype) if dtype.kind in "SUMmV" else array.real.astype(dtype)
    if kind == 1:
        return array[r.choice((None, 0, Ellipsis))] if array.ndim and len(array) else array[None]
    if kind == 2:
        shape = list(array.shape) or [1]
        shape[r.randrange(len(shape))] = r.choice((0, 0, 1, 2, 5))
        return np.zeros(shape, array.dtype)
    if kind == 3:
        # As large as NumPy allows, without memory: every element is the same one.
        shape = [max(1, n) for n in array.shape] or [1]
        shape[r.randrange(len(shape))] = r.choice((2**20, 2**40, 2**59)) // int(np.prod(shape)) or 1
        return np.broadcast_to(np.zeros((), array.dtype), shape)
    if kind == 4:
        return r.choice(([[1.0, 2.0], [3.0]], [[]], [array, array], [None], np.float32(1), 1.5, array.tolist()))
    return values.anything(r)

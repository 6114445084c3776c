"""Values that no argument should have, or that few think of."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
_NUMPY = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.intp)


def number(r: Random) -> Any:
    """An integer of any size and type, or what somebody takes for one."""
    kind = r.randrange(12)
    if kind < 3:
        return r.choice(HUGE)
    if kind < 5:
        return r.choice((0, -1, -3, -(2**31), -(2**63), -(10**30)))
    if kind < 7:
        return r.choice(_NUMPY)(r.choice((0, 1, 2, 3, 127)))
    if kind == 7:
        return r.choice((True, False, np.True_))
    if kind == 8:
        return r.choice((1.0, 2.0, 2.5, -0.0, math.nan, math.inf, -math.inf, 1e300, np.float32(1), np.float64(2), 1j))
    if kind == 9:
        return np.array(r.choice((1, 2, 2**40)))
    return junk(r)


def pair(r: Random) -> Any:
    """Two numbers in any container, or not two."""
    kind = r.randrange(8)
    if kind < 3:
        return number(r)
    values = [number(r) if r.random() < 0.5 else r.randrange(1, 3) for _ in range(2 if kind < 6 else r.randrange(5))]
    if r.random() < 0.1:
        return ((1, values[0] if values else 0), tuple(values))
    return _contained(values, r)


def shape(r: Random) -> Any:
    """Some axes in any container."""
    if r.random() < 0.2:
        return junk(r)
    values = [number(r) if r.random() < 0.3 else r.randrange(4) for _ in range(r.randrange(8))]
    return _contained(values, r)


def real(r: Random) -> Any:
    """A number that need not be whole."""
    if r.random() < 0.3:
        return number(r)
    return r.choice((0.0, -1.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf, 1e-320, 1e300, np.float16(0.5), 2**1100))


def flag(r: Random) -> Any:
    """What should be True or False."""
    return r.choice((True, False, 0, 1, None, "no", 2.0, np.True_, (), [], np.zeros(2)))


def word(r: Random) -> Any:
    """What should be one of some names."""
    if r.random() < 0.5:
        return junk(r)
    return r.choice(
        ("", "direct", "reference", "im2col", "same", "SAME", "valid", "relu", "max", "cuda", "\0", "é" * 300)
    )


def anything(r: Random) -> Any:
    """Of any kind."""
    return r.choice((number, pair, shape, real, flag, word, junk))(r)


class Index:
    """An integer that is none."""

    def __index__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return "<Index>"


def junk(r: Random) -> Any:
    """Objects of types that no argument has."""
    make: Callable[[], Any] = r.choice((
        lambda: None, lambda: "2", lambda: "", lambda: b"1", lambda: [], lambda: (), dict, set, object, Index,
        lambda: [[1, 2], [3]], lambda: (None, None), lambda: ("a", "b"), lambda: np.array([1, 2]),
        lambda: np.array("x"), lambda: 10**5000,
        lambda: np.datetime64("2026-01-01"), lambda: range(2), lambda: iter((1, 2)), lambda: Ellipsis, lambda: int,
        lambda: slice(1), lambda: np.zeros((0,)), lambda: math.nan, lambda: NotImplemented, lambda: np.float32,
    ))  # fmt: skip
    return make()


def _contained(values: list, r: Random) -> Any:
    kind = r.randrange(8)
    if kind == 0 and all(isinstance(v, int) and abs(v) < 2**63 for v in values):
        return np.array(values, np.int64)
    if kind == 1:
        return list(values)
    return tuple(values)

"""Shapes as arguments."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_size(size: Any, name: str, ndim: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array with one of the given numbers of axes; `name` is for the error message."""
    if not isinstance(size, (tuple, list)) or len(size) not in ndim:
        got = f"an array; give its shape, {size.shape}" if isinstance(size, np.ndarray) else repr(size)
        raise ValueError(f"{name} must be a shape of {' or '.join(map(str, ndim))} axes, got {got}")
    return tuple(int(n) for n in size)

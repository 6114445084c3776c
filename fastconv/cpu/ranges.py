"""Which of evenly spaced positions lie inside of an axis."""

from __future__ import annotations

from fastconv.jit import inline


@inline
def inside(first, step, size, count):
    """Of positions ``first + i*step``, i < count: the range of i that lies in [0, size)."""
    begin = min(count, max(0, -(first // step)))
    return begin, max(begin, min(count, -((first - size) // step)))

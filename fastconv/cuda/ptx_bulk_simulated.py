"""What `fastconv.cuda.ptx_bulk` does, in Python, for Numba's simulator: strict where a GPU would wait for ever."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastconv.cuda.toolkit import SimulatedPointer

_UNIT = 16  # bytes of which sizes and addresses are multiples


@dataclass
class _Barrier:
    """A barrier with the copies that are under way for its phase."""

    calls: int
    missing: int
    bytes: int = 0
    ended: int = 0
    copies: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def settle(self) -> None:
        """Let the copies arrive, and the phase end if nothing is missing."""
        for target, what in self.copies:
            target[:] = what
            self.bytes -= what.nbytes
        self.copies.clear()
        if self.bytes < 0:
            raise RuntimeError(f"{-self.bytes} bytes came that the phase does not expect")
        if self.missing == self.bytes == 0:
            self.ended, self.missing = self.ended + 1, self.calls


_barriers: WeakKeyDictionary[Any, dict[int, _Barrier]] = WeakKeyDictionary()  # by block, then by element


def _of_block() -> dict[int, _Barrier]:
    thread: Any = threading.current_thread()
    return _barriers.setdefault(thread._manager, {})


def barrier_init(barriers: np.ndarray, at: int, calls: int) -> None:
    """A barrier whose phases end after so many calls of `barrier_expect`."""
    barriers[at] = 0  # it must exist
    _of_block()[int(at)] = _Barrier(calls, calls)


def barrier_expect(barriers: np.ndarray, at: int, size: int) -> None:
    """The phase ends when so many bytes more came."""
    barrier = _of_block()[int(at)]
    if not barrier.missing:
        raise RuntimeError("a barrier is called more often than its phase expects")
    barrier.missing, barrier.bytes = barrier.missing - 1, barrier.bytes + int(size)


def barrier_wait(barriers: np.ndarray, at: int, parity: int) -> None:
    """Wait; all that a phase needs must have been asked for by then."""
    barrier = _of_block()[int(at)]
    if barrier.ended & 1 == parity:
        barrier.settle()
    if barrier.ended & 1 == parity:
        raise RuntimeError("a thread waits for bytes that nobody copies")


def copy_bulk(
    shared: np.ndarray, at: int, memory: SimulatedPointer, index: int, size: int, barriers: np.ndarray, barrier: int
) -> None:
    """Start to copy `size` bytes."""
    target, source = (_bytes(array, first, int(size)) for array, first in ((shared, at), (memory.memory, index)))
    _of_block()[int(barrier)].copies.append((target, source.copy()))
    target[:] = 0xFF  # NaN: a kernel that does not wait sees it


def _bytes(array: np.ndarray, first: int, size: int) -> np.ndarray:
    start, whole = int(first) * array.itemsize, array.view(np.uint8)
    if not 0 <= start <= len(whole) - size:
        raise IndexError(f"a kernel copies bytes {start} to {start + size - 1} of {len(whole)}")
    if (whole.ctypes.data + start) % _UNIT or size % _UNIT:
        raise ValueError(f"a kernel copies {size} bytes at byte {start}, which is not aligned to {_UNIT} bytes")
    return whole[start : start + size]

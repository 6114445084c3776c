"""What `fastconv.cuda.ptx` does, in Python, for Numba's simulator: strict where a GPU would go wrong in silence.

The simulator runs each thread of a block as a thread of Python, so the 32 lanes of a warp meet at a barrier for the
instructions that they carry out together. Fragments are laid out as in the PTX ISA, "Matrix Fragments for
mma.m16n8k8", "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastconv.cuda.toolkit import SimulatedPointer

UNFENCED = "_unfenced"  # of a thread: whether it has copied what tensor cores of Hopper GPUs may not see yet
PATIENCE_S = 60.0  # for the other lanes of a warp
LANES = 32


def _span(memory: Any, index: int, count: int) -> np.ndarray:
    """The elements that one instruction reads or writes; they must exist and be aligned as they would on a GPU."""
    array = memory.memory if isinstance(memory, SimulatedPointer) else memory
    if not 0 <= index <= len(array) - count:
        raise IndexError(f"a kernel touches elements {index} to {index + count - 1} of {len(array)}")
    size = count * array.itemsize
    if (array.__array_interface__["data"][0] + int(index) * array.itemsize) % size:
        raise ValueError(f"a kernel touches {size} bytes at element {index}, which is not aligned to {size} bytes")
    return array[index : index + count]


def kept(value: int) -> int:
    """A value is one."""
    return value


def load4(memory: Any, index: int) -> tuple:
    """Four elements, of global or of shared memory."""
    return tuple(_span(memory, index, 4))


def store4(memory: Any, index: int, values: tuple) -> None:
    """Write four elements, of global or of shared memory."""
    _span(memory, index, 4)[:] = values


def store_words(memory: Any, index: int, values: tuple) -> None:
    """Write eight elements of 2 bytes, given as four words."""
    _span(memory, index, 8)[:] = np.array(values, np.uint32).view(np.uint16)


def load_pairs(memory: Any, index: int) -> tuple:
    """Four elements of 2 bytes, as two words."""
    return tuple(_span(memory, index, 4).view(np.uint32))


def store_pairs(memory: Any, index: int, values: tuple) -> None:
    """Write four elements of 2 bytes, given as two words."""
    _span(memory, index, 4)[:] = np.array(values, np.uint32).view(np.uint16)


def groups_of(what: str) -> list[list[Any]]:
    """What this thread has under way, in groups, the last one still open."""
    return vars(threading.current_thread()).setdefault(f"_{what}", [[]])


def _copy_async(size: int) -> Callable:
    def copy(shared: Any, at: int, memory: Any, index: int, valid: bool) -> None:
        target = _span(shared, at, size // shared.itemsize)
        what = _span(memory, index, len(target)).copy() if valid else 0
        target.view(np.uint8)[:] = 0xFF  # NaN: a kernel that does not wait sees it
        groups_of("copies")[-1].append((target, what))

    return copy


copy_async4 = _copy_async(4)
copy_async16 = _copy_async(16)


def commit() -> None:
    """End a group of this thread's copies."""
    groups_of("copies").append([])


def wait(pending: int) -> None:
    """Let the oldest groups of copies arrive, until only so many are under way."""
    groups = groups_of("copies")
    while len(groups) - 1 > pending:
        for target, what in groups.pop(0):
            target[:] = what
            vars(threading.current_thread())[UNFENCED] = True


class _Warp:
    """Where the lanes of a warp meet; the last one to come does the work for all."""

    def __init__(self) -> None:
        self.brought: list[Any] = [None] * LANES
        self.results: Any = None
        self.error: Exception | None = None
        self.barrier = threading.Barrier(LANES, self._work)

    def _work(self) -> None:
        try:
            work = self.brought[0][0]
            if any(other is not work for other, _ in self.brought):
                raise RuntimeError("the lanes of a warp meet in different instructions")
            with np.errstate(over="ignore", invalid="ignore"):
                self.results = work(*(np.array(values) for values in zip(*(b for _, b in self.brought), strict=True)))
        except Exception as error:
            self.error = error  # every lane raises it

    def meet(self, lane: int, work: Callable, values: tuple) -> Any:
        self.brought[lane] = (work, values)
        try:
            self.barrier.wait(PATIENCE_S)
        except threading.BrokenBarrierError:
            raise RuntimeError(f"lane {lane} waits for lanes of its warp that do not come to the instruction") from None
        if self.error is not None:
            raise self.error
        return self.results[lane]


_warps: WeakKeyDictionary[Any, dict[int, _Warp]] = WeakKeyDictionary()
_finding = threading.Lock()


def _together(work: Callable, *values: Any) -> Any:
    """This lane's row of `work`, which gets an array (32, ...) of each value."""
    thread: Any = threading.current_thread()
    number, lane = divmod(thread.thread_id, LANES)
    with _finding:
        warps = _warps.setdefault(thread._manager, {})  # the simulator has one for each block
        warp = warps.get(number) or warps.setdefault(number, _Warp())
    return warp.meet(lane, work, values)


def sync_warp() -> None:
    """Wait for the other lanes."""
    _together(_nothing)


def _nothing() -> list[None]:
    return [None] * LANES


def _matrices(rows: np.ndarray) -> np.ndarray:
    """The lanes' rows of 16 bytes as 8 x 8 matrices of 16-bit elements."""
    return rows.view(np.uint16).reshape(-1, 8, 8)


def _fragments(matrices: np.ndarray) -> np.ndarray:
    """A 32-bit register of each lane from each matrix: lane l has elements 2 (l % 4) and the next of row l // 4."""
    return np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, LANES).T


def _load_rows(rows: np.ndarray) -> np.ndarray:
    return _fragments(_matrices(rows))


def _load_columns(rows: np.ndarray) -> np.ndarray:
    return _fragments(_matrices(rows).transpose(0, 2, 1))


def _load_matrices(work: Callable) -> Callable:
    def load(fragments: np.ndarray, first: int, shared: np.ndarray, at: int) -> None:
        row = _span(shared, at, 16 // shared.itemsize).view(np.uint32)
        fragments[first : first + 4] = _together(work, row)

    return load


load_matrices = _load_matrices(_load_rows)
load_matrices_transposed = _load_matrices(_load_columns)


def _places(base: np.ndarray, *steps: int) -> np.ndarray:
    """A row or column for each of a lane's elements."""
    return base[:, None] + np.array(steps)


_GROUP, _MEMBER = divmod(np.arange(LANES), 4)
_C = _places(_GROUP, 0, 0, 8, 8), _places(2 * _MEMBER, 0, 1, 0, 1)
_A8 = _places(_GROUP, 0, 8, 0, 8), _places(_MEMBER, 0, 0, 4, 4)
_B8 = _places(_MEMBER, 0, 4), _places(_GROUP, 0, 0)
_A16 = _places(_GROUP, 0, 0, 8, 8, 0, 0, 8, 8), _places(2 * _MEMBER, 0, 1, 0, 1, 8, 9, 8, 9)
_B16 = _places(2 * _MEMBER, 0, 1, 8, 9), _places(_GROUP, 0, 0, 0, 0)


def _product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a @ b as fragments (32, 4); products are exact, and so is nearly their sum."""
    c = c.copy()
    c += (a.astype(np.float64) @ b.astype(np.float64))[_C]
    return c


def _mma_tf32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    left, right = np.empty((16, 8), np.float32), np.empty((8, 8), np.float32)
    # The tensor cores do not see the low 13 bits.
    left[_A8] = (a & np.uint32(0xFFFFE000)).view(np.float32)
    right[_B8] = (b & np.uint32(0xFFFFE000)).view(np.float32)
    return _product(left, right, c)


def _bf16(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _f16(halves: np.ndarray) -> np.ndarray:
    return halves.view(np.float16).astype(np.float32)


def _mma_halves(real: Callable) -> Callable:
    def work(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        left, right = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32)
        left[_A16] = real(a.view(np.uint16))
        right[_B16] = real(b.view(np.uint16))
        return _product(left, right, c)

    return work


def _mma(work: Callable) -> Callable:
    def mma(c: np.ndarray, first_c: int, a: np.ndarray, first_a: int, b: np.ndarray, first_b: int) -> None:
        mine = c[first_c : first_c + 4]
        mine[:] = _together(work, a[first_a : first_a + 4], b[first_b : first_b + 2], mine)

    return mma


mma_tf32 = _mma(_mma_tf32)
mma_bf16 = _mma(_mma_halves(_bf16))
mma_f16 = _mma(_mma_halves(_f16))


def to_tf32(value: Any) -> np.uint32:
    """Bits of a float32, or bits of one, rounded to 10 bits of mantissa, to nearest, ties away from zero."""
    bits = int(np.float32(value).view(np.uint32) if isinstance(value, (float, np.floating)) else value)
    if bits & 0x7FFFFFFF > 0x7F800000:
        return np.uint32(0x7FFFE000)  # NaN, whatever its bits
    if bits & 0x7FFFFFFF < 0x7F800000:
        bits += 0x1000  # a carry moves on to the exponent, and at last to infinity
    return np.uint32(bits & 0xFFFFE000)


def round_tf32(value: Any) -> np.float32:
    """`to_tf32` as a float32."""
    return to_tf32(np.float32(value)).view(np.float32)


def from_bf16(bits: Any) -> np.float32:
    """The value of a bfloat16."""
    return np.uint32(int(bits) << 16 & 0xFFFFFFFF).view(np.float32)


def from_f16(bits: Any) -> np.float32:
    """The value of a float16."""
    return np.float32(np.uint16(int(bits) & 0xFFFF).view(np.float16))


def pack_bf16(low: Any, high: Any) -> np.uint32:
    """Two float32 rounded to bfloat16, to nearest, ties to even; NaN becomes 0x7FFF."""
    return np.uint32(_rounded_bf16(low) | _rounded_bf16(high) << 16)


def _rounded_bf16(value: Any) -> int:
    bits = int(np.float32(value).view(np.uint32))
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return bits + 0x7FFF + (bits >> 16 & 1) >> 16


def pack_f16(low: Any, high: Any) -> np.uint32:
    """Two float32 rounded to float16, to nearest, ties to even; NaN becomes 0x7FFF."""
    with np.errstate(over="ignore"):
        return np.uint32(_rounded_f16(low) | _rounded_f16(high) << 16)


def _rounded_f16(value: Any) -> int:
    return 0x7FFF if value != value else int(np.float16(value).view(np.uint16))

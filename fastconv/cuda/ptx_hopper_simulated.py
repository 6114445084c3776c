"""What `fastconv.cuda.ptx_hopper` does, in Python, for Numba's simulator.

The 128 lanes of a warpgroup meet for an instruction. Layouts are those of the PTX ISA: "Matrix Descriptor Format",
"Swizzling Modes", "Canonical Layouts" (K-major) and "Register Fragments for wgmma.mma_async.m64nNk16".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastconv.cuda.ptx_simulated import UNFENCED, _bf16, _f16, _Warp, groups_of

SWIZZLE_128 = 1  # in bits 62 and 63 of a descriptor
EIGHT_ROWS = 1024  # bytes from 8 rows to the next
_LANES, _TERM_BYTES = 128, 32
_ROW_BYTES = {1: 128, 2: 64, 3: 32}  # by swizzle mode


class _Warpgroup(_Warp):
    """Where the lanes of a warpgroup meet."""

    def __init__(self) -> None:
        super().__init__()
        self.brought = [None] * _LANES
        self.barrier = threading.Barrier(_LANES, self._work)


class _Memory:
    """Shared memory as one value, which lanes bring without a copy."""

    def __init__(self, array: np.ndarray) -> None:
        self.bytes = array.view(np.uint8)


_warpgroups: WeakKeyDictionary[Any, dict[int, _Warpgroup]] = WeakKeyDictionary()
_finding = threading.Lock()


def _together(work: Callable, *values: Any) -> Any:
    """This lane's row of `work`, which gets an array (128, ...) of each value."""
    thread: Any = threading.current_thread()
    number, lane = divmod(thread.thread_id, _LANES)
    with _finding:
        groups = _warpgroups.setdefault(thread._manager, {})
        group = groups.get(number) or groups.setdefault(number, _Warpgroup())
    return group.meet(lane, work, values)


def fence_async() -> None:
    """What this thread copied may be multiplied."""
    vars(threading.current_thread())[UNFENCED] = False


def wgmma_fence() -> None:
    """Python's threads see all that was computed."""


def wgmma_commit() -> None:
    """End a group of products."""
    groups_of("products").append([])


def wgmma_wait(pending: int) -> None:
    """Let the oldest groups of products end, until only so many are under way."""
    groups = groups_of("products")
    while len(groups) - 1 > pending:
        for end in groups.pop(0):
            end()


def wgmma_finish(sums: np.ndarray, count: int) -> None:
    """Let all groups end."""
    wgmma_wait(0)


def descriptor(shared: np.ndarray, at: int) -> int:
    """A matrix with 128-byte swizzle; addresses count from the start of shared memory."""
    address = int(at) * shared.itemsize
    if address % 32:  # the terms of a product
        raise ValueError(f"a matrix begins at byte {address}, which is no multiple of 32")
    return SWIZZLE_128 << 62 | EIGHT_ROWS >> 4 << 32 | 1 << 16 | address >> 4 & 0x3FFF


def _places(matrix: int, rows: int) -> np.ndarray:
    """Addresses (rows, 32) of the bytes of a product's terms, from a descriptor."""
    start, stride = (matrix & 0x3FFF) << 4, (matrix >> 32 & 0x3FFF) << 4
    if matrix >> 49 & 7:
        raise ValueError("a matrix with a base offset is not simulated")
    size = _ROW_BYTES[matrix >> 62]  # no swizzle is not simulated
    row, byte = np.arange(rows)[:, None], np.arange(_TERM_BYTES)
    address = start + row // 8 * stride + row % 8 * size + byte
    return address ^ (address >> 7 & size // 16 - 1) << 4  # bits from 7 on permute units of 16 bytes


def _fragment_places(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (128, columns / 2) of the lanes' sums."""
    lane, i = np.arange(_LANES)[:, None], np.arange(columns // 2)
    return lane // 32 * 16 + lane % 32 // 4 + i // 2 % 2 * 8, i // 4 * 8 + lane % 4 * 2 + i % 2


def _wgmma(real: Callable) -> Callable:
    def work(memories: np.ndarray, widths: np.ndarray, lefts: np.ndarray, rights: np.ndarray) -> list:
        if len({*zip(widths.tolist(), lefts.tolist(), rights.tolist(), strict=True)}) != 1:
            raise RuntimeError("the lanes of a warpgroup multiply different matrices")
        memory, columns = memories[0].bytes, int(widths[0])
        places = _places(int(lefts[0]), 64), _places(int(rights[0]), columns)
        operands = [memory[place] for place in places]  # an IndexError behind the end
        a, b = (real(operand).astype(np.float64) for operand in operands)
        products = (a @ b.T)[_fragment_places(columns)]

        def check() -> None:
            if any((memory[place] != old).any() for place, old in zip(places, operands, strict=True)):
                raise RuntimeError("matrices were overwritten while they were multiplied")

        return [(product, check) for product in products]

    def wgmma(sums: np.ndarray, columns: int, shared: np.ndarray, left: int, right: int) -> None:
        if vars(threading.current_thread()).get(UNFENCED):
            raise RuntimeError("a thread multiplies after it copied, without fence_async")
        values = (_Memory(shared), columns, np.uint64(left), np.uint64(right))
        product, check = _together(work, *values)

        def end() -> None:
            check()
            with np.errstate(over="ignore", invalid="ignore"):
                sums[: columns // 2] += product

        groups_of("products")[-1].append(end)

    return wgmma


def _tf32(words: np.ndarray) -> np.ndarray:
    return (words & np.uint32(0xFFFFE000)).view(np.float32)


wgmma_bf16 = _wgmma(lambda operand: _bf16(operand.view(np.uint16)))
wgmma_f16 = _wgmma(lambda operand: _f16(operand.view(np.uint16)))
wgmma_tf32 = _wgmma(lambda operand: _tf32(operand.view(np.uint32)))

"""What a GPU says of itself, and whether it can run a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from fastconv.cuda import driver
from fastconv.cuda.toolkit import SIMULATED, require

FIRST = 0  # the GPU that wisdom is about; $CUDA_VISIBLE_DEVICES says which one that is
PORTABLE = "reference"  # the algorithm of each operation that uses nothing beyond CUDA's basics
_LEAST = (8, 0)  # compute capability: asynchronous copies and the tensor cores' instructions of `fastconv.cuda.ptx`
# Fused multiply-adds of a multiprocessor in a clock, by compute capability: the table "Throughput of Native Arithmetic
# Instructions" of NVIDIA's CUDA C++ Programming Guide. All that it does not name do 128 in float32.
_FMA_FLOAT32 = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
_FMA_FLOAT64 = {(6, 0): 32, (7, 0): 32, (8, 0): 32, (9, 0): 64, (10, 0): 64}


@dataclass(frozen=True)
class Properties:
    """Attributes of a GPU.

    Attributes
    ----------
    name : str
    capability : (int, int)
        Compute capability; (0, 0) of the simulator.
    multiprocessors : int
    clock : int
        The highest of the multiprocessors, in kHz; 0 if it is not known.
    l2 : int
        Bytes of the second cache.
    driver : int
        CUDA version of the driver, such as 13000.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: int
    l2: int
    driver: int

    def fma_gflops(self, dtype: str) -> float | None:
        """Most GFLOP/s of fused multiply-adds outside tensor cores, or None if that is not known.

        Multiprocessors x multiply-adds of each in a clock x 2 operations x highest clock. Those of 16-bit elements
        are in float32. Tensor cores do more.
        """
        lanes = _FMA_FLOAT64.get(self.capability, 0) if dtype == "float64" else _FMA_FLOAT32.get(self.capability, 128)
        return 2e-6 * self.multiprocessors * lanes * self.clock or None


_SIMULATOR = Properties("Numba's simulator", (0, 0), 1, 0, 1 << 20, 0)


@cache
def first() -> Properties | None:
    """Those of the first GPU, or of the simulator; None where there is none, or no driver."""
    if SIMULATED:
        return _SIMULATOR
    try:
        require()
        return Properties(*driver.attributes(FIRST))
    except (ImportError, RuntimeError):  # what is not installed, and what the driver refuses
        return None


def machine() -> dict[str, Any]:
    """The GPU, its driver and the compiler, by name; what differs from one process to another measures otherwise."""
    gpu = first()
    if gpu is None:
        return {"gpu": None}
    major, minor = gpu.capability
    compiler = "none" if SIMULATED else version("numba-cuda")
    return {
        "gpu": gpu.name, "capability": f"{major}.{minor}", "multiprocessors": gpu.multiprocessors,
        "driver": gpu.driver, "numba_cuda": compiler,
    }  # fmt: skip


def lacking(algorithm: str, only: tuple[int, int] | None) -> str | None:
    """Why the GPU cannot run an algorithm's instructions, or None if it can.

    Without a GPU, and in the simulator, nothing is excluded: kernels can be compiled for any.

    Parameters
    ----------
    algorithm : str
        All but the portable one need compute capability 8.0.
    only : (int, int), optional
        The one compute capability that has its instructions.
    """
    gpu = first()
    if algorithm == PORTABLE or gpu is None or gpu is _SIMULATOR:
        return None
    if gpu.capability >= _LEAST if only is None else gpu.capability == only:
        return None
    needed, found = (".".join(map(str, pair)) for pair in (only or _LEAST, gpu.capability))
    return f"it needs compute capability {needed}, and {gpu.name} has {found}"

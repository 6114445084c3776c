"""What the kernels of locally-connected convolution and of its gradients share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastconv.cpu.host import host
from fastconv.cpu.kernel import Kernel, Params
from fastconv.cpu.panels import TapPanels
from fastconv.jit import source_stamp
from fastconv.local_problem import LocalProblem

MOST_IMAGES = 16  # of a job; more would drive the weights of a tile out of cache before they are done with
STEPS = 16  # of a sum at least, where there are so many: what starting and storing a tile costs is shared by them
# (rows, columns) by number of vector registers: the sums, a vector of each column and one more fit.
_TILES = {32: [(1, 4), (2, 4), (4, 4)], 16: [(1, 4), (2, 4), (3, 3)]}


def unsupported(problem: LocalProblem) -> str | None:
    """Why these kernels cannot compute `problem`, or None: they take every one."""
    return None


def cost(problem: LocalProblem, params: Params) -> float:
    """Predicted nanoseconds on one thread: the weights' way between memory and CPU, and the products."""
    passes = -(-problem.batch // MOST_IMAGES)
    return 1000 + 0.07 * passes * problem.itemsize * math.prod(problem.weight_shape) + 0.025 * problem.flops


def tile(rows: int) -> Params:
    """The register tile with so many rows, or the next larger, or the largest."""
    tiles = _TILES[host().registers]
    found = next((pair for pair in tiles if pair[0] >= rows), tiles[-1])
    return {"rows": found[0], "columns": found[1]}


class LocalKernel(Kernel):
    """A locally-connected convolution, or a gradient of it, bound to a problem.

    Parameters
    ----------
    problem : LocalProblem
    params : dict
        From `tile`.
    threads : int
    compiled : callable
        Compiles the job for (rows, columns, element size, lanes, source stamp).
    """

    def __init__(self, problem: LocalProblem, params: Params, threads: int, compiled: Callable) -> None:
        super().__init__(problem, params, threads)
        self.rows, self.columns = params["rows"], params["columns"]
        self.function = compiled(self.rows, self.columns, self.item, self.lanes, source_stamp())
        self.panels = TapPanels(problem.conv)
        self.zeros = np.zeros(self.lanes, problem.dtype)


def whole(count: int, unit: int) -> int:
    """The multiple of `unit` from `count` on."""
    return -(-count // unit) * unit


def image_groups(batch: int, most: int) -> tuple[int, int]:
    """How many groups of about equal size a batch makes, and the images of one, `most` or fewer."""
    groups = max(1, -(-batch // most))
    return groups, max(1, -(-batch // groups))


def with_contiguous_rows(x: np.ndarray) -> np.ndarray:
    """Images that jobs may read again and again, copied if their rows are not contiguous."""
    return x if x.strides[3] == x.itemsize else np.ascontiguousarray(x)


def as_planes(weight: np.ndarray) -> np.ndarray:
    """Weights (K, C, R, S, OH, OW), copied if they are not contiguous, as (K, C, R*S, OH*OW)."""
    K, C, R, S, OH, OW = weight.shape
    return np.ascontiguousarray(weight).reshape(K, C, R * S, OH * OW)

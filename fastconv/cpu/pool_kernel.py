"""What every CPU pooling kernel is to its callers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastconv.cpu.kernel import Kernel, Params
from fastconv.problem import PoolProblem

# Less work than this is not worth handing to another thread.
_JOB_BYTES = 32 << 10


def unsupported(problem: PoolProblem) -> str | None:
    """Why pooling kernels cannot compute `problem`, or None if they can."""
    if problem.return_indices and problem.pool.mode != "max":
        return "only the maximum has an index"
    return None


class PoolKernel(Kernel):
    """A pooling algorithm bound to a problem: runs on arrays of any strides."""

    def __init__(self, problem: PoolProblem, params: Params, threads: int) -> None:
        super().__init__(problem, params, threads)
        self._no_indices = np.empty((0, 0, 0, 0), np.int64)
        self._no_bias = np.empty(0, problem.dtype)

    def run(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None = None) -> None:
        """Compute `out` from `x`, both (N, C, H, W) with the problem's sizes and dtype.

        Safe to call from several threads at once.

        Parameters
        ----------
        indices : int64 array, optional
            Needed if the problem returns indices; of the shape of `out` and with its strides counted in
            elements. Gets ``h*W + w`` of each maximum.

        Raises
        ------
        ValueError
            If `indices` is missing, not wanted, or laid out unlike `out`.
        """
        if self.problem.return_indices:
            self._check(indices, out)
        elif indices is not None:
            raise ValueError(f"indices given, but {self.problem.descriptor} returns none; use return_indices=True")
        launch = self.launch(x, out) if out.size else None
        if launch is not None:  # a pooling kernel takes any strides
            launch(x, self._no_indices if indices is None else indices, self._no_bias, out)

    def bound(self, x: np.ndarray, out: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
        """`run` without indices for arrays with the strides of these, which takes no time to find out what to do."""
        launch = self.launch(x, out) if out.size else None
        if launch is None:
            return self.run
        no_indices, no_bias = self._no_indices, self._no_bias
        return lambda x, out: launch(x, no_indices, no_bias, out)

    def _check(self, indices: np.ndarray | None, out: np.ndarray) -> None:
        if indices is None:
            raise ValueError(f"{self.problem.descriptor} returns indices: give an int64 array of shape {out.shape}")
        same = [s * out.itemsize for s in indices.strides] == [s * indices.itemsize for s in out.strides]
        if indices.dtype != np.int64 or indices.shape != out.shape or not same:
            raise ValueError(
                f"indices must be int64 and laid out like out, shape {out.shape} and strides {out.strides}, "
                f"got {indices.dtype}, {indices.shape} and {indices.strides}"
            )


def split_pooling(problem: PoolProblem, threads: int) -> tuple[int, int]:
    """Rows and channels of one job: about four jobs a thread, none of them tiny, whole vectors of channels."""
    jobs = min(4 * threads, problem.bytes // _JOB_BYTES + 1) if threads > 1 else 1
    per_image = -(-jobs // max(1, problem.batch))
    rows, channels = problem.out_size[0], problem.channels
    if problem.memory_format == "channels_last":
        row_jobs = min(rows, per_image)
        blocks = min(-(-per_image // row_jobs), -(-channels // 64))
        return -(-rows // row_jobs), -(-channels // (64 * blocks)) * 64
    channel_jobs = min(channels, per_image)
    row_jobs = min(rows, -(-per_image // channel_jobs))
    return -(-rows // row_jobs), -(-channels // channel_jobs)

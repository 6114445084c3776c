"""Plans for weights on a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

from fastconv.arrays import dense_strides
from fastconv.cuda import driver
from fastconv.cuda.arrays import DeviceArray, as_device_array, library_of
from fastconv.cuda.replay import Recording, Replays
from fastconv.cuda.toolkit import SIMULATED
from fastconv.dispatch import kernel_for
from fastconv.functional.gpu.arrays import as_image, check_fit, target
from fastconv.functional.gpu.conv import as_bias, check_bias
from fastconv.plan import Explanation, check_dtype, explain
from fastconv.precision import precision_of
from fastconv.problem import ConvProblem, MemoryFormat


class DevicePlan:
    """A convolution on a GPU ready to run: made by `fastconv.plan`, called with arrays of that GPU.

    A call starts kernels on the stream that the input's library works on, and waits for nothing. It takes memory from
    that library only: for the result, and for as much scratch memory as `workspace_bytes` says. So it can be captured
    in a CUDA graph, with a library that allocates during a capture, such as PyTorch, once it was called with an input
    of the same strides. Keep the plan as long as its kernels run.

    Attributes
    ----------
    problem : ConvProblem
    choice : fastconv.dispatch.Choice
        The algorithm and where it came from.
    """

    def __init__(
        self, problem: ConvProblem, weight: DeviceArray, bias: DeviceArray | None, algorithm: str | None,
        max_workspace: int | None = None,
    ) -> None:  # fmt: skip
        self.problem = problem
        self._kernel, self.choice = kernel_for(problem, algorithm, max_workspace=max_workspace)
        self._device = weight.device
        self._shape = problem.out_shape
        self._strides = dense_strides(self._shape, problem.memory_format)
        self._replays = Replays()
        self._packed = self._kernel.pack(_copied(weight), None if bias is None else _copied(bias))
        self._compile(weight)

    def __repr__(self) -> str:
        return f"<fastconv plan {self.problem.descriptor}: {self.choice.candidate}>"

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory of one call, in bytes."""
        return self._kernel.workspace_bytes

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Convolve one batch.

        Parameters
        ----------
        x : array (N, C, H, W) or (C, H, W)
            Of the plan's shape and dtype, on its GPU; any strides that are not negative.
        out : array, optional
            Where to write; of the result's shape and dtype, not overlapping `x`.

        Returns
        -------
        array (N, K, Ho, Wo) or (K, Ho, Wo)
            Of the library of `x`, in the plan's memory format, or `out`.

        Raises
        ------
        TypeError, ValueError
            If `x` or `out` does not fit the plan.
        """
        done = self._replays.again((x, out))
        if done is not None:
            return done
        image, missing = as_image(x, "x")
        if image.shape != self.problem.in_shape:
            raise ValueError(f"x must have the plan's shape {self.problem.in_shape}, got {image.shape}")
        if image.dtype != self.problem.dtype:
            raise TypeError(f"x must have the plan's dtype {self.problem.dtype}, got {image.dtype}")
        if image.device != self._device:
            raise ValueError(f"x must be on the plan's GPU, {self._device}, got {image.device}")
        recording = Recording(x, image)
        result = target(out, self._shape, self._strides, missing, recording, (image,))
        self._kernel.run(*recording.inputs(), self._packed, result.array)
        self._replays.remember((x, out), (), recording.replay(result.answer, result.array, self._packed))
        return result.finished()

    def explain(self) -> Explanation:
        """Which algorithm runs, why, and what it costs."""
        return explain(self.problem, self._kernel, self.choice)

    def _compile(self, like: DeviceArray) -> None:
        """Run once on memory of no meaning, and wait: kernels are loaded, and any stream finds packed weights."""
        p = self.problem
        strides = dense_strides(p.in_shape, p.memory_format)
        x, out = _empty(p.in_shape, strides, like), _empty(self._shape, self._strides, like)
        self._kernel.run(x, self._packed, out)
        if not SIMULATED:
            driver.wait(like.device, like.stream)


def plan(
    shape: tuple[int, ...], weight: Any, bias: Any, options: tuple, dtype: Any, memory_format: MemoryFormat,
    algorithm: str | None, max_workspace: int | None,
) -> Any:  # fmt: skip
    """`fastconv.plan`, a `DevicePlan`; `options` are (stride, padding, dilation, groups, activation, pool)."""
    w = as_device_array(weight, "weight", (4,))
    check_dtype(dtype, w.dtype)
    b = as_bias(bias)
    check_fit(w, "weight", bias=b)
    stride, padding, dilation, groups, activation, pool = options
    problem = ConvProblem.create(
        shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=w.dtype,
        memory_format=memory_format, bias=b is not None, activation=activation, pool=pool, device="cuda",
        precision=precision_of(w.dtype),
    )  # fmt: skip
    check_bias(b, problem.out_channels)
    return DevicePlan(problem, w, b, algorithm, max_workspace)


def _copied(array: DeviceArray) -> DeviceArray:
    """The same elements in memory of their own, with the same strides."""
    made = replace(_empty((array.reach,), (1,), array), shape=array.shape, strides=array.strides)
    size = array.itemsize * array.reach
    if SIMULATED:
        ctypes.memmove(made.pointer, array.pointer, size)
    else:
        driver.copy(made.pointer, array.pointer, size, array.device, array.stream)
    return made


def _empty(shape: tuple[int, ...], strides: tuple[int, ...], like: DeviceArray) -> DeviceArray:
    """Uninitialised memory of the library, the GPU, the stream and the dtype of an array."""
    library = library_of(like.owner)
    assert library is not None
    return replace(library.describe(library.new(shape, strides, like.dtype, like.owner)), stream=like.stream)

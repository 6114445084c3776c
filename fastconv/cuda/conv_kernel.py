"""Convolution kernels bound to a problem: the part that all algorithms on a GPU share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

from fastconv.cuda.arrays import DeviceArray
from fastconv.cuda.kernel import Launch
from fastconv.problem import ConvProblem

Strides: TypeAlias = tuple[int, ...]
Packed: TypeAlias = tuple[DeviceArray, DeviceArray | None]

_MOST_LAYOUTS = 64  # of arrays, remembered for each kernel


def check_reach(shape: tuple[int, ...], strides: Strides) -> None:
    """Raise ValueError unless indices of 32 bits reach all elements of an array."""
    if sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) >= 1 << 31:
        raise ValueError(
            f"arrays must reach over less than 2**31 elements, got strides {strides} for shape {shape}; copy them "
            "first, or use algorithm='reference'"
        )


class DeviceKernel(ABC):
    """An algorithm bound to a problem; a launch is made once for arrays that are alike.

    Attributes
    ----------
    layout_copies : str
        Which arrays a run copies to another layout, for `Plan.explain`.
    workspace_bytes : int
        Scratch memory of one run.
    vector_arrays : slice
        Which of the arrays of `start` may be read or written by 16 bytes: the last.
    """

    layout_copies = "none"
    workspace_bytes = 0
    vector_arrays = slice(-1, None)

    def __init__(self, problem: Any) -> None:
        self.problem = problem
        self._launches: dict[tuple, Launch] = {}

    @abstractmethod
    def launch(self, *strides: Strides) -> Launch:
        """What computes on arrays with these strides in elements."""

    def launch_unaligned(self, *strides: Strides) -> Launch:
        """`launch` where an address of `vector_arrays` is no multiple of 16 bytes, which vectors need."""
        return self.launch(*strides)

    def start(self, arrays: tuple[DeviceArray, ...], bias: tuple[DeviceArray | None, ...] = ()) -> None:
        """Run on `arrays`, the last of them written, with `bias` before it, on the stream of the first."""
        strides = tuple(array.strides for array in arrays)
        aligned = all(array.pointer % 16 == 0 for array in arrays[self.vector_arrays])
        key = (strides, aligned)
        launch = self._launches.get(key)
        if launch is None:
            if len(self._launches) >= _MOST_LAYOUTS:
                self._launches.clear()
            make = self.launch if aligned else self.launch_unaligned
            launch = self._launches[key] = make(*strides)
        launch((*arrays[:-1], *bias, arrays[-1]), arrays[0].stream)


class ConvKernel(DeviceKernel):
    """A convolution, or the gradient of its input: packs weights once, then runs on arrays.

    `launch` gets the strides of input, packed weights and result.

    Attributes
    ----------
    maps_bytes : int
        The part of `workspace_bytes` that is neither packed weights nor a copy of the input.
    """

    problem: ConvProblem
    maps_bytes = 0

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> Packed:
        """Weights (K, C/groups, R, S) and bias in the layout that `run` reads: as they are."""
        return weight, bias

    def run(self, x: DeviceArray, packed: Packed, out: DeviceArray) -> None:
        """Compute `out` from `x`; both (N, C, H, W) with the problem's sizes and dtype."""
        weight, bias = packed
        self.start((x, weight, out), (bias,))

    def convolve(self, x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, out: DeviceArray) -> None:
        """`run` with weights and bias as they are."""
        self.run(x, self.pack(weight, bias), out)


class WeightKernel(DeviceKernel):
    """The gradient of a convolution's weights; `launch` gets the strides of x, the output's gradient and the result."""

    problem: ConvProblem

    def run(self, x: DeviceArray, grad_output: DeviceArray, out: DeviceArray) -> None:
        """Compute `out` (K, C/groups, R, S) from x (N, C, H, W) and the gradient of the output (N, K, Ho, Wo)."""
        self.start((x, grad_output, out))

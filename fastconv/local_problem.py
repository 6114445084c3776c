"""Locally-connected convolution as a problem: a convolution that has its own weights at every pixel of the result.

Its descriptor is that of the convolution of the same sizes and the word ``local``, as in
``n1c16h14w14k32r3s3p1_f32_nchw_bias_local``; `fastconv.parse` does not read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastconv.problem import ConvProblem, MemoryFormat
from fastconv.sizes import Pair


@dataclass(frozen=True)
class LocalProblem:
    """A locally-connected convolution, or one of its gradients.

    Parameters
    ----------
    conv : ConvProblem
        The convolution of the same sizes, which shares its weights between the pixels.
    """

    conv: ConvProblem

    @classmethod
    def create(
        cls, x_shape: tuple, weight_shape: tuple, *, names: tuple[str, str] = ("x", "weight"), **rest: Any
    ) -> LocalProblem:
        """Build and check a problem from shapes (N, C, H, W) and (K, C, R, S, OH, OW).

        Other arguments are those of `ConvProblem.create`.

        Raises
        ------
        ValueError
            Names the argument, its value and what would do.
        """
        if len(weight_shape) != 6:
            raise ValueError(f"{names[1]} must have 6 axes (K, C, R, S, OH, OW), got shape {tuple(weight_shape)}")
        problem = cls(ConvProblem.create(x_shape, tuple(weight_shape[:4]), names=names, **rest))
        if problem.weight_shape != tuple(weight_shape):
            raise ValueError(
                f"{names[1]} must have shape {problem.weight_shape}, its last two axes the size of the result, "
                f"got {tuple(weight_shape)}"
            )
        return problem

    @property
    def operation(self) -> str:
        """The name under which algorithms for this kind of problem are registered."""
        return "local" if self.conv.direction == "forward" else f"local_{self.conv.direction}"

    @property
    def direction(self) -> str:
        """Which result is wanted: forward, backward_input or backward_weight."""
        return self.conv.direction

    @property
    def device(self) -> str:
        """Where the arrays are."""
        return self.conv.device

    @property
    def batch(self) -> int:
        """Images."""
        return self.conv.batch

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.conv.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.conv.itemsize

    @property
    def memory_format(self) -> MemoryFormat:
        """Of the images."""
        return self.conv.memory_format

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of x."""
        return self.conv.in_shape

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result."""
        return self.conv.out_shape

    @property
    def out_size(self) -> Pair:
        """Height and width of the result."""
        return self.conv.out_size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (K, C, R, S, OH, OW)."""
        return (*self.conv.weight_shape, *self.conv.out_size)

    @property
    def flops(self) -> int:
        """Multiplications and additions, taps in the padding included."""
        return self.conv.flops

    @property
    def bytes(self) -> int:
        """Bytes of x, weights and result, each once: what must move at least."""
        return self.itemsize * sum(math.prod(shape) for shape in (self.in_shape, self.weight_shape, self.out_shape))

    @property
    def descriptor(self) -> str:
        """The one-line name."""
        return f"{self.conv.descriptor}_local"

"""Windows of pooling layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.sizes import Pair, conv_output_size, flag, pair, pair_word, shown

_NUMBERS: Any = (int, float, np.integer, np.floating)


@dataclass(frozen=True)
class Pool:
    """A pooling window; after normalisation every field is a pair or a plain value.

    Parameters
    ----------
    mode : {"max", "avg", "lp"}
        Maximum, average, or the Lp norm of the window.
    kernel_size : int or (int, int)
        Window height and width, in pixels.
    stride : int or (int, int), optional
        Step of the window; the kernel size if not given.
    padding : int or (int, int), default 0
        On both sides, at most half the (dilated) kernel. Max pooling pads with -inf, the others with 0.
    dilation : int or (int, int), default 1
        Max pooling only.
    ceil_mode : bool, default False
        Round the output size up; a last window that would start in the trailing padding is dropped.
    count_include_pad : bool, default True
        Whether average pooling divides by padded elements too.
    norm_type : float, default 2
        The p of Lp pooling, positive and finite.

    Raises
    ------
    ValueError
        Names the argument that is out of range.
    """

    mode: str
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in ("max", "avg", "lp"):
            raise ValueError(f"mode must be 'max', 'avg' or 'lp', got {shown(self.mode)}")
        kernel = pair(self.kernel_size, "kernel_size", least=1)
        stride = kernel if self.stride is None else pair(self.stride, "stride", least=1)
        padding, dilation = pair(self.padding, "padding", least=0), pair(self.dilation, "dilation", least=1)
        for p, f, d in zip(padding, kernel, dilation, strict=True):
            if p > (d * (f - 1) + 1) // 2:
                span = tuple(b * (a - 1) + 1 for a, b in zip(kernel, dilation, strict=True))
                raise ValueError(f"padding must be at most half the (dilated) kernel {span}, got {self.padding!r}")
        if self.mode != "max" and dilation != (1, 1):
            raise ValueError(f"dilation is for max pooling only, got {self.dilation!r} with mode {self.mode!r}")
        if self.mode == "lp" and padding != (0, 0):
            raise ValueError(f"padding is not defined for lp pooling, got {self.padding!r}")
        if not isinstance(self.norm_type, _NUMBERS) or not (0 < self.norm_type <= sys.float_info.max):
            raise ValueError(f"norm_type must be positive and finite, got {shown(self.norm_type)}")
        values: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        values |= {"norm_type": float(self.norm_type) if self.mode == "lp" else 2.0}
        values |= {"count_include_pad": flag(self.count_include_pad, "count_include_pad") or self.mode != "avg"}
        values |= {"ceil_mode": flag(self.ceil_mode, "ceil_mode")}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def output_size(self, size: Pair) -> Pair:
        """Height and width after pooling a map of the given size.

        Raises
        ------
        ValueError
            If the window is larger than the padded map.
        """
        return self._along(0, size[0]), self._along(1, size[1])

    def _along(self, axis: int, size: int) -> int:
        f, s, p, d = self.kernel_size[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
        if not self.ceil_mode:
            return conv_output_size(size, f, p, s, d)
        out = -(-(size + 2 * p - d * (f - 1) - 1) // s) + 1
        if (out - 1) * s >= size + p:
            out -= 1
        if out < 1:
            raise ValueError(f"kernel_size {f} is larger than the padded input of {size} + {p} + {p}")
        return out

    @property
    def descriptor(self) -> str:
        """Such as ``max3u2p1``; then ``d`` dilation, ``n`` norm, ``ceil``, ``nopad`` (pads not counted)."""
        text = f"{self.mode}{pair_word(self.kernel_size)}u{pair_word(self.stride)}"
        text += f"p{pair_word(self.padding)}" if self.padding != (0, 0) else ""
        text += f"d{pair_word(self.dilation)}" if self.dilation != (1, 1) else ""
        text += f"n{self.norm_type!r}".removesuffix(".0") if self.mode == "lp" else ""
        return text + ("ceil" if self.ceil_mode else "") + ("" if self.count_include_pad else "nopad")

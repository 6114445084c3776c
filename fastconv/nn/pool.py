"""Pooling layers. Each holds its window as a `fastconv.Pool`, which a convolution before it can take over."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import grad as gradients
from fastconv.functional.pool import avg_pool2d, lp_pool2d, max_pool2d
from fastconv.nn.backend import as_floats, backend
from fastconv.nn.module import Module
from fastconv.pooling import Pool
from fastconv.sizes import LARGEST, pair


class MaxPool2d(Module):
    """Maximum of each window.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As in `fastconv.max_pool2d`.

    Raises
    ------
    ValueError
        Names the argument that is out of range.
    """

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, ceil_mode: bool = False
    ) -> None:
        self.window = Pool("max", kernel_size, stride, padding, dilation, ceil_mode)

    @property
    def _positional(self) -> tuple[Any, ...]:
        """The window's arguments of `max_pool2d` and its gradient that go by position."""
        w = self.window
        return w.kernel_size, w.stride, w.padding, w.dilation

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, Ho, Wo)."""
        x = as_floats(x, "x", (4,))
        if not self.recording:
            self.keep()  # forgets what an earlier forward kept
            return max_pool2d(x, *self._positional, ceil_mode=self.window.ceil_mode)
        output, indices = max_pool2d(x, *self._positional, ceil_mode=self.window.ceil_mode, return_indices=True)
        self.keep(indices, tuple(x.shape), output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        indices, shape = self.take(grad_output)
        if not input_grad:
            return None
        return gradients.max_pool2d(grad_output, indices, shape, *self._positional, ceil_mode=self.window.ceil_mode)


class AvgPool2d(Module):
    """Average of each window.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As in `fastconv.avg_pool2d`.

    Raises
    ------
    ValueError
        Names the argument that is out of range.
    """

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:  # fmt: skip
        self.window = Pool("avg", kernel_size, stride, padding, 1, ceil_mode, count_include_pad)
        self._positional = (self.window.kernel_size, self.window.stride, self.window.padding)
        self._named: Any = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, Ho, Wo)."""
        x = as_floats(x, "x", (4,))
        output = avg_pool2d(x, *self._positional, **self._named)
        self.keep(tuple(x.shape), output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        (shape,) = self.take(grad_output)
        return gradients.avg_pool2d(grad_output, shape, *self._positional, **self._named) if input_grad else None


class LPPool2d(Module):
    """Lp norm of each window.

    Parameters
    ----------
    norm_type, kernel_size, stride, ceil_mode
        As in `fastconv.lp_pool2d`.

    Raises
    ------
    ValueError
        Names the argument that is out of range.
    """

    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        self.window = Pool("lp", kernel_size, stride, ceil_mode=ceil_mode, norm_type=norm_type)
        self._positional = (self.window.norm_type, self.window.kernel_size, self.window.stride)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, Ho, Wo)."""
        x = as_floats(x, "x", (4,))
        output = lp_pool2d(x, *self._positional, ceil_mode=self.window.ceil_mode)
        self.keep(x, output, output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        x, output = self.take(grad_output)
        if not input_grad:
            return None
        return gradients.lp_pool2d(grad_output, x, output, *self._positional, ceil_mode=self.window.ceil_mode)


class AdaptiveAvgPool2d(Module):
    """Average of each part of a map that is cut into a number of parts along both axes.

    Part i of n of H pixels is from floor(i * H / n) to ceil((i + 1) * H / n), as in torch: parts may share pixels, and
    there may be more of them than pixels.

    Parameters
    ----------
    output_size : int, None or a pair of these
        Height and width of the result; None is that of the input.

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    def __init__(self, output_size: Any) -> None:
        sizes = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        height, width = pair(tuple(1 if size is None else size for size in sizes), "output_size", least=1)
        self.output_size = None if sizes[0] is None else height, None if sizes[1] is None else width

    def size_for(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the result for an input of a shape (N, C, H, W); ValueError if that has no pixels."""
        if 0 in shape[2:]:
            raise ValueError(f"x must have pixels to average, got shape {shape}")
        height, width = (given or own for given, own in zip(self.output_size, shape[2:], strict=True))
        return height, width

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, *output_size)."""
        x = as_floats(x, "x", (4,))
        shape = tuple(x.shape)
        window = self._window(shape)
        output = backend(x).adaptive_average(x, self.size_for(shape)) if window is None else avg_pool2d(x, window)
        self.keep(shape, backend(x).memory_format(x), output=output)
        return output

    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        shape, format = self.take(grad_output)
        if not input_grad:
            return None
        grad, window = as_floats(grad_output, "grad_output", (4,)), self._window(shape)
        if window is None:
            return backend(grad).adaptive_average_backward(grad, shape[2:], format)
        return gradients.avg_pool2d(grad, shape, window, out=backend(grad).new(shape, grad, format))

    def _window(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The window of the same pooling without an adaptive size, None if parts differ in size or share pixels."""
        (height, width), (parts_high, parts_wide) = shape[2:], self.size_for(shape)
        window = height // parts_high, width // parts_wide
        return None if height % parts_high or width % parts_wide or max(window) > LARGEST else window


def pooled(x: Any, window: Pool) -> Any:
    """What a pooling layer with this window makes of images (N, C, H, W)."""
    w = window
    if w.mode == "max":
        return max_pool2d(x, w.kernel_size, w.stride, w.padding, w.dilation, ceil_mode=w.ceil_mode)
    if w.mode == "lp":
        return lp_pool2d(x, w.norm_type, w.kernel_size, w.stride, ceil_mode=w.ceil_mode)
    named: Any = {"ceil_mode": w.ceil_mode, "count_include_pad": w.count_include_pad}
    return avg_pool2d(x, w.kernel_size, w.stride, w.padding, **named)

"""Sizes, strides and paddings along the axes of an image."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Pair: TypeAlias = tuple[int, int]


def conv_output_size(W: int, F: int, padding: int | Pair = 0, stride: int = 1, dilation: int = 1) -> int:
    """Output size of a convolution along one axis: floor((W + 2P - D(F-1) - 1)/S + 1).

    Parameters
    ----------
    W, F : int
        Input size and kernel size, in pixels.
    padding : int or (int, int), default 0
        Pixels of zeros on each side, or at the beginning and at the end.
    stride, dilation : int, default 1
        Step of the window, and distance between neighbouring kernel elements.

    Returns
    -------
    int
        The number of window positions.

    Raises
    ------
    ValueError
        If the dilated kernel is larger than the padded input, or an argument is out of range.

    Examples
    --------
    >>> conv_output_size(227, 11, stride=4)
    55
    """
    begin, end = (padding, padding) if isinstance(padding, int) else padding
    for name, value, least in [("stride", stride, 1), ("dilation", dilation, 1), ("F", F, 1)]:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if begin < 0 or end < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    span = W + begin + end - dilation * (F - 1) - 1
    if span < 0:
        raise ValueError(
            f"kernel_size {F} with dilation {dilation} spans {dilation * (F - 1) + 1} pixels, more than the "
            f"padded input of {W} + {begin} + {end}; use a smaller kernel or more padding"
        )
    return span // stride + 1


def pair(value: Any, name: str, *, least: int) -> Pair:
    """An int, or two of them, as a (height, width) pair; `name` is for the error message."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(values[0]), int(values[1])


def padding_pairs(padding: Any, kernel_size: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Any accepted form of `padding` as ((top, bottom), (left, right)).

    Raises
    ------
    ValueError
        For an unknown form, a negative amount, or "same" with a stride above 1.
    """
    if isinstance(padding, str):
        return _named_padding(padding, kernel_size, stride, dilation)
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and isinstance(padding[0], (tuple, list)):
        return pair(padding[0], "padding", least=0), pair(padding[1], "padding", least=0)
    height, width = pair(padding, "padding", least=0)
    return (height, height), (width, width)


def _named_padding(name: str, kernel_size: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    if name == "valid":
        return (0, 0), (0, 0)
    if name != "same":
        raise ValueError(f"padding must be ints, 'same' or 'valid', got {name!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride {stride}; give the padding as numbers")
    total = [d * (f - 1) for d, f in zip(dilation, kernel_size, strict=True)]
    first, second = ((t // 2, t - t // 2) for t in total)
    return first, second


def pair_word(values: Pair) -> str:
    """A pair in a descriptor: ``3`` if both are 3, else such as ``3.5``."""
    return str(values[0]) if values[0] == values[1] else f"{values[0]}.{values[1]}"

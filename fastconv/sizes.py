"""Sizes, strides and paddings along the axes of an image."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Pair: TypeAlias = tuple[int, int]

_INT64 = 2**63 - 1
LARGEST = 2**31 - 1  # of a stride, a padding, a window: products and sums of them stay within int64


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
    begin, end = pair(padding, "padding", least=-LARGEST)
    if begin < 0 or end < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    W = integer(W, "W", least=0)
    F, stride, dilation = (
        integer(value, name, least=1) for value, name in ((F, "F"), (stride, "stride"), (dilation, "dilation"))
    )
    span = W + begin + end - dilation * (F - 1) - 1
    if span < 0:
        raise ValueError(
            f"kernel_size {F} with dilation {dilation} spans {dilation * (F - 1) + 1} pixels, more than the "
            f"padded input of {W} + {begin} + {end}; use a smaller kernel or more padding"
        )
    return span // stride + 1


def is_integer(value: Any) -> bool:
    """Whether it is an int of Python's or NumPy's; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def integer(value: Any, name: str, *, least: int | None = None, most: float = _INT64) -> int:
    """A number as Python's int; `name` is for the error message.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is less than `least`, or more than `most`.
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    if not -most <= value <= most:
        raise ValueError(f"{name} must be at most {most} in size, got {shown(value)}")
    return int(value)


def axis(value: Any, name: str, ndim: int) -> int:
    """The number of an axis, of `ndim`, counted from the first; errors as `integer`."""
    if not -ndim <= (number := integer(value, name)) < ndim:
        raise ValueError(f"{name} must be an axis of an array that has {ndim}, got {shown(value)}")
    return number % ndim


def real(value: Any, name: str, least: float | None = None, most: float | None = None) -> float:
    """A number as Python's float; `name` is for the error message.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is less than `least` or more than `most`; NaN is neither at least nor at most anything.
    """
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        wanted = "not be negative" if most is None and least == 0 else f"be between {least} and {most}"
        raise ValueError(f"{name} must {wanted}, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be in the range of a float, got {shown(value)}") from None


def shown(value: Any) -> str:
    """A wrong value as messages show it, cut short."""
    try:
        text = repr(value)
    except Exception:  # Python does not print integers of thousands of digits, and objects may do what they like
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def flag(value: Any, name: str) -> bool:
    """An argument that is True or False, or counts as one of them; TypeError for what does neither, as an array."""
    if value is True or value is False:
        return value
    try:
        return bool(value)
    except Exception:
        raise TypeError(f"{name} must be True or False, got {shown(value)}") from None


def pair(value: Any, name: str, *, least: int) -> Pair:
    """An int, or two of them, as a (height, width) pair; `name` is for the error message."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(is_integer(v) for v in values):
        raise ValueError(f"{name} must be an int or a pair of ints, got {shown(value)}")
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    if max(values) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {shown(value)}")
    return int(values[0]), int(values[1])


def as_size(size: Any, name: str, ndim: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of an array with one of the given numbers of axes (any if None); `name` is for the error message."""
    right = isinstance(size, (tuple, list)) and all(is_integer(n) for n in size)
    if not right or (ndim is not None and len(size) not in ndim):
        got = f"an array; give its shape, {size.shape}" if isinstance(size, np.ndarray) else shown(size)
        axes = "" if ndim is None else f" of {' or '.join(map(str, ndim))} axes"
        raise ValueError(f"{name} must be a shape{axes}, got {got}")
    if min(size, default=0) < 0:
        raise ValueError(f"{name} must not be negative along any axis, got {shown(size)}")
    if max(size, default=0) > _INT64:
        raise ValueError(f"{name} must be at most {_INT64} along each axis, got {shown(size)}")
    return tuple(int(n) for n in size)


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
        raise ValueError(f"padding must be ints, 'same' or 'valid', got {shown(name)}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride {stride}; give the padding as numbers")
    total = [d * (f - 1) for d, f in zip(dilation, kernel_size, strict=True)]
    first, second = ((t // 2, t - t // 2) for t in total)
    return first, second


def pair_word(values: Pair) -> str:
    """A pair in a descriptor: ``3`` if both are 3, else such as ``3.5``."""
    return str(values[0]) if values[0] == values[1] else f"{values[0]}.{values[1]}"

"""What is to be computed: frozen, hashable problems that know their sizes, cost and one-line name.

A problem says everything about a computation except the numbers in the arrays. Its descriptor is the
key of the plan cache and of the wisdom store, the argument of the command line and the name of a
benchmark::

    n1c64h56w56k64r3s3p1_f32_nhwc_bias_relu      a convolution
    n1c64h112w112_max3u2p1_f32_nhwc              a pooling

===========  ==========================================================================
field        meaning
===========  ==========================================================================
n c h w      batch, input channels, input height and width
k r s        output channels, kernel height and width (only a convolution has them)
p            padding: ``p1``, ``p1.2`` (height.width) or ``p0.1.2.3`` (top.bottom.left.right)
u d g        stride, dilation (``u2`` or ``u2.1``) and groups
_f32 _f64    element type
_nchw _nhwc  memory format (``contiguous`` and ``channels_last`` in torch's words)
_bias        a bias is added
_relu ...    activation (`ACTIVATIONS`)
_max3u2p1    pooling, see `Pool.descriptor`
_raw         weights are not packed beforehand (`ConvProblem.raw`)
_indices     max pooling that returns indices
_dgrad       the gradient of the input is wanted (direction "backward_input")
_wgrad       the gradient of the weights is wanted (direction "backward_weight")
===========  ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

MemoryFormat: TypeAlias = Literal["contiguous", "channels_last"]
Pair: TypeAlias = tuple[int, int]

ACTIVATIONS = ("relu", "relu6", "leaky_relu")
LEAKY_SLOPE = 0.01
DIRECTIONS = {"": "forward", "dgrad": "backward_input", "wgrad": "backward_weight"}
DTYPES = {"f32": "float32", "f64": "float64"}
FORMATS: dict[str, MemoryFormat] = {"nchw": "contiguous", "nhwc": "channels_last"}
_DTYPE_WORD = {name: word for word, name in DTYPES.items()}
_FORMAT_WORD = {name: word for word, name in FORMATS.items()}
_DIRECTION_WORD = {name: word for word, name in DIRECTIONS.items()}


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
        if self.mode not in ("max", "avg", "lp"):
            raise ValueError(f"mode must be 'max', 'avg' or 'lp', got {self.mode!r}")
        kernel = pair(self.kernel_size, "kernel_size", least=1)
        stride = kernel if self.stride is None else pair(self.stride, "stride", least=1)
        padding, dilation = pair(self.padding, "padding", least=0), pair(self.dilation, "dilation", least=1)
        for p, f, d in zip(padding, kernel, dilation, strict=True):
            if p > (d * (f - 1) + 1) // 2:
                raise ValueError(f"padding must be at most half the kernel {kernel}, got {self.padding!r}")
        if self.mode != "max" and dilation != (1, 1):
            raise ValueError(f"dilation is for max pooling only, got {self.dilation!r} with mode {self.mode!r}")
        if self.mode == "lp" and padding != (0, 0):
            raise ValueError(f"padding is not defined for lp pooling, got {self.padding!r}")
        if not (0 < self.norm_type < math.inf):
            raise ValueError(f"norm_type must be positive and finite, got {self.norm_type!r}")
        values: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        values |= {"norm_type": float(self.norm_type) if self.mode == "lp" else 2.0}
        values |= {"count_include_pad": bool(self.count_include_pad) or self.mode != "avg"}
        values |= {"ceil_mode": bool(self.ceil_mode)}
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
        text = f"{self.mode}{_short(self.kernel_size)}u{_short(self.stride)}"
        text += f"p{_short(self.padding)}" if self.padding != (0, 0) else ""
        text += f"d{_short(self.dilation)}" if self.dilation != (1, 1) else ""
        text += f"n{self.norm_type!r}".removesuffix(".0") if self.mode == "lp" else ""
        return text + ("ceil" if self.ceil_mode else "") + ("" if self.count_include_pad else "nopad")


@dataclass(frozen=True)
class ConvProblem:
    """A convolution with its epilogue: ``pool(activation(conv(x, w) + bias))``.

    All sizes are tuples with one entry per spatial axis, padding one (begin, end) pair per axis. Use
    `create` for arguments as a user gives them. `raw` says that the weights come as they are with each
    call, so that packing them is part of the work; a plan packs them once.

    A gradient (`direction`) is described by the sizes of its forward convolution. It has no epilogue, but
    that of the input may add a bias per channel of the input: it serves as the transposed convolution too.
    Its arrays always come as they are.
    """

    batch: int
    in_channels: int
    in_size: Pair
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: str = "float32"
    memory_format: MemoryFormat = "contiguous"
    bias: bool = False
    activation: str | None = None
    pool: Pool | None = None
    direction: str = "forward"
    raw: bool = False

    @classmethod
    def create(
        cls, x_shape: tuple, weight_shape: tuple, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, **rest: Any,
    ) -> ConvProblem:  # fmt: skip
        """Build and check a problem from shapes (N, C, H, W) and (K, C/groups, R, S).

        Raises
        ------
        ValueError
            Names the argument, its value and what would do.
        """
        if len(x_shape) != 4:
            raise ValueError(f"x must have 4 axes (N, C, H, W) or 3 (C, H, W), got shape {tuple(x_shape)}")
        if len(weight_shape) != 4:
            raise ValueError(f"weight must have 4 axes (K, C/groups, R, S), got shape {tuple(weight_shape)}")
        kernel = pair(tuple(weight_shape[2:]), "weight's kernel size", least=1)
        strides, dilations = pair(stride, "stride", least=1), pair(dilation, "dilation", least=1)
        pads = padding_pairs(padding, kernel, strides, dilations)
        channels, filters = int(x_shape[1]), int(weight_shape[0])
        _check_groups(groups, channels, filters, int(weight_shape[1]))
        _check_choice("dtype", rest.get("dtype", "float32"), tuple(_DTYPE_WORD))
        _check_choice("memory_format", rest.get("memory_format", "contiguous"), tuple(_FORMAT_WORD))
        _check_sizes(int(x_shape[0]), channels=channels, height=int(x_shape[2]), width=int(x_shape[3]), filters=filters)
        if rest.get("activation") not in (None, *ACTIVATIONS):
            raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {rest['activation']!r}")
        if not isinstance(rest.get("pool"), (Pool, type(None))):
            raise ValueError(f"pool must be a fastconv.Pool or None, got {rest['pool']!r}")
        _check_direction(**rest)
        size = (int(x_shape[2]), int(x_shape[3]))
        problem = cls(int(x_shape[0]), channels, size, filters, kernel, strides, pads, dilations, int(groups), **rest)
        _ = problem.out_shape  # raises where the kernel or the window does not fit
        return problem

    @property
    def operation(self) -> str:
        """The name under which algorithms for this kind of problem are registered."""
        return "conv" if self.direction == "forward" else f"conv_{self.direction}"

    @cached_property
    def conv_size(self) -> Pair:
        """Height and width of the convolution's own output, before pooling."""
        axes = zip(self.in_size, self.kernel_size, self.padding, self.stride, self.dilation, strict=True)
        height, width = (conv_output_size(*axis) for axis in axes)
        return height, width

    @cached_property
    def out_size(self) -> Pair:
        """Height and width of the result."""
        return self.pool.output_size(self.conv_size) if self.pool else self.conv_size

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of x."""
        return (self.batch, self.in_channels, *self.in_size)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result."""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weights, (K, C/groups, R, S)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions, taps in the padding included, as is customary."""
        per_output = 2 * math.prod(self.weight_shape[1:])
        return self.batch * self.out_channels * math.prod(self.conv_size) * per_output

    @property
    def bytes(self) -> int:
        """Bytes of x, weights and result, each once: what must move at least."""
        elements = math.prod(self.in_shape) + math.prod(self.weight_shape) + math.prod(self.out_shape)
        return self.itemsize * elements

    @cached_property
    def descriptor(self) -> str:
        """The one-line name; `fastconv.parse` reads it back."""
        (h, w), (r, s) = self.in_size, self.kernel_size
        text = f"n{self.batch}c{self.in_channels}h{h}w{w}k{self.out_channels}r{r}s{s}"
        text += _padding_word(self.padding)
        text += f"u{_short(self.stride)}" if self.stride != (1, 1) else ""
        text += f"d{_short(self.dilation)}" if self.dilation != (1, 1) else ""
        text += f"g{self.groups}" if self.groups != 1 else ""
        words = [text, _DTYPE_WORD[self.dtype], _FORMAT_WORD[self.memory_format]]
        words += ["bias"] if self.bias else []
        words += [self.activation.replace("_", "")] if self.activation else []
        words += [self.pool.descriptor] if self.pool else []
        words += ["raw"] if self.raw else []
        words += [_DIRECTION_WORD[self.direction]] if self.direction != "forward" else []
        return "_".join(words)

    def without_epilogue(self, direction: str = "forward") -> ConvProblem:
        """The same convolution, or a gradient of it, with no bias, activation or pooling."""
        raw = self.raw and direction == "forward"
        return replace(self, bias=False, activation=None, pool=None, direction=direction, raw=raw)


@dataclass(frozen=True)
class PoolProblem:
    """Pooling by itself, with one window for every channel."""

    batch: int
    channels: int
    in_size: Pair
    pool: Pool
    dtype: str = "float32"
    memory_format: MemoryFormat = "contiguous"
    return_indices: bool = False
    direction: str = "forward"

    def __post_init__(self) -> None:
        _check_choice("direction", self.direction, ("forward", "backward_input"))
        _check_sizes(self.batch, channels=self.channels, height=self.in_size[0], width=self.in_size[1])
        _check_choice("dtype", self.dtype, tuple(_DTYPE_WORD))
        _check_choice("memory_format", self.memory_format, tuple(_FORMAT_WORD))

    @property
    def operation(self) -> str:
        """The name under which algorithms for this kind of problem are registered."""
        return "pool" if self.direction == "forward" else f"pool_{self.direction}"

    @cached_property
    def out_size(self) -> Pair:
        """Height and width of the result."""
        return self.pool.output_size(self.in_size)

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """Shape of x."""
        return (self.batch, self.channels, *self.in_size)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result."""
        return (self.batch, self.channels, *self.out_size)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize

    @property
    def flops(self) -> int:
        """One operation for each element of each window."""
        return math.prod(self.out_shape) * math.prod(self.pool.kernel_size)

    @property
    def bytes(self) -> int:
        """Bytes of x and result, each once."""
        index = 8 * math.prod(self.out_shape) if self.return_indices else 0
        return self.itemsize * (math.prod(self.in_shape) + math.prod(self.out_shape)) + index

    @cached_property
    def descriptor(self) -> str:
        """The one-line name; `fastconv.parse` reads it back."""
        words = [f"n{self.batch}c{self.channels}h{self.in_size[0]}w{self.in_size[1]}", self.pool.descriptor]
        words += [_DTYPE_WORD[self.dtype], _FORMAT_WORD[self.memory_format]]
        words += ["indices"] if self.return_indices else []
        words += [_DIRECTION_WORD[self.direction]] if self.direction != "forward" else []
        return "_".join(words)


Problem: TypeAlias = ConvProblem | PoolProblem


def _short(values: Pair) -> str:
    return str(values[0]) if values[0] == values[1] else f"{values[0]}.{values[1]}"


def _padding_word(padding: tuple[Pair, Pair]) -> str:
    (top, bottom), (left, right) = padding
    if top == bottom and left == right:
        return f"p{_short((top, left))}" if top or left else ""
    return f"p{top}.{bottom}.{left}.{right}"


def _check_sizes(batch: int, **sizes: int) -> None:
    if batch < 0:
        raise ValueError(f"batch must not be negative, got {batch}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _check_direction(direction: str = "forward", **rest: Any) -> None:
    _check_choice("direction", direction, tuple(_DIRECTION_WORD))
    epilogue = ("activation", "pool", "raw") if direction == "backward_input" else ("bias", "activation", "pool", "raw")
    fused = [name for name in epilogue if rest.get(name)]
    if direction != "forward" and fused:
        raise ValueError(f"direction {direction!r} is of the convolution alone, got {', '.join(fused)} with it")


def _check_groups(groups: Any, channels: int, filters: int, channels_per_group: int) -> None:
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}")
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups must divide the channels of x ({channels}) and the filters of weight ({filters}), got {groups}"
        )
    if channels // groups != channels_per_group:
        raise ValueError(
            f"weight has {channels_per_group} channels per filter, but x has {channels} channels in {groups} "
            f"group(s): {channels // groups} are needed"
        )

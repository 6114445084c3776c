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
_f32 _f64    element type; on a GPU also ``_f16`` and ``_bf16``
_nchw _nhwc  memory format (``contiguous`` and ``channels_last`` in torch's words)
_bias        a bias is added
_relu ...    activation (`ACTIVATIONS`)
_max3u2p1    pooling, see `Pool.descriptor`
_raw         weights are not packed beforehand (`ConvProblem.raw`)
_indices     max pooling that returns indices
_dgrad       the gradient of the input is wanted (direction "backward_input")
_wgrad       the gradient of the weights is wanted (direction "backward_weight")
_tf32        float32 may be multiplied with 10 bits of mantissa (`ConvProblem.precision`)
_cuda        the arrays are on an NVIDIA GPU
===========  ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from fastconv.pooling import Pool
from fastconv.sizes import Pair, as_size, conv_output_size, integer, is_integer, padding_pairs, pair, pair_word, shown

MemoryFormat: TypeAlias = Literal["contiguous", "channels_last"]

ACTIVATIONS = ("relu", "relu6", "leaky_relu")
LEAKY_SLOPE = 0.01
# (slope, low, high) of x < 0 ? slope * x : x, clamped to [low, high]. A slope of 1 keeps -inf out of a product with 0.
EPILOGUES: dict[str | None, tuple[float, float, float]] = {
    None: (1.0, -math.inf, math.inf),
    "relu": (1.0, 0.0, math.inf),
    "relu6": (1.0, 0.0, 6.0),
    "leaky_relu": (LEAKY_SLOPE, -math.inf, math.inf),
}
DIRECTIONS = {"": "forward", "dgrad": "backward_input", "wgrad": "backward_weight"}
DEVICES = ("cpu", "cuda")
DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16"}
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
CPU_DTYPES = ("float32", "float64")
PRECISIONS = ("ieee", "tf32")
FORMATS: dict[str, MemoryFormat] = {"nchw": "contiguous", "nhwc": "channels_last"}
_DTYPE_WORD = {name: word for word, name in DTYPES.items()}
_FORMAT_WORD = {name: word for word, name in FORMATS.items()}
_DIRECTION_WORD = {name: word for word, name in DIRECTIONS.items()}


@dataclass(frozen=True)
class ConvProblem:
    """A convolution with its epilogue: ``pool(activation(conv(x, w) + bias))``.

    All sizes are tuples with one entry per spatial axis, padding one (begin, end) pair per axis. Use
    `create` for arguments as a user gives them. `raw` says that the weights come as they are with each
    call, so that packing them is part of the work; a plan packs them once.

    A gradient (`direction`) is described by the sizes of its forward convolution. It has no epilogue, but
    that of the input may add a bias per channel of the input: it serves as the transposed convolution too.
    Its arrays always come as they are.

    `precision` "tf32" permits kernels for float32 on a GPU to round what they multiply to 10 bits of mantissa, as
    tensor cores do; they add in float32. 16-bit elements are multiplied exactly, added in float32, and rounded once.
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
    device: str = "cpu"
    precision: str = "ieee"

    @classmethod
    def create(
        cls, x_shape: tuple, weight_shape: tuple, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, names: tuple[str, str] = ("x", "weight"), **rest: Any,
    ) -> ConvProblem:  # fmt: skip
        """Build and check a problem from shapes (N, C, H, W) and (K, C/groups, R, S).

        `names` is what error messages call the arrays of these shapes.

        Raises
        ------
        ValueError
            Names the argument, its value and what would do.
        """
        for shape, name in ((x_shape, "x_shape"), (weight_shape, "weight_shape")):
            as_size(shape, name, None)
        if len(x_shape) != 4:
            raise ValueError(f"{names[0]} must have 4 axes (N, C, H, W) or 3 (C, H, W), got shape {tuple(x_shape)}")
        if len(weight_shape) != 4:
            raise ValueError(f"{names[1]} must have 4 axes (K, C/groups, R, S), got shape {tuple(weight_shape)}")
        kernel = pair(tuple(weight_shape[2:]), f"{names[1]}'s kernel size", least=1)
        strides, dilations = pair(stride, "stride", least=1), pair(dilation, "dilation", least=1)
        pads = padding_pairs(padding, kernel, strides, dilations)
        groups, channels, filters = positive(groups, "groups"), int(x_shape[1]), int(weight_shape[0])
        _check_groups(groups, channels, filters, int(weight_shape[1]), names)
        _check_choice("memory_format", rest.get("memory_format", "contiguous"), tuple(_FORMAT_WORD))
        sizes = {"channels": channels, "height": int(x_shape[2]), "width": int(x_shape[3])}
        named = {f"{names[0]}'s {name}": size for name, size in sizes.items()}
        _check_sizes(int(x_shape[0]), **named, **{f"{names[1]}'s filters": filters})
        _check_arithmetic(**rest)
        if (activation := rest.get("activation")) is not None:
            _check_choice("activation", activation, ACTIVATIONS, "None or ")
        if not isinstance(rest.get("pool"), (Pool, type(None))):
            raise ValueError(f"pool must be a fastconv.Pool or None, got {shown(rest['pool'])}")
        _check_direction(**rest)
        size = (int(x_shape[2]), int(x_shape[3]))
        problem = cls(int(x_shape[0]), channels, size, filters, kernel, strides, pads, dilations, groups, **rest)
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
        return ITEMSIZE[self.dtype]

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
        text += f"u{pair_word(self.stride)}" if self.stride != (1, 1) else ""
        text += f"d{pair_word(self.dilation)}" if self.dilation != (1, 1) else ""
        text += f"g{self.groups}" if self.groups != 1 else ""
        words = [text, _DTYPE_WORD[self.dtype], _FORMAT_WORD[self.memory_format]]
        words += ["bias"] if self.bias else []
        words += [self.activation.replace("_", "")] if self.activation else []
        words += [self.pool.descriptor] if self.pool else []
        words += ["raw"] if self.raw else []
        words += [_DIRECTION_WORD[self.direction]] if self.direction != "forward" else []
        words += [self.precision] if self.precision != "ieee" else []
        words += [self.device] if self.device != "cpu" else []
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
    device: str = "cpu"

    def __post_init__(self) -> None:
        sizes = {name: integer(getattr(self, name), name) for name in ("batch", "channels")}
        for name, value in {**sizes, "in_size": as_size(self.in_size, "in_size", (2,))}.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.pool, Pool):
            raise ValueError(f"pool must be a fastconv.Pool, got {shown(self.pool)}")
        _check_choice("direction", self.direction, ("forward", "backward_input"))
        _check_arithmetic(self.dtype, self.device)
        _check_sizes(self.batch, channels=self.channels, height=self.in_size[0], width=self.in_size[1])
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
        return ITEMSIZE[self.dtype]

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
        words += [self.device] if self.device != "cpu" else []
        return "_".join(words)


Problem: TypeAlias = ConvProblem | PoolProblem


def _padding_word(padding: tuple[Pair, Pair]) -> str:
    (top, bottom), (left, right) = padding
    if top == bottom and left == right:
        return f"p{pair_word((top, left))}" if top or left else ""
    return f"p{top}.{bottom}.{left}.{right}"


def positive(value: Any, name: str) -> int:
    """An int above 0 as Python's, ValueError for others; `name` is for the error message."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {shown(value)}")
    return integer(value, name)


def _check_sizes(batch: int, **sizes: int) -> None:
    if batch < 0:
        raise ValueError(f"batch must not be negative, got {batch}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...], otherwise: str = "") -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {otherwise}one of {choices}, got {shown(value)}")


def _check_arithmetic(dtype: str = "float32", device: str = "cpu", precision: str = "ieee", **rest: Any) -> None:
    _check_choice("device", device, DEVICES)
    choices = CPU_DTYPES if device == "cpu" else tuple(_DTYPE_WORD)
    if not isinstance(dtype, str) or dtype not in choices:
        raise ValueError(f"dtype must be one of {choices} on device {device!r}, got {shown(dtype)}")
    _check_choice("precision", precision, PRECISIONS)
    if precision == "tf32" and (device, dtype) != ("cuda", "float32"):
        raise ValueError(f"precision 'tf32' is for float32 on device 'cuda', got {dtype} on {device!r}")


def _check_direction(direction: str = "forward", **rest: Any) -> None:
    _check_choice("direction", direction, tuple(_DIRECTION_WORD))
    epilogue = ("activation", "pool", "raw") if direction == "backward_input" else ("bias", "activation", "pool", "raw")
    fused = [name for name in epilogue if rest.get(name)]
    if direction != "forward" and fused:
        raise ValueError(f"direction {direction!r} is of the convolution alone, got {', '.join(fused)} with it")


def _check_groups(groups: int, channels: int, filters: int, channels_per_group: int, names: tuple[str, str]) -> None:
    x, weight = names
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups must divide the channels of {x} ({channels}) and the filters of {weight} ({filters}), "
            f"got {shown(groups)}"
        )
    if channels // groups != channels_per_group:
        raise ValueError(
            f"{weight} has {channels_per_group} channels per filter, but {x} has {channels} channels in {groups} "
            f"group(s): {channels // groups} are needed"
        )

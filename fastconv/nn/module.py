"""What layers are made of: arrays that know when they change, and the base class of all layers.

There is no tape. A layer's `forward` keeps what its `backward` will need, `backward` takes the gradient of the
output and returns that of the input; a container runs its layers' `backward` in reverse. That is all of the
chain rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self

import numpy as np

from fastconv.arrays import aligned, on_gpu, plain
from fastconv.nn.backend import DEVICES, as_floats, backend, check_alike, check_place, device_of, dtype_of, moved
from fastconv.sizes import shown

_NOT_GIVEN = object()


class Buffer:
    """An array that belongs to a layer, with a count of its changes.

    What is derived from it (packed weights, folded batch normalisation) is kept until the count moves. So
    that no change goes unnoticed, `value` is read-only; assign to it, or write within `edit`. On a GPU the array is
    one of Numba's, which cannot be made read-only: the rule is the same.

    Parameters
    ----------
    value : array
        Copied.

    Attributes
    ----------
    version : int
        How many times the value has changed.
    """

    def __init__(self, value: Any) -> None:
        self._value: Any = _own(plain(value, "value"))
        self.version = 0

    @property
    def value(self) -> Any:
        """The array, read-only. Assigning copies an array of the same shape and dtype into it, from any device."""
        return self._value

    @value.setter
    def value(self, new: Any) -> None:
        new = moved(new if on_gpu(new) else plain(new, "value"), self.device)
        check_alike(self._value, new, "value")
        with self.edit() as value:
            backend(value).assign(value, new)

    @property
    def device(self) -> str:
        """ "cpu" or "cuda", wherever the value lies."""
        return device_of(self._value)

    def to(self, device: str) -> Self:
        """Move the value to "cpu" or "cuda"; counts, which are not float, stay on the CPU. Returns the buffer."""
        if device not in DEVICES:
            raise ValueError(f"device must be one of {DEVICES}, got {device!r}")
        if device != self.device and self._value.dtype.kind == "f":
            value = moved(self._value, device)
            self._value = value if device == "cuda" else _own(value)
            self.version += 1
        return self

    @contextmanager
    def edit(self) -> Iterator[Any]:
        """The array, writeable within a ``with`` block.

        Examples
        --------
        >>> import numpy as np
        >>> weight = Parameter(np.ones(3))
        >>> with weight.edit() as value:
        ...     value *= 2
        """
        _set_writeable(self._value, True)
        try:
            yield self._value
        finally:
            _set_writeable(self._value, False)
            self.version += 1

    def __getstate__(self) -> dict[str, Any]:
        # Arrays on a GPU cannot be pickled; a copy is moved back there.
        if self.device == "cpu":
            return self.__dict__
        on_host = {name: moved(x, "cpu") for name, x in self.__dict__.items() if on_gpu(x)}
        return self.__dict__ | on_host | {"_device": self.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copying and pickling forget that an array is read-only.
        device = state.get("_device", "cpu")
        self.__dict__.update({name: value for name, value in state.items() if name != "_device"})
        _set_writeable(self._value, False)
        self.to(device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._value.shape}, {self._value.dtype})"


def _own(value: np.ndarray) -> np.ndarray:
    """A read-only copy."""
    if value.dtype.kind not in "biuf" or not value.dtype.isnative:
        raise TypeError(f"value must be an array of numbers in native byte order, got {value.dtype}")
    copy = aligned(value.shape, value.dtype)
    copy[...] = value
    copy.flags.writeable = False
    return copy


def _set_writeable(value: Any, writeable: bool) -> None:
    if isinstance(value, np.ndarray):
        value.flags.writeable = writeable


class Parameter(Buffer):
    """A `Buffer` that is trained.

    Attributes
    ----------
    grad : array or None
        Sum of the gradients since it was last None; of the shape and dtype of the value. On a GPU, of the
        library of the input.
    requires_grad : bool
        False for a frozen parameter, for which no gradient is computed. It counts at `forward`, which does not
        keep what only frozen parameters would need; leave it alone between `forward` and `backward`.
    """

    def __init__(self, value: Any, requires_grad: bool = True) -> None:
        super().__init__(value)
        self.requires_grad = requires_grad
        self.grad: Any = None

    def to(self, device: str) -> Self:
        """`Buffer.to`, with the gradient."""
        super().to(device)
        self.grad = None if self.grad is None else moved(self.grad, self.device)
        return self

    def reshaped(self, shape: tuple[int, ...]) -> Parameter:
        """A copy with another shape, frozen if this is; without a gradient."""
        value = moved(self._value, "cpu").reshape(shape)
        return Parameter(value, self.requires_grad).to(self.device)

    def accumulate(self, grad: Any) -> None:
        """Add to `grad`.

        Raises
        ------
        TypeError, ValueError
            If the dtype, the shape or the device differs from the value's.
        """
        check_alike(self._value, grad, "grad")
        self.grad = grad if self.grad is None else backend(grad).add(self.grad, grad)


class _Like(NamedTuple):
    """Shape, dtype and device of an output, which its gradient must have too."""

    shape: tuple[int, ...]
    dtype: np.dtype
    device: str

    @classmethod
    def of(cls, output: Any) -> _Like:
        """That of an array of any library."""
        return cls(tuple(output.shape), dtype_of(output), device_of(output))

    def check(self, grad: Any) -> None:
        """Raise TypeError or ValueError unless a gradient fits."""
        if self.device == "cpu" and isinstance(grad, np.ndarray) and (grad.shape, grad.dtype) == self[:2]:
            return
        check_place(grad, "grad_output", self.device, "the output")
        given = _Like.of(as_floats(grad, "grad_output"))
        if given.dtype != self.dtype:
            raise TypeError(f"grad_output must have dtype {self.dtype}, got {given.dtype}")
        if given.shape != self.shape:
            raise ValueError(f"grad_output must have shape {self.shape}, got {given.shape}")


class Module(ABC):
    """Base class of layers and containers.

    A layer defines ``forward(x)`` and ``backward(grad_output, *, input_grad=True)``. Parameters, buffers and
    layers that are its attributes are found by name. One that is made of modules runs them within `recorded`,
    so that those in eval mode keep what they must, too.

    Attributes
    ----------
    training : bool
        Whether `forward` computes as in training (batch statistics, dropout); set by `train` and `eval`.
    """

    training = True
    _inside = False  # whether `forward` runs within a module that records
    _kept: tuple | None = None
    _output_like: Any = None  # a _Like, or None if `keep` was not told

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output for a batch `x`."""

    @abstractmethod
    def backward(self, grad_output: np.ndarray, *, input_grad: bool = True) -> np.ndarray | None:
        """Add to the gradients of the trainable parameters, and return that of the input of `forward`.

        Parameters
        ----------
        grad_output : array
            Gradient of a scalar with respect to the output of the last `forward`; of its shape and dtype.
        input_grad : bool, default True
            False if nobody needs the gradient of the input: it is not computed, and the result is None.

        Raises
        ------
        RuntimeError
            If there was no `forward` that records since the last `backward`.
        TypeError, ValueError
            If `grad_output` has another dtype or shape; a second try with the right one works.
        """

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`forward`."""
        return self.forward(x)

    @property
    def recording(self) -> bool:
        """Whether `forward` keeps what `backward` needs: in training mode, and inside a module that records."""
        return self.training or self._inside

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within a ``with`` block, all modules below record if this one does."""
        told = [m for m in self.modules() if m is not self and not m._inside] if self.recording else []
        for module in told:
            module._inside = True
        try:
            yield
        finally:
            for module in told:
                module._inside = False

    def keep(self, *values: Any, output: np.ndarray | None = None) -> None:
        """Keep `values` for `backward`, and shape and dtype of `output` to check `grad_output` by.

        Unless `recording`, nothing is kept. Either way, what was kept before is forgotten.
        """
        self._kept = values if self.recording else None
        self._output_like = None if output is None or self._kept is None else _Like.of(output)

    def take(self, grad_output: Any = _NOT_GIVEN) -> tuple:
        """What `keep` kept, which is then forgotten.

        Raises
        ------
        RuntimeError
            If there is nothing.
        TypeError, ValueError
            If `grad_output` differs from `keep`'s `output` in dtype or shape; then nothing is forgotten.
        """
        kept = self._kept
        if kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward needs what forward keeps in training mode, and takes it: call "
                "train() on the layer or the network around it if need be, then forward before each backward (a module "
                "of your own runs its layers within `with self.recorded():`, so that those in eval mode keep it too)"
            )
        if grad_output is not _NOT_GIVEN and self._output_like is not None:
            self._output_like.check(grad_output)
        self._kept = None
        return kept

    def release(self) -> None:
        """Forget what `forward` kept, in this module and all below."""
        self._kept = None
        for _, child in self.named_children():
            child.release()

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, with their names; what is below one named "" is as if directly below."""
        yield from ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def modules(self) -> Iterator[Module]:
        """This module and all below; one that comes twice, twice."""
        yield self
        for _, child in self.named_children():
            yield from child.modules()

    def __repr__(self) -> str:
        lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        if lines:
            return f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"
        shapes = (f"{name}: {p.value.shape}" for name, p in vars(self).items() if isinstance(p, Parameter))
        return f"{type(self).__name__}({', '.join(shapes)})"

    def named_state(self, prefix: str = "") -> Iterator[tuple[str, Buffer]]:
        """Parameters and buffers of this module and all below, by torch's names."""
        yield from ((prefix + name, value) for name, value in vars(self).items() if isinstance(value, Buffer))
        for name, child in self.named_children():
            yield from child.named_state(f"{prefix}{name}." if name else prefix)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """As `named_state`, but parameters only."""
        yield from ((name, value) for name, value in self.named_state() if isinstance(value, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, frozen ones too; one that several modules share comes once."""
        yield from dict.fromkeys(parameter for _, parameter in self.named_parameters())

    @property
    def trainable(self) -> bool:
        """Whether any parameter is not frozen."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def requires_grad_(self, requires_grad: bool = True, pattern: str = "*") -> Self:
        """Unfreeze parameters, or freeze them (False), which also drops their gradients; returns the module.

        As `Parameter.requires_grad`, this counts from the next `forward` on. It leaves batch normalisation's running
        statistics alone: put such layers into eval mode if they are to stay as they are.

        Parameters
        ----------
        requires_grad : bool, default True
        pattern : str, default "*"
            Of the names, as in `fnmatch.fnmatchcase`: ``"features.*"`` are all parameters below ``features``.

        Raises
        ------
        ValueError
            If no parameter has such a name.
        """
        found = [parameter for name, parameter in self.named_parameters() if fnmatchcase(name, pattern)]
        if not found and pattern != "*":
            raise ValueError(f"pattern must fit the name of a parameter, got {pattern!r}")
        for parameter in found:
            parameter.requires_grad = requires_grad
            parameter.grad = parameter.grad if requires_grad else None
        return self

    def freeze(self, pattern: str = "*") -> Self:
        """``requires_grad_(False, pattern)``."""
        return self.requires_grad_(False, pattern)

    def train(self, mode: bool = True) -> Self:
        """Set training mode (eval mode if False, and `release`), here and in all modules below; returns the module."""
        self.training = mode
        self._kept = self._kept if mode else None
        for _, child in self.named_children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """``train(False)``."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move all parameters, their gradients and buffers to a device, and `release`; returns the module.

        On a GPU they are arrays of Numba's, made on its current device and used on the default stream, whatever the
        library of the inputs. Counts, as of batches seen, stay on the CPU.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Raises
        ------
        ValueError
            For another device.
        """
        for _, buffer in self.named_state():
            buffer.to(device)
        self.release()
        return self

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers as NumPy arrays, wherever they are, under torch's names."""
        return {name: moved(buffer.value, "cpu").copy() for name, buffer in self.named_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Copy parameters and buffers from a `state_dict`, one of this library or of torch.

        Counts of batches that batch normalisation has seen may be missing, as in files of old versions of torch; they
        stay as they are.

        Parameters
        ----------
        state_dict : mapping of str to array
        strict : bool, default True
            Whether the names must be exactly those of this module.

        Returns
        -------
        missing, unexpected : list of str
            Names that only the module has, and names that only `state_dict` has.

        Raises
        ------
        ValueError
            Lists all names, shapes and dtypes that do not fit; nothing has been loaded then.
        """
        own = dict(self.named_state())
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping from names to arrays, got {shown(state_dict)}")
        new = {name: plain(moved(value, "cpu"), f"state_dict[{name!r}]") for name, value in state_dict.items()}
        missing = [n for n in own if n not in new and not n.endswith("num_batches_tracked")]
        unexpected = [n for n in new if n not in own]
        shared = [n for n in own if n in new]
        problems = [f"missing: {n}" for n in missing] + [f"unexpected: {n}" for n in unexpected] if strict else []
        for name in shared:
            have, want = new[name], own[name].value
            if (have.shape, have.dtype) != (want.shape, want.dtype):
                problems.append(f"{name} must be {want.dtype} {want.shape}, got {have.dtype} {have.shape}")
        if problems:
            raise ValueError(f"state_dict does not fit this {type(self).__name__}:\n  " + "\n  ".join(problems))
        for name in shared:
            own[name].value = new[name]
        return missing, unexpected

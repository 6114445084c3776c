"""Gradients held against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.arrays import plain
from fastconv.nn.module import Module
from fastconv.sizes import real, shown


class GradcheckError(AssertionError):
    """A gradient disagrees with finite differences; the message is the printed `GradcheckResult`."""


@dataclass(frozen=True)
class Comparison:
    """The worst element of one gradient.

    Attributes
    ----------
    name : str
        Of the input or parameter.
    index : tuple of int
        Where the element is.
    analytic, numeric : float
        Its value from `backward`, and from finite differences.
    error : float
        Their distance, as a multiple of what is allowed.
    """

    name: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float

    @property
    def passed(self) -> bool:
        """Whether all elements are as near as asked for; NaN is not."""
        return self.error <= 1


@dataclass(frozen=True)
class GradcheckResult:
    """What `gradcheck` found, for each input and parameter; printing it gives a table."""

    subject: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether all gradients agree."""
        return all(c.passed for c in self.comparisons)

    def __str__(self) -> str:
        lines = [f"gradients of {self.subject}: {'ok' if self.passed else 'WRONG'}"]
        for c in self.comparisons:
            lines.append(
                f"  {'ok   ' if c.passed else 'WRONG'} {c.name}: worst at {c.index}: {c.analytic:.9g} from backward, "
                f"{c.numeric:.9g} from differences, {c.error:.2g} of what is allowed"
            )
        return "\n".join(lines)


def gradcheck(
    layer_or_function: Any, inputs: Any, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> GradcheckResult:
    """Compare gradients with central differences, element by element.

    The scalar that is differentiated is the output times fixed random numbers, summed.

    Parameters
    ----------
    layer_or_function : Module or (forward, backward)
        A layer in training mode: its input's gradient and those of all trainable parameters are checked.
        Its parameters, buffers and gradients are the same afterwards. Or two functions:
        ``forward(*inputs)`` returns an array or a number, ``backward(grad_output, *inputs)`` the gradient,
        or a tuple with one for each input, None for those that have none. Both must always return the same
        for the same inputs.
    inputs : float64 array or tuple of them
        One array for a layer.
    eps : float, default 1e-6
        How far each element is moved, either way.
    atol, rtol : float
        A difference of ``atol + rtol * abs(numeric)`` is allowed.

    Returns
    -------
    GradcheckResult

    Raises
    ------
    GradcheckError
        If a gradient is wrong; says which, and where it is worst.
    TypeError
        If an input is not float64.
    ValueError
        If a gradient does not have the shape of what it belongs to.
    """
    eps, atol, rtol = real(eps, "eps", 0), real(atol, "atol", 0), real(rtol, "rtol", 0)
    if not eps:
        raise ValueError(f"eps must be positive, got {eps}")
    arrays = [plain(x, "inputs").copy(order="K") for x in (inputs if isinstance(inputs, tuple) else (inputs,))]
    for x in arrays:
        if x.dtype != np.float64:
            raise TypeError(f"inputs must be float64 for finite differences to be accurate, got {x.dtype}")
    if isinstance(layer_or_function, Module):
        if len(arrays) != 1:
            raise ValueError(f"inputs must be one array for a layer, got {len(arrays)}")
        subject, comparisons = type(layer_or_function).__name__, _check_layer(layer_or_function, arrays, eps)
    else:
        forward, backward = _two_functions(layer_or_function)
        subject, comparisons = getattr(forward, "__name__", "function"), _check_pair(forward, backward, arrays, eps)
    result = GradcheckResult(subject, tuple(_worst(*comparison, atol, rtol) for comparison in comparisons))
    if not result.passed:
        raise GradcheckError(str(result))
    return result


def _two_functions(given: Any) -> tuple[Callable, Callable]:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(callable(function) for function in given):
        raise TypeError(f"layer_or_function must be a Module or two functions, got {shown(given)}")
    return given[0], given[1]


_Gradients = list[tuple[str, np.ndarray, np.ndarray]]  # name, analytic, numeric


def _check_layer(layer: Module, inputs: list[np.ndarray], eps: float) -> _Gradients:
    (x,) = inputs
    trainable = [(name, parameter) for name, parameter in layer.named_parameters() if parameter.requires_grad]
    with _restored(layer):
        layer.zero_grad()
        weights = _projection(layer.forward(x))
        gradients = [layer.backward(weights), *(parameter.grad for _, parameter in trainable)]

        def scalar() -> float:
            return float((layer.forward(x) * weights).sum())

        numeric = [_differences(scalar, x, eps)]
        for _, parameter in trainable:
            with parameter.edit() as value:
                numeric.append(_differences(scalar, value, eps))
    names = ["input", *(name for name, _ in trainable)]
    return [(n, np.asarray(a), b) for n, a, b in zip(names, gradients, numeric, strict=True)]


def _check_pair(forward: Callable, backward: Callable, inputs: list[np.ndarray], eps: float) -> _Gradients:
    weights = _projection(np.asarray(forward(*inputs)))
    gradients = backward(weights, *inputs)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    def scalar() -> float:
        return float((forward(*inputs) * weights).sum())

    return [
        (f"input {n}", np.asarray(gradient), _differences(scalar, x, eps))
        for n, (gradient, x) in enumerate(zip(gradients, inputs, strict=True))
        if gradient is not None
    ]


@contextmanager
def _restored(layer: Module) -> Iterator[None]:
    """Afterwards, the layer has its former state and gradients."""
    state, gradients = layer.state_dict(), [parameter.grad for parameter in layer.parameters()]
    try:
        yield
    finally:
        layer.release()
        layer.load_state_dict(state)
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _projection(output: np.ndarray) -> np.ndarray:
    """Normally distributed numbers, as many as there are outputs and laid out alike."""
    weights = np.empty_like(output, dtype=np.float64)
    weights[...] = np.random.default_rng(0).standard_normal(output.shape)
    return weights


def _differences(scalar: Callable[[], float], x: np.ndarray, eps: float) -> np.ndarray:
    """Central differences of `scalar` for each element of `x`, which is moved and put back."""
    result = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + eps
        above = scalar()
        x[index] = value - eps
        result[index] = (above - scalar()) / (2 * eps)
        x[index] = value
    return result


def _worst(name: str, analytic: np.ndarray, numeric: np.ndarray, atol: float, rtol: float) -> Comparison:
    if analytic.shape != numeric.shape:
        raise ValueError(f"the gradient of {name} must have shape {numeric.shape}, got {analytic.shape}")
    errors = np.abs(analytic - numeric) / (atol + rtol * np.abs(numeric))
    if not errors.size:
        return Comparison(name, (), 0.0, 0.0, 0.0)
    index = tuple(int(n) for n in np.unravel_index(np.argmax(np.where(np.isnan(errors), np.inf, errors)), errors.shape))
    return Comparison(name, index, float(analytic[index]), float(numeric[index]), float(errors[index]))

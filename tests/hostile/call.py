"""One call: how it is made from good arguments, and what is known of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from fastconv.sizes import shown
from hostile import arrays, values

Kind = Callable[[Random], Any]
KINDS: dict[str, Kind] = {
    "number": values.number, "pair": values.pair, "shape": values.shape, "real": values.real, "flag": values.flag,
    "word": values.word, "any": values.anything,
}  # fmt: skip
_TAME = 0.4  # share of the calls in which nothing is wrong


@dataclass
class Call:
    """A call and its rules.

    Attributes
    ----------
    function : callable
        Called with `arguments` by name.
    names : set of str
        What a refusal may name.
    inputs : arrays that must be the same afterwards
    tame : bool
        Whether nothing is wrong with it, so that a refusal is a mistake.
    oracle : callable, optional
        Called with the same arguments: the right answer, in float64.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    names: frozenset[str]
    tame: bool
    oracle: Callable[..., Any] | None = None
    inputs: list[np.ndarray] = field(default_factory=list)

    def text(self) -> str:
        """The call, for people."""
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"{name}({', '.join(f'{k}={_shown(v)}' for k, v in self.arguments.items())})"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and type(value) is np.ndarray and value.ndim:
        flags = "".join(c for c, flag in (("u", not value.flags.aligned), ("r", not value.flags.writeable)) if flag)
        return f"<{value.dtype} {value.shape} strides {value.strides} {flags}>"
    if isinstance(value, arrays.Holder | np.ndarray):
        return f"<{type(value).__name__}>"
    return shown(value)


def build(
    function: Callable[..., Any], arguments: Mapping[str, Any], kinds: Mapping[str, str], r: Random,
    oracle: Callable[..., Any] | None = None, also: tuple[str, ...] = (), tame: bool = True,
) -> Call:  # fmt: skip
    """A call with these good arguments, some of which are spoilt.

    Parameters
    ----------
    arguments : mapping
        By name; arrays as plain ones.
    kinds : mapping
        What each argument is: "array", "small" (an array that must not become huge), or a key of `KINDS`; what is
        not in it is left alone.
    also : tuple of str
        Names that refusals may use besides those of the parameters.
    tame : bool
        False if a refusal is right even if nothing is spoilt.
    """
    given = dict(arguments)
    spoilt: set[str] = set()
    if r.random() > _TAME:
        spoilt = {r.choice(list(kinds)) for _ in range(r.choice((1, 1, 1, 2)))}
    for name, value in given.items():
        if kinds.get(name) not in ("array", "small"):
            given[name] = KINDS[kinds[name]](r) if name in spoilt else value
        elif isinstance(value, np.ndarray):
            given[name] = _array(value, name in spoilt, r, kinds[name] == "array")
        elif name in spoilt:
            given[name] = values.anything(r)
    inputs = [_memory(v) for n, v in given.items() if n != "out" and _memory(v) is not None]
    names = frozenset(parameters(function)) | set(also)
    if isinstance(out := given.get("out"), np.ndarray) and not (out.flags.writeable and out.flags.aligned):
        tame = False
    return Call(function, given, names, tame and not spoilt, oracle, inputs)


def _array(value: np.ndarray, spoilt: bool, r: Random, huge: bool) -> Any:
    if not spoilt:
        return arrays.laid_out(value, r)
    if r.random() < 0.35:
        return arrays.disguised(value, r)
    wrong = arrays.strange(value, r, huge)
    return (
        arrays.laid_out(wrong, r)
        if type(wrong) is np.ndarray and 0 < wrong.nbytes < 1 << 16 and not wrong.dtype.hasobject
        else wrong
    )


def _memory(value: Any) -> np.ndarray | None:
    """The array whose bytes a call could change."""
    if isinstance(value, arrays.Holder):
        value = value._array
    if not isinstance(value, np.ndarray) or value.dtype.hasobject or (value.size > 1 << 20):
        return None
    return value.view(np.ndarray)


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters."""
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD]

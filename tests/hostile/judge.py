"""Whether a call ended as it should."""

from __future__ import annotations

import math
import operator
import re
import time
from contextlib import suppress
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from fastconv import GradcheckError
from hostile.call import Call

_SLOW = 5.0  # seconds of a small call once its kernel is compiled
_REFUSALS = (ValueError, TypeError)


class Ending(StrEnum):
    """How a call ended."""

    COMPARED = "compared"
    ANSWERED = "answered"
    REFUSED = "refused"
    TOO_LARGE = "too large"
    WRONG = "wrong"


class Verdict(NamedTuple):
    """An ending, what was wrong, and seconds that the call took."""

    ending: Ending
    why: str = ""
    seconds: float = 0.0


def judge(call: Call) -> Verdict:
    """Make a call and look at what came of it."""
    before = [_bytes(array) for array in call.inputs]
    out = call.arguments.get("out")
    kept = _bytes(out) if isinstance(out, np.ndarray) and not out.dtype.hasobject and out.size < 1 << 20 else None
    answer, error, start = None, None, time.perf_counter()
    try:
        answer = call.function(**call.arguments)
    except Exception as raised:
        error = raised
    seconds = time.perf_counter() - start
    if seconds > _SLOW:
        seconds = _again(call)
    if any(_bytes(a) != old for a, old in zip(call.inputs, before, strict=True)):
        return Verdict(Ending.WRONG, "an input was changed", seconds)
    if seconds > _SLOW:
        return Verdict(Ending.WRONG, f"took {seconds:.0f} s", seconds)
    if error is not None:
        if kept is not None and _bytes(out) != kept:
            return Verdict(Ending.WRONG, f"out was changed by a call that raised {error!r}", seconds)
        return Verdict(*_refusal(call, error), seconds)
    return Verdict(*_answer(call, answer), seconds)


def _again(call: Call) -> float:
    """Seconds that a call takes when it is made a second time."""
    start = time.perf_counter()
    with suppress(Exception):
        call.function(**call.arguments)
    return time.perf_counter() - start


def _bytes(array: np.ndarray) -> bytes:
    return array.tobytes()


def _refusal(call: Call, error: Exception) -> tuple[Ending, str]:
    if isinstance(error, MemoryError):
        return (Ending.WRONG, f"a small call raised {error!r}") if call.tame else (Ending.TOO_LARGE, "")
    if isinstance(error, GradcheckError) and not call.tame:
        return Ending.ANSWERED, ""
    if isinstance(error, OSError) and error.filename:
        return Ending.REFUSED, ""  # it names the file
    if type(error) not in _REFUSALS:
        return Ending.WRONG, f"raised {error!r:.500}"
    if not set(re.findall(r"[A-Za-z_0-9]+", str(error))) & call.names:
        return Ending.WRONG, f"does not name an argument: {error!r:.500}"
    if call.tame:
        return Ending.WRONG, f"refused a good call: {error!r:.500}"
    return Ending.REFUSED, ""


def _answer(call: Call, answer: Any) -> tuple[Ending, str]:
    out = call.arguments.get("out")
    if out is not None and answer is not out and (not isinstance(answer, tuple) or answer[0] is not out):
        return Ending.WRONG, "out was not returned"
    if call.oracle is None:
        return Ending.ANSWERED, ""
    with np.errstate(all="ignore"):
        try:
            right = call.oracle(**call.arguments)
        except MemoryError:
            return Ending.ANSWERED, ""  # a view of few bytes can have too many elements for the oracle
        except Exception as error:
            return Ending.WRONG, f"answered what the oracle refuses: {error!r:.300}"
        if right is None:
            return Ending.ANSWERED, ""
        why = "; ".join(differences(answer, right))
    return (Ending.WRONG, why) if why else (Ending.COMPARED, "")


def differences(answer: Any, right: Any) -> list[str]:
    """Where an answer, an array or a tuple of these, is not the right one."""
    if isinstance(right, (tuple, list)):
        if len(answer) != len(right):
            return [f"{len(answer)} results instead of {len(right)}"]
        return [text for a, b in zip(answer, right, strict=True) for text in differences(a, b)]
    if right is None or not isinstance(right, np.ndarray):
        same = answer == right or (isinstance(right, float) and math.isclose(answer, right, rel_tol=1e-4, abs_tol=1e-5))
        return [] if same or (answer != answer and right != right) else [f"{answer!r:.80} instead of {right!r:.80}"]
    answer = np.asarray(answer)
    if answer.shape != right.shape:
        return [f"shape {answer.shape} instead of {right.shape}"]
    if answer.dtype.kind != "f":
        return [] if np.array_equal(answer, right) else [f"{answer.ravel()[:6]} instead of {right.ravel()[:6]}"]
    right = right.astype(answer.dtype)
    bound = 2e-4 if answer.dtype == np.float32 else 1e-9
    # Next to values that overflow or nearly do, only those that do not matter to anybody else's sum are compared.
    good = np.isclose(answer, right, rtol=bound, atol=bound, equal_nan=True) | (np.abs(right) > 1e30)
    if good.all():
        return []
    at = np.unravel_index(int(np.argmin(good)), good.shape) if good.ndim else ()
    return [f"{answer[at]!r} instead of {right[at]!r} at {tuple(map(int, at))} of {good.shape}"]


def whole(value: Any) -> int:
    """An integer as Python's, also one that came as an equal float."""
    if isinstance(value, float | np.floating) and value == int(value):
        return int(value)
    return operator.index(value)


def wholes(value: Any) -> Any:
    """Integers in tuples of any depth, as Python's; what is no number as it is."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(wholes(v) for v in value)
    return whole(value)


def plain(value: Any) -> Any:
    """An array as contiguous float64 (or int64), without its disguise."""
    array = np.asarray(value)
    return np.array(array, np.float64 if array.dtype.kind == "f" else array.dtype, order="C")

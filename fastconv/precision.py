"""How exactly float32 is multiplied on a GPU."""

from __future__ import annotations

from fastconv.dispatch import forget
from fastconv.problem import PRECISIONS
from fastconv.sizes import shown


class _State:
    precision = "ieee"


def set_float32_precision(precision: str) -> None:
    """Say whether convolutions of float32 arrays on a GPU may be computed by tensor cores.

    Parameters
    ----------
    precision : {"ieee", "tf32"}
        "ieee", the default: products and sums are those of float32. "tf32": what is multiplied may be rounded to 10
        bits of mantissa, for relative errors of about 5e-4; sums are of float32. The words are those of
        ``torch.backends.cudnn.conv.fp32_precision``.

    Raises
    ------
    ValueError
        For another precision.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {shown(precision)}")
    _State.precision = precision
    forget()  # calls that are known were prepared for the other one


def precision_of(dtype: str) -> str:
    """The `ConvProblem.precision` of arrays of a dtype on a GPU."""
    return _State.precision if dtype == "float32" else "ieee"

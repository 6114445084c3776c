"""Which implementation computes: one place that decides by where an array lies.

`fastconv.nn.host` and `fastconv.nn.gpu` have the same functions, with the same arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import on_gpu
from fastconv.nn import host
from fastconv.sizes import shown

DEVICES = ("cpu", "cuda")


def backend(x: Any) -> Any:
    """The module with the functions for arrays like `x`."""
    if not on_gpu(x):
        return host
    from fastconv.nn import gpu

    return gpu


def device_of(x: Any) -> str:
    """ "cuda" for an array on a GPU, else "cpu"."""
    return "cuda" if on_gpu(x) else "cpu"


def dtype_of(x: Any) -> np.dtype:
    """The dtype of an array of any library, as NumPy's."""
    return x.dtype if isinstance(x, np.ndarray) else np.dtype(str(x.dtype).removeprefix("torch."))


def as_floats(x: Any, name: str, ndim: tuple[int, ...] | None = None, *, beside: Any = None, what: str = "") -> Any:
    """`x` as a float32 or float64 array of one of the given ranks; on a GPU, `x` itself.

    Parameters
    ----------
    x : array
    name : str
        What messages call it.
    ndim : tuple of int, optional
        Any rank if not given.
    beside : array, optional
        An array that must be on the same device; messages call it `what`.

    Raises
    ------
    TypeError
        If the elements are not float32 or float64.
    ValueError
        If the rank is wrong, or the device.
    """
    if isinstance(x, np.ndarray) and (beside is None or isinstance(beside, np.ndarray)):  # the common case
        return host.as_floats(x, name, ndim)
    checked = backend(x).as_floats(x, name, ndim)
    if beside is not None:
        check_place(checked, name, device_of(beside), what)
    return checked


def check_place(x: Any, name: str, device: str, what: str) -> None:
    """Raise ValueError unless `x`, which messages call `name`, is on a device, that of `what`."""
    if device_of(x) != device:
        raise ValueError(
            f"{name} must be on the device of {what}, {device!r}, got an array on {device_of(x)!r}; move one of them "
            "(a model and its parameters: model.to(device))"
        )


def check_alike(first: Any, second: Any, name: str) -> None:
    """Raise TypeError or ValueError unless `second`, called `name`, has the first's dtype, shape and device."""
    if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
        if isinstance(second, type) or not (hasattr(second, "dtype") and hasattr(second, "shape")):
            raise TypeError(f"{name} must be an array, got {shown(second)}")
        check_place(second, name, device_of(first), "what it belongs to")
    backend(first).check_alike(first, second, name)


def moved(x: Any, device: str) -> Any:
    """`x` on a device: itself if it is there, else a copy, of NumPy's or Numba's kind. Waits for the GPU."""
    if device_of(x) == device:
        return x
    from fastconv.nn import gpu

    return gpu.from_host(np.asarray(x)) if device == "cuda" else gpu.to_host(x)

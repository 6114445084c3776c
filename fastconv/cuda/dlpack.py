"""DLPack: how libraries share arrays without a copy, https://dmlc.github.io/dlpack/latest/c_api.html.

A producer's array gives a capsule with a struct of C, which whoever takes it must have deleted, once. Kernels on such
arrays are started on the default stream: a producer is told so, and makes that stream wait for its own work.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from importlib import import_module
from typing import Any, ClassVar

CUDA = 2  # kDLCUDA
_STREAM = 1  # the default stream; 0 is no name of a stream in this protocol
_NO_WAIT = -1
_VERSION = (1, 0)
_READ_ONLY = 1  # bit of the flags
_INT, _FLOAT, _BFLOAT = 0, 2, 4
_DTYPES = {
    (_FLOAT, 32): "float32", (_FLOAT, 64): "float64", (_FLOAT, 16): "float16", (_BFLOAT, 16): "bfloat16",
    (_INT, 64): "int64", (_INT, 32): "int32", (_INT, 16): "int16",
}  # fmt: skip


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_: ClassVar = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]
    flags = 0


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_: ClassVar = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


def _api(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's C interface."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_capsule = _api("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_address_in = _api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_new_capsule = _api("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR)
# The same for a capsule that is being destroyed, which nobody may hold any more.
_is_dying_capsule = _api("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_address_in_dying = _api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

# Capsules point to their names, which therefore live as long as this module.
_NAME, _USED = b"dltensor", b"used_dltensor"
_VERSIONED_NAME, _USED_VERSIONED = b"dltensor_versioned", b"used_dltensor_versioned"


class Borrowed:
    """Memory that a producer lends for as long as this object lives.

    Attributes
    ----------
    namespace : module
        Where the producer has its `from_dlpack`.
    pointer, shape, strides, dtype, device, read_only
        As in `fastconv.cuda.arrays.DeviceArray`.
    """

    def __init__(self, x: Any) -> None:
        """Take a capsule from an array with `__dlpack__`.

        Raises
        ------
        TypeError
            If its elements are of a type that fastconv has no name for.
        BufferError
            If the producer speaks a later version.
        """
        self.namespace = namespace_of(x)
        self._device = x.__dlpack_device__()
        self.device = int(self._device[1])
        managed = _taken(_capsule_of(x))
        weakref.finalize(self, _delete, ctypes.addressof(managed), managed.deleter).atexit = False
        if isinstance(managed, _Versioned) and managed.major > _VERSION[0]:
            raise BufferError(f"fastconv reads DLPack up to version {_VERSION}, got {managed.major}.{managed.minor}")
        tensor = managed.tensor
        kind = (tensor.code, tensor.bits)
        if kind not in _DTYPES or tensor.lanes != 1:
            raise TypeError(f"arrays of DLPack must be one of {tuple(_DTYPES.values())}, got type {kind}")
        self.dtype = _DTYPES[kind]
        self.shape = tuple(tensor.shape[: tensor.ndim])
        if tensor.strides:
            self.strides = tuple(tensor.strides[: tensor.ndim])
        else:
            self.strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(tensor.ndim))
        self.pointer = (tensor.data or 0) + tensor.byte_offset
        self.read_only = bool(managed.flags & _READ_ONLY)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def namespace_of(x: Any) -> Any:
    """The module whose `from_dlpack` makes arrays like `x`.

    Raises
    ------
    TypeError
        If there is none.
    """
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    namespace = import_module(type(x).__module__.split(".")[0])
    if not hasattr(namespace, "from_dlpack"):
        raise TypeError(f"{type(x).__name__} has no __array_namespace__, and {namespace.__name__} no from_dlpack")
    return namespace


def _capsule_of(x: Any) -> Any:
    try:
        return x.__dlpack__(stream=_STREAM, max_version=_VERSION)
    except TypeError:  # a producer from before version 1
        return x.__dlpack__(stream=_STREAM)


def _taken(capsule: Any) -> _Managed | _Versioned:
    """The struct of a capsule, which nobody else takes from now on."""
    if _is_capsule(capsule, _VERSIONED_NAME):
        found: Any = _Versioned.from_address(_address_in(capsule, _VERSIONED_NAME))
        _rename(capsule, _USED_VERSIONED)
        return found
    if not _is_capsule(capsule, _NAME):
        raise TypeError("__dlpack__ must return a capsule of the name dltensor that nobody has taken yet")
    found = _Managed.from_address(_address_in(capsule, _NAME))
    _rename(capsule, _USED)
    return found


def _delete(address: int, deleter: int | None) -> None:
    if deleter:
        _DELETER(deleter)(address)


class Lent:
    """An array of fastconv's that another library shall take over; it has what a producer has.

    Parameters
    ----------
    array : DeviceArray
        Written on the default stream.
    namespace : module
        Whose `from_dlpack` takes it.
    order : callable
        Makes a stream wait for the default stream of a device; gets the stream's handle and the device.
    """

    def __init__(self, array: Any, namespace: Any, order: Any) -> None:
        self.array, self.namespace, self._order = array, namespace, order

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.array.device

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("fastconv hands over its results without a copy, where they are")
        if stream == 0:
            raise ValueError("stream must not be 0, which does not say which default stream is meant; use 1 or 2")
        if stream not in (None, _NO_WAIT, _STREAM):
            self._order(stream, self.array.device)
        return _new_capsule(_lend(self.array), _NAME, _destroy)


_lent: dict[int, tuple] = {}  # what is kept alive for each struct, until it is deleted


def _lend(array: Any) -> int:
    """Address of a new struct."""
    code, bits = next(kind for kind, dtype in _DTYPES.items() if dtype == array.dtype)
    sizes = ctypes.c_int64 * max(1, len(array.shape))
    shape, strides = sizes(*array.shape), sizes(*array.strides)
    tensor = _Tensor(array.pointer, CUDA, array.device, len(array.shape), code, bits, 1, shape, strides, 0)
    managed = _Managed(tensor, None, ctypes.cast(_forget, ctypes.c_void_p).value)
    address = ctypes.addressof(managed)
    _lent[address] = managed, shape, strides, array
    return address


@_DELETER
def _forget(address: int) -> None:
    del _lent[address]


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    if _is_dying_capsule(capsule, _NAME):  # nobody took it
        _forget(_address_in_dying(capsule, _NAME))

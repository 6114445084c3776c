"""Arrays that can only be handed over by DLPack: NumPy's own capsules, which say that they are on a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest
from support import FORMATS, as_format

import fastconv
from fastconv.cuda import arrays as cuda_arrays
from fastconv.cuda import dlpack
from fastconv.cuda.arrays import as_device_array


class Tracked(np.ndarray):
    """An array that can be watched."""


class Producer:
    """What a library shows that speaks DLPack only; `taken` are the arguments of its capsules' takers."""

    def __init__(self, host: np.ndarray, versioned: bool = True) -> None:
        self.host, self.versioned, self.taken = host, versioned, []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    @staticmethod
    def __array_namespace__() -> type[Namespace]:
        return Namespace

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, **how: Any) -> Any:
        if not self.versioned and "max_version" in how:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.taken.append(how)
        return self.host.__dlpack__(max_version=how.get("max_version"))


class Namespace:
    """A library that takes arrays from others on its stream."""

    stream = 1

    @classmethod
    def from_dlpack(cls, x: Any) -> Producer:
        assert x.__dlpack_device__() == (dlpack.CUDA, 0)
        return Producer(np.from_dlpack(OnCpu(x, cls.stream)))


class OnCpu:
    """An array of the simulated GPU with its capsule as NumPy takes them, which asks for memory of the CPU."""

    def __init__(self, x: Any, stream: int) -> None:
        self.x, self.stream = x, stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **how: Any) -> Any:
        capsule = self.x.__dlpack__(stream=self.stream)
        struct = dlpack._Managed.from_address(dlpack._address_in(capsule, b"dltensor"))
        assert struct.tensor.device_type == dlpack.CUDA
        struct.tensor.device_type = 1
        return capsule


def image(format: str = "contiguous") -> np.ndarray:
    return as_format(np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype("float32"), format)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_results_come_in_the_callers_kind(format: str, versioned: bool) -> None:
    x, weight = image(format), np.random.default_rng(1).standard_normal((4, 3, 2, 3)).astype("float32")
    given = Producer(x, versioned)
    result = fastconv.conv2d(given, Producer(weight, versioned), padding=1)
    assert isinstance(result, Producer)
    expected = fastconv.conv2d(x, weight, padding=1)
    np.testing.assert_allclose(result.host, expected, rtol=1e-5, atol=1e-5)
    assert result.host.strides == expected.strides
    assert [how["stream"] for how in given.taken] == [1], "the default stream is 1, and one capsule is taken"
    values, indices = fastconv.max_pool2d(given, 2, return_indices=True)
    for actual, wanted in zip((values, indices), fastconv.max_pool2d(x, 2, return_indices=True), strict=True):
        np.testing.assert_array_equal(actual.host, wanted)


def test_gradients() -> None:
    random = np.random.default_rng(2)
    x, weight = image(), random.standard_normal((4, 3, 2, 3)).astype("float32")
    grad = random.standard_normal((2, 4, 4, 4)).astype("float32")
    result = fastconv.grad.conv2d_input(x.shape, Producer(weight), Producer(grad))
    np.testing.assert_allclose(result.host, fastconv.grad.conv2d_input(x.shape, weight, grad), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="input_size must have as many axes as grad_output"):
        fastconv.grad.conv2d_input(x.shape[1:], Producer(weight), Producer(grad))
    result = fastconv.grad.conv2d_bias(Producer(grad))
    np.testing.assert_allclose(result.host, fastconv.grad.conv2d_bias(grad), rtol=1e-5, atol=1e-5)


def test_arrays_of_any_strides_without_n_and_out() -> None:
    x = np.full((3, 10, 12), np.nan, "float32")[:, 1::2, ::2]
    x[...] = image()[0]
    out = Producer(np.full((3, 2, 6), np.nan, "float32")[..., ::2])
    assert fastconv.avg_pool2d(Producer(x), 2, out=out) is out
    np.testing.assert_allclose(out.host, fastconv.avg_pool2d(x, 2), rtol=1e-5)
    with pytest.raises(ValueError, match="out must not overlap"):
        fastconv.avg_pool2d(Producer(x), 1, out=Producer(x))
    frozen = np.empty((3, 2, 3), "float32")
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        fastconv.avg_pool2d(Producer(x), 2, out=Producer(frozen))


@pytest.mark.parametrize("versioned", [True, False])
def test_what_is_lent_is_given_back_once(versioned: bool) -> None:
    x = image().view(Tracked)
    watched, count = weakref.ref(x), sys.getrefcount(x)
    given = Producer(x, versioned)
    borrowed = as_device_array(given, "x")
    assert borrowed.pointer == x.ctypes.data
    assert sys.getrefcount(x) == count + 2  # the producer's, and the capsule's
    del borrowed
    assert sys.getrefcount(x) == count + 1
    fastconv.avg_pool2d(given, 2)
    assert sys.getrefcount(x) == count + 1
    borrowed = as_device_array(given, "x")
    del given, x
    assert watched() is not None, "memory lives as long as it is borrowed"
    del borrowed
    assert watched() is None


def test_results_live_as_long_as_they_are_held() -> None:
    before = len(dlpack._lent)
    result = fastconv.avg_pool2d(Producer(image()), 2)
    gc.collect()
    assert len(dlpack._lent) == before + 1
    np.testing.assert_allclose(result.host, fastconv.avg_pool2d(image(), 2), rtol=1e-5)
    del result
    gc.collect()
    assert len(dlpack._lent) == before
    lent = cuda_arrays.library_of(Producer(image())).new((2, 3), (3, 1), "float32", Producer(image()))
    capsule = lent.__dlpack__(stream=1)
    assert len(dlpack._lent) == before + 1
    del capsule  # that nobody took
    assert len(dlpack._lent) == before


def test_the_stream_of_whoever_takes_a_result_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[int, int]] = []
    monkeypatch.setattr(cuda_arrays, "_order", lambda stream, device: waited.append((stream, device)))
    for stream in (None, -1, 1, 2, 1 << 40):
        monkeypatch.setattr(Namespace, "stream", stream)
        fastconv.avg_pool2d(Producer(image()), 2)
    assert waited == [(2, 0), (1 << 40, 0)]
    monkeypatch.setattr(Namespace, "stream", 0)
    with pytest.raises(ValueError, match="stream must not be 0"):
        fastconv.avg_pool2d(Producer(image()), 2)
    lent = cuda_arrays.library_of(Producer(image())).new((2,), (1,), "float32", Producer(image()))
    bfloat = cuda_arrays.library_of(lent).new((2,), (1,), "bfloat16", lent)
    tensor = dlpack._taken(bfloat.__dlpack__(stream=1)).tensor
    assert (tensor.code, tensor.bits, tensor.lanes, tensor.ndim, tensor.shape[0]) == (4, 16, 1, 1, 2)
    for how in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="without a copy"):
            lent.__dlpack__(stream=1, **how)


class Handmade(Producer):
    """Its struct is made here: no strides, data that begin behind the address, and a deleter that counts."""

    def __init__(self, host: np.ndarray, offset: int, code: int = 2) -> None:
        super().__init__(host)
        self.deleted: list[int] = []
        self.deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.deleted.append)
        self.shape_of = (ctypes.c_int64 * host.ndim)(*host.shape)
        deleter = ctypes.cast(self.deleter, ctypes.c_void_p).value
        tensor = dlpack._Tensor(
            host.ctypes.data - offset,
            dlpack.CUDA,
            0,
            host.ndim,
            code,
            8 * host.itemsize,
            1,
            self.shape_of,
            None,
            offset,
        )
        self.struct = dlpack._Managed(tensor, None, deleter)

    def __dlpack__(self, **how: Any) -> Any:
        return dlpack._new_capsule(ctypes.addressof(self.struct), b"dltensor", dlpack._DESTRUCTOR())


def test_a_struct_without_strides_and_with_an_offset() -> None:
    given = Handmade(image(), offset=256)
    np.testing.assert_allclose(fastconv.avg_pool2d(given, 2).host, fastconv.avg_pool2d(image(), 2), rtol=1e-5)
    assert given.deleted == [ctypes.addressof(given.struct)]


def test_errors() -> None:
    unknown = Handmade(image(), offset=0, code=5)  # complex
    with pytest.raises(TypeError, match=r"arrays of DLPack must be one of .*, got type \(5, 32\)"):
        fastconv.avg_pool2d(unknown, 2)
    assert len(unknown.deleted) == 1
    with pytest.raises(TypeError, match="x must be float32, float64, float16 or bfloat16, got int64"):
        fastconv.avg_pool2d(Producer(np.zeros((1, 2, 2), "int64")), 2)
    spent = Producer(image())
    capsule = spent.__dlpack__()
    spent.__dlpack__ = None
    borrowed = dlpack._taken(capsule)
    assert borrowed.tensor.ndim == 4
    with pytest.raises(TypeError, match="that nobody has taken yet"):
        dlpack._taken(capsule)
    dlpack._delete(ctypes.addressof(borrowed), borrowed.deleter)

"""What a launch hands to the CUDA driver, with a driver that only remembers it."""

from __future__ import annotations

import ctypes
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from fastconv.cuda import driver
from fastconv.cuda.arrays import DeviceArray, _Torch, memory_format
from fastconv.cuda.kernel import Kernel, Launch
from fastconv.cuda.toolkit import float32, int32, numbers, pointer


class Sizes(NamedTuple):
    """Numbers that a kernel takes by value."""

    rows: int
    columns: int


KINDS = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int32, ctypes.c_float)
HANDLES = {0: 77, 1: 78, 9: 0}  # of the kernel on each device


class Driver:
    """Remembers its calls, arguments read as a driver would. Contexts have the numbers of their devices."""

    CUfunction = int
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.attributes: list[tuple] = []
        self.contexts = [1]
        self.pushed = 0

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, _extra):
        assert HANDLES[self.contexts[-1]] == function, "another context is current"
        where = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_void_p * len(KINDS))).contents
        time.sleep(0)  # another thread may start its launch
        read = [ctypes.cast(where[i], ctypes.POINTER(kind)).contents.value for i, kind in enumerate(KINDS)]
        grid, block = (gx, gy, gz), (bx, by, bz)
        self.launches.append({"grid": grid, "block": block, "shared": shared, "stream": stream, "arguments": read})
        return (0,) if function else (1,)

    def cuKernelSetAttribute(self, *asked):
        self.attributes.append(asked)
        return (0,)

    def cuCtxGetCurrent(self):
        return 0, self.contexts[-1]

    def cuCtxPushCurrent(self, context):
        self.pushed += 1
        self.contexts.append(context)
        return (0,)

    def cuCtxPopCurrent(self):
        return 0, self.contexts.pop()


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The driver of launches."""
    cu = Driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=cu))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cu)
    monkeypatch.setattr(driver, "_function", lambda kernel, device: HANDLES[device])
    monkeypatch.setattr(driver, "primary_context", lambda device: device)
    return cu


@pytest.fixture
def launched(cu: Driver) -> list[dict[str, Any]]:
    """The launches of `cu`."""
    return cu.launches


def array(address: int, device: int = 0) -> DeviceArray:
    """An array that nobody reads."""
    return DeviceArray(address, (2, 3), (3, 1), "float32", None, device=device)


def kernel(x, y, bias, sizes, slope):
    pass


def make_launch(shared: int = 4096) -> Launch:
    """Three pointers, a tuple of int32 and a float32."""
    array = pointer(float32)
    made = Kernel(kernel, (array, array, array, numbers(int32, Sizes), float32), threads=64)
    return Launch(made, (5, 2), (Sizes(-7, 1 << 30), 0.25), shared=shared)


def test_a_launch_passes_addresses_and_numbers(launched: list[dict[str, Any]]) -> None:
    launch = make_launch()
    launch((array(1 << 40), array(1 << 41), None), stream=12345)
    launch((array(1 << 42), array(1 << 43), array(16)))
    assert launched[0] == {
        "grid": (5, 2, 1), "block": (64, 1, 1), "shared": 4096, "stream": 12345,
        "arguments": [1 << 40, 1 << 41, 0, -7, 1 << 30, 0.25],
    }  # fmt: skip
    assert launched[1]["arguments"][:3] == [1 << 42, 1 << 43, 16] and launched[1]["stream"] == 0


def test_a_context_is_pushed_only_where_another_is_current(cu: Driver) -> None:
    launch = make_launch()
    launch((array(16, 1), array(32, 1), None))
    assert (cu.pushed, cu.contexts) == (0, [1])
    launch((array(16, 0), array(32, 0), None))
    assert (cu.pushed, cu.contexts) == (1, [1])
    assert len(cu.launches) == 2


def test_launches_of_several_threads_keep_their_arguments(cu: Driver) -> None:
    launch = make_launch()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda at: launch((array(16 * at, 1), array(32 * at, 1), None)), range(400)))
    found = sorted(call["arguments"] for call in cu.launches)
    assert found == [[16 * at, 32 * at, 0, -7, 1 << 30, 0.25] for at in range(400)]


def test_much_shared_memory_is_asked_for_once(cu: Driver) -> None:
    for shared in (48 << 10, 100 << 10):
        launch = make_launch(shared)
        for _ in range(2):
            launch((array(16, 1), array(32, 1), None))
    assert cu.attributes == [("shared", 100 << 10, HANDLES[1], 1)]
    assert [call["shared"] for call in cu.launches] == 2 * [48 << 10] + 2 * [100 << 10]


def test_an_error_of_the_driver_is_raised(launched: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="the CUDA driver refused: 1"):
        make_launch()((array(16, device=9), array(32, device=9), None))


def test_numbers_that_do_not_fit_are_refused(launched: list[dict[str, Any]]) -> None:
    made = make_launch().kernel
    with pytest.raises(ValueError, match="must fit the kernel's integers, got 2147483648"):
        Launch(made, (1,), (Sizes(1, 1 << 31), 0.0))((array(16), array(32), None))
    with pytest.raises(ValueError, match="takes 3 arrays, got 2"):
        Launch(made, (1,), (Sizes(1, 2), 0.0))((array(16), array(32)))


def test_grids_are_checked_and_empty_ones_start_nothing(launched: list[dict[str, Any]]) -> None:
    made = make_launch().kernel
    Launch(made, (0, 3), (Sizes(1, 2), 0.0))((array(16), array(32), None))
    assert not launched
    for grid in ((1 << 31,), (1, 65_536), (1, 1, 65_536)):
        with pytest.raises(ValueError, match="a GPU has no grid of"):
            Launch(made, grid, (Sizes(1, 2), 0.0))


@pytest.mark.parametrize(
    ("strides", "expected"),
    [((60, 20, 5, 1), "contiguous"), ((60, 1, 15, 3), "channels_last"), ((120, 1, 30, 3), "channels_last"),
     ((60, 1, 20, 4), "channels_last"), ((7, 20, 5, 1), "contiguous")],
)  # fmt: skip
def test_the_memory_format_is_read_from_strides(strides: tuple[int, ...], expected: str) -> None:
    assert memory_format((1, 3, 4, 5), strides) == expected


def test_an_array_of_one_channel_counts_as_contiguous() -> None:
    assert memory_format((2, 1, 4, 5), (20, 1, 5, 1)) == "contiguous"


def test_tensors_of_pytorch() -> None:
    torch, library = pytest.importorskip("torch"), _Torch()
    library._current_stream = lambda device: 5 + device  # a CPU is number -1
    x = torch.zeros((2, 3, 4, 5)).to(memory_format=torch.channels_last)[:, :, 1:].requires_grad_()
    with pytest.raises(ValueError, match="tensors must not require gradients"):
        library.describe(x)
    assert library.sight(x) is None
    with torch.no_grad():
        array, (layout, address, stream) = library.describe(x), library.sight(x)
    where = (x.data_ptr(), (2, 3, 3, 5), (60, 1, 15, 3), "float32", 4, -1)
    assert (array.pointer, array.shape, array.strides, array.dtype, array.stream, array.device) == where
    assert (address, stream) == (array.pointer, array.stream) and array.owner is x
    assert layout == (x.shape, x.stride(), x.dtype, -1, address % 16)
    made = library.new((2, 3, 4), (1, 2, 6), "bfloat16", x)
    assert (made.dtype, made.shape, made.stride()) == (torch.bfloat16, (2, 3, 4), (1, 2, 6))
    assert library.address(made) == made.data_ptr()

"""Each intrinsic in the simulator, on every lane, against the layouts of the PTX ISA written down once more here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastconv.cuda import ptx, ptx_simulated
from fastconv.cuda.toolkit import SimulatedPointer, cuda, float32, types, uint32

GENERATOR = np.random.default_rng(0)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 16 bytes and has 0xFF behind it."""
    room = np.full(array.nbytes + 64, 0xFF, np.uint8)
    start = -room.ctypes.data % 16
    found = room[start : start + array.nbytes].view(array.dtype)
    found[:] = array.ravel()
    return found


def launch(kernel: Callable, *arrays: np.ndarray, threads: int = 32, shared: int = 0) -> None:
    cuda.jit(kernel)[1, threads, 0, shared](*map(SimulatedPointer, arrays))


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def bits(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32)


def test_loads_and_stores_of_16_bytes() -> None:
    def kernel(x, y):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        a, b, c, d = ptx.load4(x, t * 4)
        ptx.shared_store4(shared, t * 4, (d, c, b, a))
        cuda.syncthreads()
        ptx.store4(y, t * 4, ptx.shared_load4(shared, (t ^ 1) * 4))

    x, y = aligned(normal(64, 4)), aligned(np.zeros(256, np.float32))
    launch(kernel, x, y, threads=64, shared=1024)
    np.testing.assert_array_equal(y.reshape(32, 2, 4), x.reshape(32, 2, 4)[:, ::-1, ::-1])


def test_loads_and_stores_of_8_bytes() -> None:
    def kernel(x, y):
        t = cuda.threadIdx.x
        low, high = ptx.load_pairs(x, t * 4)
        ptx.store_pairs(y, (t ^ 1) * 4, (high, low))

    x, y = aligned(np.arange(128, dtype=np.uint16)), aligned(np.zeros(128, np.uint16))
    launch(kernel, x, y)
    np.testing.assert_array_equal(y.reshape(16, 2, 2, 2), x.reshape(16, 2, 2, 2)[:, ::-1, ::-1])


@pytest.mark.parametrize("touch", [ptx.load_pairs, lambda x, at: ptx.store_pairs(x, at, (1, 2))])
def test_8_bytes_between_vectors_are_an_error(touch: Callable) -> None:
    def kernel(x):
        touch(x, 2)

    with pytest.raises(ValueError, match="8 bytes at element 2, which is not aligned"):
        launch(kernel, aligned(np.zeros(16, np.uint16)), threads=1)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [(5, ValueError, "element 5, which is not aligned to 16"), (128, IndexError, "128 to 131 of 128"),
     (-4, IndexError, "-4 to -1 of 128")],
)  # fmt: skip
def test_what_a_gpu_would_fault_on_is_an_error(index: int, error: type[Exception], message: str) -> None:
    def kernel(x):
        ptx.load4(x, index)

    with pytest.raises(error, match=message):
        launch(kernel, aligned(normal(128)), threads=1)


def test_pointers_that_start_between_vectors_are_seen() -> None:
    def kernel(x):
        ptx.load4(x, 0)

    with pytest.raises(ValueError, match="not aligned"):
        launch(kernel, aligned(normal(128))[1:], threads=1)


def test_asynchronous_copies_arrive_when_waited_for() -> None:
    def kernel(x, y):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        ptx.copy_async4(shared, t, x, t, True)
        ptx.commit()
        ptx.copy_async16(shared, 64 + t * 4, x, t * 4, True)
        ptx.commit()
        y[t] = shared[t]
        ptx.wait(1)
        y[64 + t] = shared[t]
        y[128 + t] = shared[64 + t * 4]
        ptx.wait(0)
        cuda.syncthreads()
        for i in range(4):
            y[192 + t * 4 + i] = shared[64 + (63 - t) * 4 + i]

    x, y = aligned(normal(256)), aligned(np.zeros(448, np.float32))
    launch(kernel, x, y, threads=64, shared=1280)
    assert np.isnan(y[:64]).all()
    np.testing.assert_array_equal(y[64:128], x[:64])
    assert np.isnan(y[128:192]).all()
    np.testing.assert_array_equal(y[192:].reshape(64, 4), x.reshape(64, 4)[::-1])


def test_a_copy_that_is_not_valid_writes_zeros_and_reads_nothing() -> None:
    def kernel(x, y):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        ptx.copy_async4(shared, t, x, t if t % 3 else -1_000_000, t % 3)
        ptx.copy_async16(shared, 32 + t * 4, x, t * 4 if t % 5 else 4_000_000, t % 5 != 0)
        ptx.commit()
        ptx.wait(0)
        y[t] = shared[t]
        ptx.store4(y, 32 + t * 4, ptx.shared_load4(shared, 32 + t * 4))

    x, y = aligned(normal(128)), aligned(np.full(160, np.nan, np.float32))
    launch(kernel, x, y, shared=640)
    lane = np.arange(32)
    np.testing.assert_array_equal(y[:32], np.where(lane % 3, x[:32], 0))
    np.testing.assert_array_equal(y[32:].reshape(32, 4), np.where(lane[:, None] % 5, x.reshape(32, 4), 0))


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_of_halves(transposed: bool) -> None:
    load = ptx.load_matrices_transposed if transposed else ptx.load_matrices

    def kernel(x, y):
        shared, t = cuda.shared.array(0, types.uint16), cuda.threadIdx.x
        fragments = cuda.local.array(6, uint32)
        for i in range(8):
            shared[t * 8 + i] = x[t * 8 + i]
        cuda.syncthreads()
        warp, lane = t // 32, t % 32
        load(fragments, 2, shared, (warp * 32 + (lane + 5) % 32) * 8)  # rows lie anywhere
        for i in range(4):
            y[t * 4 + i] = fragments[2 + i]

    x, y = np.arange(512, dtype=np.uint16), np.zeros(256, np.uint32)
    launch(kernel, x, y, threads=64, shared=1024)
    rows = x.reshape(2, 32, 8)
    for warp in range(2):
        for lane in range(32):
            for i in range(4):
                pair = []
                for half in range(2):
                    row, column = lane // 4, lane % 4 * 2 + half
                    if transposed:
                        row, column = column, row
                    pair.append(int(rows[warp, (i * 8 + row + 5) % 32, column]))
                assert y[(warp * 32 + lane) * 4 + i] == pair[0] + (pair[1] << 16)


def test_matrices_of_words_are_fragments_of_tf32() -> None:
    def kernel(x, y):
        shared, t = cuda.shared.array(0, float32), cuda.threadIdx.x
        fragments = cuda.local.array(4, uint32)
        ptx.shared_store4(shared, t * 4, ptx.load4(x, t * 4))
        ptx.sync_warp()
        # A matrix of 16 x 8, in quarters: rows 0 to 7 and 8 to 15 of columns 0 to 3, then of columns 4 to 7.
        ptx.load_matrices(fragments, 0, shared, t % 16 * 8 + t // 16 * 4)
        for i in range(4):
            y[t * 4 + i] = fragments[i]

    x, y = aligned(normal(128)), np.zeros(128, np.uint32)
    launch(kernel, x, y, shared=512)
    matrix = bits(x.reshape(16, 8))
    for lane in range(32):
        g, m = lane // 4, lane % 4
        assert y[lane * 4 : lane * 4 + 4].tolist() == [
            matrix[g, m],
            matrix[g + 8, m],
            matrix[g, m + 4],
            matrix[g + 8, m + 4],
        ]


def tf32(values: np.ndarray) -> np.ndarray:
    """Rounded to multiples of the 10th bit behind the leading one, ties away from zero."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = np.ldexp(mantissa, 11)
    return np.ldexp(np.copysign(np.floor(np.abs(scaled) + 0.5), scaled), exponent - 11).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to multiples of the 7th bit behind the leading one, ties to even."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8).astype(np.float32)


def place_c(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


def run_mma(kernel: Callable, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Each warp's sums as matrices; a, b and c hold the lanes' elements."""
    warps = len(c) // 32
    out = np.zeros(c.size, np.float32)
    launch(kernel, a.ravel(), b.ravel(), c.ravel(), out, threads=32 * warps)
    matrices = np.full((warps, 16, 8), np.nan, np.float32)
    for warp in range(warps):
        for lane in range(32):
            for i in range(4):
                matrices[(warp, *place_c(lane, i))] = out[(warp * 32 + lane) * 4 + i]
    return matrices


def exact(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (c + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


def lanes_of_c(c: np.ndarray) -> np.ndarray:
    return np.array([[matrix[place_c(lane, i)] for i in range(4)] for matrix in c for lane in range(32)])


def test_product_of_tf32() -> None:
    def kernel(a, b, c, out):
        t = cuda.threadIdx.x
        left, right, sums = cuda.local.array(5, uint32), cuda.local.array(4, uint32), cuda.local.array(8, float32)
        for i in range(4):
            left[1 + i] = ptx.to_tf32(a[t * 4 + i])
            sums[4 + i] = c[t * 4 + i]
        for i in range(2):
            right[2 + i] = ptx.to_tf32(b[t * 2 + i])
        ptx.mma_tf32(sums, 4, left, 1, right, 2)
        for i in range(4):
            out[t * 4 + i] = sums[4 + i]

    a, b, c = normal(2, 16, 8), normal(2, 8, 8), normal(2, 16, 8)
    lanes_a, lanes_b = [], []
    for warp in range(2):
        for lane in range(32):
            g, m = lane // 4, lane % 4
            lanes_a.append([a[warp, g + 8 * (i % 2), m + 4 * (i // 2)] for i in range(4)])
            lanes_b.append([b[warp, m + 4 * i, g] for i in range(2)])
    found = run_mma(kernel, np.array(lanes_a), np.array(lanes_b), lanes_of_c(c))
    np.testing.assert_allclose(found, exact(tf32(a), tf32(b), c), rtol=1e-6, atol=1e-7)
    assert np.abs(found - exact(a, b, c)).max() > 1e-5  # it did round


def test_products_of_tf32_do_not_see_what_is_not_rounded_away() -> None:
    def kernel(a, b, c, out):
        t = cuda.threadIdx.x
        left, right, sums = cuda.local.array(4, uint32), cuda.local.array(2, uint32), cuda.local.array(4, float32)
        for i in range(4):
            left[i], sums[i] = a[t * 4 + i], c[t * 4 + i]
        for i in range(2):
            right[i] = b[t * 2 + i]
        ptx.mma_tf32(sums, 0, left, 0, right, 0)
        for i in range(4):
            out[t * 4 + i] = sums[i]

    one = bits(1) + np.uint32(0x1FFF)
    found = run_mma(kernel, np.full((32, 4), one), np.full((32, 2), one), np.zeros((32, 4), np.float32))
    np.testing.assert_array_equal(found, 8)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_product_of_halves(name: str) -> None:
    pack, mma = getattr(ptx, f"pack_{name}"), getattr(ptx, f"mma_{name}")

    def kernel(a, b, c, out):
        t = cuda.threadIdx.x
        left, right, sums = cuda.local.array(4, uint32), cuda.local.array(2, uint32), cuda.local.array(4, float32)
        for i in range(4):
            left[i] = pack(a[t * 8 + 2 * i], a[t * 8 + 2 * i + 1])
            sums[i] = c[t * 4 + i]
        for i in range(2):
            right[i] = pack(b[t * 4 + 2 * i], b[t * 4 + 2 * i + 1])
        mma(sums, 0, left, 0, right, 0)
        mma(sums, 0, left, 0, right, 0)
        for i in range(4):
            out[t * 4 + i] = sums[i]

    a, b, c = normal(2, 16, 16), normal(2, 16, 8), normal(2, 16, 8)
    lanes_a, lanes_b = [], []
    for warp in range(2):
        for lane in range(32):
            g, m = lane // 4, lane % 4
            rows_a = [g if i < 2 or 4 <= i < 6 else g + 8 for i in range(8)]
            columns_a = [m * 2 + (i & 1) + (0 if i < 4 else 8) for i in range(8)]
            rows_b = [m * 2 + (i & 1) + (0 if i < 2 else 8) for i in range(4)]
            lanes_a.append(a[warp, rows_a, columns_a])
            lanes_b.append(b[warp, rows_b, g])
    found = run_mma(kernel, np.array(lanes_a), np.array(lanes_b), lanes_of_c(c))
    rounded = bf16 if name == "bf16" else lambda x: x.astype(np.float16)
    np.testing.assert_allclose(found, exact(rounded(a), 2 * rounded(b), c), rtol=1e-6, atol=1e-6)
    assert np.abs(found - exact(a, 2 * b, c)).max() > 1e-4


TIES = np.array(
    [1 + 2.0**-11, 1 - 2.0**-12, -1 - 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8]
)


def test_conversions_round_bit_for_bit() -> None:
    def kernel(x, words, brain, half):
        t = cuda.threadIdx.x
        words[t] = ptx.to_tf32(x[t])
        brain[t], half[t] = ptx.pack_bf16(x[t], -x[t]), ptx.pack_f16(x[t], -x[t])

    x = normal(64) * np.float32(10) ** GENERATOR.integers(-3, 4, 64)
    x[: len(TIES)] = TIES
    words, brain, half = (np.zeros(64, np.uint32) for _ in range(3))
    launch(kernel, x.astype(np.float32), words, brain, half, threads=64)
    x = x.astype(np.float32)
    np.testing.assert_array_equal(words, bits(tf32(x)))
    np.testing.assert_array_equal(brain, bits(bf16(x)) >> 16 | bits(bf16(-x)))
    np.testing.assert_array_equal(half & 0xFFFF, x.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(half >> 16, (-x).astype(np.float16).view(np.uint16))


def test_conversions_of_nan_infinity_and_the_largest() -> None:
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    x = np.array([np.inf, -np.inf, np.nan, largest, -largest, smallest, 0, -0.0, np.nan], np.float32)
    x.view(np.uint32)[2] = 0x7FFFFFFF  # adding to it changes the sign
    expected = np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf, 0, 0, -0.0, np.nan], np.float32)
    words = np.array([ptx.to_tf32(value) for value in x]).view(np.float32)
    np.testing.assert_array_equal(words, expected)
    np.testing.assert_array_equal([ptx.to_tf32(word) for word in bits(x)], bits(words))
    for pack in (ptx.pack_bf16, ptx.pack_f16):
        low = np.array([pack(value, np.float32(1)) & 0xFFFF for value in x])
        sizes = low & 0x7FFF
        infinity = pack(np.float32(np.inf), np.float32(0))
        assert sizes[[0, 1, 3, 4]].tolist() == [infinity] * 4
        assert sizes[[2, 8]].tolist() == [0x7FFF, 0x7FFF]
        assert sizes[5:8].tolist() == [0, 0, 0]
        assert (low >> 15).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


def test_nan_and_infinity_go_through_products() -> None:
    def kernel(a, b, c, out):
        t = cuda.threadIdx.x
        left, right, sums = cuda.local.array(4, uint32), cuda.local.array(2, uint32), cuda.local.array(4, float32)
        for i in range(4):
            left[i], sums[i] = ptx.to_tf32(a[t * 4 + i]), c[t * 4 + i]
        for i in range(2):
            right[i] = ptx.to_tf32(b[t * 2 + i])
        ptx.mma_tf32(sums, 0, left, 0, right, 0)
        for i in range(4):
            out[t * 4 + i] = sums[i]

    a = np.ones((32, 4), np.float32)
    a[0, 0], a[4, 0], a[8, 1] = np.inf, np.nan, -np.inf  # rows 0, 1 and 10
    found = run_mma(kernel, a, np.ones((32, 2), np.float32), np.zeros((32, 4), np.float32))[0]
    expected = np.full((16, 8), 8, np.float32)
    expected[0], expected[1], expected[10] = np.inf, np.nan, -np.inf
    np.testing.assert_array_equal(found, expected)


def test_lanes_that_meet_in_different_instructions_are_an_error() -> None:
    def kernel(x):
        shared, t = cuda.shared.array(0, types.uint16), cuda.threadIdx.x
        fragments = cuda.local.array(4, uint32)
        if t == 7:
            ptx.sync_warp()
        else:
            ptx.load_matrices(fragments, 0, shared, 0)

    with pytest.raises(RuntimeError, match="different instructions"):
        launch(kernel, normal(1), shared=512)


def test_a_lane_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x):
        if cuda.threadIdx.x != 7:
            ptx.sync_warp()

    monkeypatch.setattr(ptx_simulated, "PATIENCE_S", 0.5)
    with pytest.raises(RuntimeError, match="lanes of its warp that do not come"):
        launch(kernel, normal(1))


def test_an_error_of_one_lane_ends_the_others() -> None:
    def kernel(x):
        if cuda.threadIdx.x == 7:
            x[5] = 1
        ptx.sync_warp()

    with pytest.raises(IndexError, match="element 5 of 1"):
        launch(kernel, normal(1))

"""Calls that are made again on arrays like those of a call before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format

import fastconv
from fastconv.cuda.replay import Replay

SHAPES = ((1, 3, 4, 5), (4, 3, 2, 2), (4,))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Replay]]:
    """What is made again."""
    fastconv.dispatch.forget()
    found: list[Replay] = []
    call = Replay.__call__
    monkeypatch.setattr(Replay, "__call__", lambda self, *arguments: found.append(self) or call(self, *arguments))
    yield found
    fastconv.set_float32_precision("ieee")


def arrays(seed: int, format: str = "contiguous") -> list[np.ndarray]:
    """An input, weights and a bias, all multiples of 1/8, which no product rounds."""
    random = np.random.default_rng(seed)
    x, weight, bias = (random.integers(-8, 8, shape).astype("float32") / 8 for shape in SHAPES)
    return [as_format(x, format), weight, bias]


def check(call: Any, hosts: list[np.ndarray], expected: np.ndarray) -> None:
    """Compare the result of a call on the same memory as arrays of the GPU."""
    result = call(*map(FakeCUDAArray, hosts))
    assert result.strides == expected.strides
    np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("algorithm", "precision", "pool"),
    [("reference", "ieee", None), ("tiled", "ieee", None), ("mma", "tf32", None),
     ("two_pass", "ieee", fastconv.Pool("max", 2))],
)  # fmt: skip
def test_calls_on_other_arrays(algorithm: str, precision: str, pool: Any, format: str, replays: list[Replay]) -> None:
    fastconv.set_float32_precision(precision)
    options: dict[str, Any] = {"padding": 1, "activation": "relu", "pool": pool}
    for seed in range(3):
        hosts = arrays(seed, format)
        expected = fastconv.conv2d(*hosts, **options)
        check(lambda *given: fastconv.conv2d(*given, algorithm=algorithm, **options), hosts, expected)
        assert len(replays) == seed


@pytest.mark.parametrize(("algorithm", "precision"), [("tiled_split", "ieee"), ("mma_split", "tf32")])
def test_sums_of_split_terms_are_new_in_each_call(algorithm: str, precision: str, replays: list[Replay]) -> None:
    fastconv.set_float32_precision(precision)
    random = np.random.default_rng(0)
    for seed in range(3):
        hosts = [random.integers(-8, 8, shape).astype("float32") / 8 for shape in ((1, 32, 3, 4), (8, 32, 3, 3), (8,))]
        expected = fastconv.conv2d(*hosts, padding=1)
        check(lambda *given: fastconv.conv2d(*given, padding=1, algorithm=algorithm), hosts, expected)
        assert len(replays) == seed


@pytest.mark.parametrize(("algorithm", "precision"), [("tiled", "ieee"), ("mma", "tf32")])
def test_a_plan_keeps_its_weights(algorithm: str, precision: str, replays: list[Replay]) -> None:
    fastconv.set_float32_precision(precision)
    x, weight, bias = arrays(0)
    plan = fastconv.plan(x.shape, FakeCUDAArray(weight), FakeCUDAArray(bias), padding=1, algorithm=algorithm)
    for seed in range(3):
        x, *_ = arrays(seed)
        check(plan, [x], fastconv.conv2d(x, weight, bias, padding=1))
        check(plan, [x[0]], fastconv.conv2d(x[0], weight, bias, padding=1))
        assert len(replays) == 2 * seed
    with pytest.raises(TypeError, match="x must have the plan's dtype"):
        plan(FakeCUDAArray(x.astype("float64")))


def test_images_without_n_and_signals(replays: list[Replay]) -> None:
    for seed in range(2):
        x, weight, bias = arrays(seed)
        check(fastconv.conv2d, [x[0], weight, bias], fastconv.conv2d(x[0], weight, bias))
        signals = [x[:, :, 0], weight[:, :, 0], bias]
        check(fastconv.conv1d, signals, fastconv.conv1d(*signals))
        assert len(replays) == 2 * seed


def test_other_layouts_and_options_are_other_calls(replays: list[Replay]) -> None:
    x, weight, bias = arrays(0)
    wide = np.zeros((1, 3, 4, 6), "float32")
    for hosts in ([x, weight, bias], [x, weight], [wide[..., :5], weight], [wide[..., 1:], weight],
                  [x.astype("float64"), weight.astype("float64")]):  # fmt: skip
        check(fastconv.conv2d, hosts, fastconv.conv2d(*hosts))
    for options in ({"stride": 2}, {"padding": 1}, {"padding": [1, 1]}, {"padding": [1, 1]}):
        check(
            lambda *given, options=options: fastconv.conv2d(*given, **options),
            [x, weight],
            fastconv.conv2d(x, weight, **options),
        )
    assert not replays


def test_new_choices_make_calls_new(replays: list[Replay]) -> None:
    given = [FakeCUDAArray(host) for host in arrays(0)]
    for expected in (0, 1):
        fastconv.conv2d(*given)
        assert len(replays) == expected
    fastconv.set_float32_precision("tf32")
    fastconv.conv2d(*given)
    assert len(replays) == 1


def test_one_array_in_two_places_is_not_remembered_as_two(replays: list[Replay]) -> None:
    both = np.arange(8, dtype="float32").reshape(2, 1, 2, 2)
    same = FakeCUDAArray(both)
    for _ in range(2):
        np.testing.assert_allclose(fastconv.conv2d(same, same).copy_to_host(), fastconv.conv2d(both, both))
    other = both[::-1].copy()
    check(fastconv.conv2d, [both, other], fastconv.conv2d(both, other))
    assert not replays


def test_known_calls_check_what_they_write_to(replays: list[Replay]) -> None:
    x, weight, _ = arrays(0)
    memory = np.zeros(200, "float32")
    near, far = (memory[at : at + 60].reshape(x.shape) for at in (0, 100))
    near[:] = x
    fitting = [memory[at : at + 48].reshape(1, 4, 3, 4) for at in (56, 104, 60)]
    given = [FakeCUDAArray(near), FakeCUDAArray(weight)]
    outs = [FakeCUDAArray(out) for out in fitting]
    expected = fastconv.conv2d(x, weight)
    for count, place in enumerate((1, 2)):
        assert fastconv.conv2d(*given, out=outs[place]) is outs[place]
        np.testing.assert_array_equal(fitting[place], expected)
        assert len(replays) == count
    with pytest.raises(ValueError, match="out must not overlap x or another input"):
        fastconv.conv2d(*given, out=outs[0])
    with pytest.raises(ValueError, match="out must have shape"):
        fastconv.conv2d(*given, out=FakeCUDAArray(far))
    np.testing.assert_array_equal(near, x)


def test_results_of_first_calls_live_as_long_as_they_are_held(replays: list[Replay]) -> None:
    given = [FakeCUDAArray(host) for host in arrays(0)]
    plan = fastconv.plan(SHAPES[0], *given[1:])
    gc.disable()
    try:
        for call in (lambda: fastconv.conv2d(*given), lambda: plan(given[0])):
            held = weakref.ref(call())
            assert held() is None
    finally:
        gc.enable()
    assert not replays

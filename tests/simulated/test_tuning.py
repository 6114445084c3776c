"""The autotuner, wisdom and plans for problems on the simulated GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from support import FORMATS, as_format
from tuning_support import store

import fastconv
from fastconv import algorithms, dispatch, reference
from fastconv.cuda import arrays, conv_kernel, properties, tiled
from fastconv.descriptor import parse
from fastconv.functional.gpu.plan import DevicePlan
from fastconv.plan import explain
from fastconv.tuning import check, gpu, learn, measure, search, validators, wisdom
from fastconv.tuning.gpu import rounded

TINY = "n1c1h3w3k2r2s2_f32_nhwc_bias_cuda"
PROBLEMS = [
    TINY, "n2c2h3w3k2r2s2_f64_nchw_relu_cuda", "n1c1h3w3k2r2s2_raw_f16_cuda", "n1c2h3w3k1r2s2_bf16_nhwc_wgrad_cuda",
    "n1c1h3w3k2r2s2_dgrad_cuda", "n1c2h4w3_max2_indices_nhwc_cuda", "n2c1h3w3_lp2n3_cuda",
]  # fmt: skip


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A store of its own, and the shortest timing."""
    monkeypatch.setattr(measure, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "_ROUNDS", (1, 1))
    return store(monkeypatch, tmp_path)


@pytest.mark.parametrize("text", PROBLEMS)
def test_results_are_compared_with_the_reference(text: str) -> None:
    problem = parse(text)
    work = measure.workload(problem)
    _, call = measure.prepare(problem, algorithms.candidates(problem, "reference")[0], work, 1)
    assert check.wrong(problem, work, call) is None
    result = work._sets[0]["out"]
    fetch, error = result.fetch, 1.0
    result.fetch = lambda: (fetch(), result.host.__iadd__(error))
    assert "results differ from the reference" in str(check.wrong(problem, work, call))
    if "indices" in work._sets[0]:
        error = 0.0
        work._sets[0]["indices"].fetch = lambda: None
        assert check.wrong(problem, work, call) == "indices differ from the reference"


def test_what_is_found_is_remembered_and_used(path: Path) -> None:
    [result] = search.tune(TINY, threads=1)
    entry = result.entry
    assert (result.status, result.rejected) == ("measured", ())
    assert entry is not None
    assert (entry.threads, entry.run_threads, entry.peak_fraction) == (1, 1, None)
    assert {m.candidate.algorithm for m in entry.measured} == {
        name for name in algorithms.supporting(parse(TINY)) if name != "reference"
    }
    machine = json.loads(path.read_text())["machine"]
    assert machine.keys() >= {"gpu", "capability", "multiprocessors", "driver", "numba_cuda", "source"}
    assert not machine.keys() & {"cpu", "cores", "llvmlite"}
    choice = dispatch.choose(parse(TINY), threads=2)
    assert (choice.candidate, choice.source, choice.threads) == (entry.candidate, "wisdom", 1)
    assert search.tune(TINY)[0].status == "known"
    text = str(fastconv.plan((1, 1, 3, 3), *sent((2, 1, 2, 2), (2,)), memory_format="channels_last").explain())
    assert "chosen by     wisdom" in text and "GFLOP/s" in text and "FMA peak" not in text and "one thread" not in text


@pytest.mark.parametrize("name", ["gpu", "capability", "multiprocessors", "driver", "numba_cuda", "source"])
def test_another_gpu_or_version_is_passed_over(path: Path, name: str) -> None:
    entry = wisdom.append(made_up_entry())
    assert wisdom.lookup(parse(TINY), 2) == entry
    row = json.loads(path.read_text())
    row["machine"][name] = "another"
    path.write_text(json.dumps(row) + "\n")
    assert wisdom.lookup(parse(TINY), 2) is None
    [found] = wisdom.history()
    assert found.stale is not None and found.stale.startswith(f"{name} was another, is ")


def test_the_cpu_asks_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    wisdom.append(made_up_entry())
    monkeypatch.setattr(wisdom._Index, "seen", None)  # as in a new process
    monkeypatch.setattr(wisdom, "validators", lambda *_: pytest.fail("the GPU was asked"))
    assert wisdom.lookup(parse(TINY.removesuffix("_cuda")), 1) is None


def test_mode_measure_measures_what_is_new() -> None:
    fastconv.set_mode("measure")
    try:
        plan = fastconv.plan((1, 1, 3, 3), *sent((2, 1, 2, 2)))
        assert plan.choice.source == "measured"
        assert plan.explain().measured_ns
    finally:
        fastconv.set_mode("heuristic")


def test_measurements_correct_the_cost_model_of_similar_problems() -> None:
    problem = replace(parse(TINY), in_size=(4, 3))
    assert learn.correction(problem, 1) is None
    search.tune(TINY, threads=1)
    candidate = algorithms.candidates(problem)[0]
    assert learn.correction(problem, 1) is not None
    assert learn.expected_ns(problem, candidate, algorithms.predicted_ns(problem, candidate), 1) > 1e5  # it is Python


def made_up_entry() -> wisdom.Entry:
    winner = algorithms.candidates(parse(TINY))[0]
    return wisdom.Entry(TINY, 1, winner, 1, 1e3, 1e3, 0.0, 1.0, None, 0)


def test_large_arrays_change(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse(TINY)
    moved = 4 * (9 + 8)
    monkeypatch.setattr("fastconv.tuning.gpu.first", lambda: replace(properties._SIMULATOR, l2=2 * moved))
    work = measure.workload(problem)
    assert len(work._sets) == 4
    _, call = measure.prepare(problem, algorithms.candidates(problem, "reference")[0], work, 1)
    ran: list[int] = []
    run = conv_kernel.DeviceKernel.start
    monkeypatch.setattr(
        conv_kernel.DeviceKernel,
        "start",
        lambda k, arrays, *rest: (ran.append(arrays[0].pointer), run(k, arrays, *rest)),
    )
    for _ in range(8):
        call()
    assert ran[:4] == ran[4:] and len(set(ran)) == 4
    call.first()
    assert ran[-1] == work._sets[0]["x"].array.pointer


def test_runs_find_scratch_memory_where_the_last_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse("n1c1h3w3k2r2s2_raw_cuda")
    work = measure.workload(problem)
    _, call = measure.prepare(problem, algorithms.candidates(problem, "tiled")[0], work, 1)
    given: list[object] = []
    monkeypatch.setattr(gpu._Arena, "new", noted(gpu._Arena.new, given))
    call()
    call()
    assert len(given) == 2 and given[0] is given[1]


def noted(function: Any, results: list) -> Any:
    """The same function, whose results are kept."""

    def call(*arguments: Any) -> Any:
        results.append(function(*arguments))
        return results[-1]

    return call


def test_rounding_to_16_bits() -> None:
    x = np.array([1 + 2**-8, 1 + 2**-8 + 2**-9, 1 + 3 * 2**-8, -3.0, 1e-3], "float32")
    np.testing.assert_array_equal(rounded(x, "bfloat16")[:4], [1, 1 + 2**-7, 1 + 2**-6, -3])
    np.testing.assert_array_equal(rounded(x, "float16"), x.astype("float16").astype("float32"))
    assert rounded(x, "float32") is x


# Which GPU


def test_an_older_gpu_is_offered_the_portable_kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse("n1c1h3w3k2r2s2_cuda")
    assert len(algorithms.supporting(problem)) > 1
    dispatch.forget()
    monkeypatch.setattr(properties, "first", lambda: properties.Properties("Tesla T4", (7, 5), 40, 1590000, 4 << 20, 0))
    assert algorithms.supporting(problem) == ["reference"]
    others = explain(problem, *dispatch.kernel_for(problem)).others
    assert others["tiled"] == "it needs compute capability 8.0, and Tesla T4 has 7.5"
    with pytest.raises(ValueError, match=r"it needs compute capability 8\.0, and Tesla T4 has 7\.5; use reference"):
        algorithms.candidates(problem, "tiled")
    dispatch.forget()
    monkeypatch.setattr(properties, "first", lambda: None)
    assert len(algorithms.supporting(problem)) > 1


def test_instructions_of_one_chip_are_offered_on_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse("n1c1h3w3k2r2s2_cuda")
    monkeypatch.setattr(tiled, "CAPABILITY", (9, 0), raising=False)
    assert "tiled" in algorithms.supporting(problem)
    for found, offered in (((9, 0), True), ((8, 9), False), ((10, 0), False)):
        gpu = properties.Properties("a GPU", found, 100, 1, 1, 0)
        monkeypatch.setattr(properties, "first", lambda gpu=gpu: gpu)
        assert ("tiled" in algorithms.supporting(problem)) == offered


def test_the_peak_is_that_of_multiply_adds() -> None:
    h100 = properties.Properties("H100", (9, 0), 132, 1_980_000, 50 << 20, 13000)
    assert h100.fma_gflops("float32") == pytest.approx(66_908, rel=1e-3)
    assert h100.fma_gflops("float64") == pytest.approx(33_454, rel=1e-3)
    assert replace(h100, capability=(8, 6)).fma_gflops("float64") is None
    assert replace(h100, clock=0).fma_gflops("float32") is None


def test_the_source_hash_follows_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = validators._source_file
    monkeypatch.setattr(validators, "_source_file", lambda name: seen.append(name) or original(name))
    validators.source_hash.__wrapped__("fastconv.cuda.tiled")
    modules = (
        "gemm",
        "gather",
        "geometry",
        "pack",
        "ptx",
        "ptx_simulated",
        "emit",
        "toolkit",
        "kernel",
        "driver",
        "arrays",
    )
    assert {f"fastconv.cuda.{name}" for name in modules} <= set(seen)


# Plans


def sent(*shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [FakeCUDAArray(random.standard_normal(shape).astype("float32")) for shape in shapes]


@pytest.mark.parametrize("algorithm", ["reference", "tiled"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_plan_computes_what_the_reference_does(form: str, algorithm: str) -> None:
    weight, bias = sent((4, 3, 2, 2), (4,))
    plan = fastconv.plan(
        (1, 3, 4, 3), weight, bias, stride=(1, 2), padding=1, memory_format=form, activation="relu",
        algorithm=algorithm,
    )  # fmt: skip
    assert isinstance(plan, DevicePlan)
    before = weight.copy_to_host().copy()
    weight.copy_to_device(np.full((4, 3, 2, 2), np.nan, "float32"))  # the plan has its own
    host = np.random.default_rng(1).standard_normal((1, 3, 4, 3)).astype("float32")
    expected = reference.convolve(plan.problem, host, before, bias.copy_to_host())
    for there in (as_format(host, form), np.repeat(host, 2, axis=3)[..., ::2]):
        result = plan(FakeCUDAArray(there))
        assert isinstance(result, FakeCUDAArray)
        np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-5)
        assert result.strides == as_format(expected.astype("float32"), form).strides
    out = FakeCUDAArray(np.full(expected.shape[1:], np.nan, "float32"))
    assert plan(FakeCUDAArray(host[0]), out=out) is out
    np.testing.assert_allclose(out.copy_to_host(), expected[0], rtol=1e-5, atol=1e-5)
    assert plan(FakeCUDAArray(host[0])).shape == expected.shape[1:]


def test_a_plan_packs_once_and_a_call_takes_memory_for_its_result_only(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[object] = []
    monkeypatch.setattr(tiled.Tiled, "pack", noted(tiled.Tiled.pack, packed))
    plan = fastconv.plan((1, 1, 3, 3), *sent((2, 1, 2, 2)), algorithm="tiled")
    made: list[object] = []
    monkeypatch.setattr(arrays._Numba, "new", noted(arrays._Numba.new, made))
    results = [plan(*sent((1, 1, 3, 3))) for _ in range(2)]
    assert len(packed) == 1
    assert all(x is y for x, y in zip(made, results, strict=True))


def test_a_plan_names_what_does_not_fit() -> None:
    [weight] = sent((2, 1, 2, 2))
    plan = fastconv.plan((1, 3, 3), weight, algorithm="reference")
    with pytest.raises(ValueError, match=r"x must have the plan's shape \(1, 1, 3, 3\), got \(1, 1, 3, 4\)"):
        plan(*sent((1, 1, 3, 4)))
    with pytest.raises(TypeError, match="x must have the plan's dtype float32, got float64"):
        plan(FakeCUDAArray(np.ones((1, 1, 3, 3))))
    with pytest.raises(TypeError, match="x must be on the GPU"):
        plan(np.ones((1, 1, 3, 3), "float32"))
    with pytest.raises(ValueError, match=r"out must have shape \(1, 2, 2, 2\)"):
        plan(*sent((1, 1, 3, 3)), out=sent((1, 2, 2, 3))[0])
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\), got \(3,\)"):
        fastconv.plan((1, 3, 3), weight, sent((3,))[0])
    with pytest.raises(TypeError, match="dtype must agree with the weights' float32, got 'float64'"):
        fastconv.plan((1, 3, 3), weight, dtype="float64")
    with pytest.raises(ValueError, match="x_shape must be"):
        fastconv.plan((3, 3), weight)

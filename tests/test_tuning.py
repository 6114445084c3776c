"""The autotuner: fair timing, a careful choice, checked winners, and nothing lost."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from tuning_support import registry, source, store

from fastconv import algorithms, dispatch, reference
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem
from fastconv.tuning import check, gpu, measure, peak, search, warm, wisdom
from fastconv.tuning.measure import Timing
from fastconv.tuning.search import Trial

TINY = "n1c3h5w6k4r3s3p1_f32_nhwc_bias_relu"
OTHERS = ["n2c3h5w6k4r3s3p1_f32_nhwc", "n1c4h5w6k4r3s3p1_f32_nchw", "n1c3h6w6_max2u2_f32_nhwc_indices"]


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    """A store of its own, and short timing."""
    monkeypatch.setattr(measure, "_MIN_SECONDS", 0.01)
    return store(monkeypatch, tmp_path)


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Two algorithms; the one that is predicted to be slow is fast."""
    with registry(monkeypatch, tmp_path, slow=source(cost=1e6, seconds=0.004), quick=source(cost=5e6)):
        yield


class Clock:
    """Time that only passes when a call says so."""

    def __init__(self, monkeypatch):
        self.ns = 0
        monkeypatch.setattr(measure, "perf_counter_ns", lambda: self.ns)
        monkeypatch.setattr(measure, "monotonic", lambda: self.ns / 1e9)

    def call(self, ns, log=None):
        def run():
            self.ns += ns() if callable(ns) else ns
            if log is not None:
                log.append(ns)

        return run


# Measuring


@pytest.mark.parametrize("descriptor", [TINY, *OTHERS])
def test_workload_has_the_shapes_and_the_layout_of_the_problem(descriptor):
    problem = parse(descriptor)
    work, again = measure.workload(problem), measure.workload(problem)
    assert (work.x.shape, work.out.shape) == (problem.in_shape, problem.out_shape)
    assert work.x.dtype == work.out.dtype == problem.dtype
    assert (work.x.strides[1] == work.x.itemsize) == (problem.memory_format == "channels_last")
    np.testing.assert_array_equal(work.x, again.x)
    if isinstance(problem, ConvProblem):
        assert work.weight.shape == problem.weight_shape
        assert (work.bias is not None) == problem.bias
    else:
        assert work.indices.dtype == np.int64


def test_packing_counts_for_raw_weights_only(made_up):
    for descriptor, packs in [(TINY, 1), (TINY + "_raw", 3)]:
        problem = parse(descriptor)
        code = algorithms.module("conv", "quick")
        code.runs.clear()
        _, call = measure.prepare(problem, Candidate("quick", (("rows", 1),)), measure.workload(problem), 1)
        for _ in range(3):
            call()
        assert code.runs.count("pack") == packs


def test_timing_is_in_turns_and_the_slow_drop_out(monkeypatch):
    clock, log = Clock(monkeypatch), []
    calls = {ms * 1_000_000: clock.call(ms * 1_000_000, log) for ms in (10, 11, 12, 14, 20, 90)}
    timings = measure.interleave(calls)
    assert list(timings) == list(calls)
    assert [t.best_ns for t in timings.values()] == list(calls)
    counts = [len(t.samples) for t in timings.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[:2] == [20, 20] and counts[4:] == [4, 1]
    rounds = log[3 * 6 :]
    assert rounds[::2] == rounds[1::2], "a call that is not timed goes before each one that is"
    first_rounds = rounds[::2][6:][:15]
    assert all(sorted(first_rounds[i : i + 5]) == sorted(calls)[:5] for i in (0, 5, 10))


def test_the_kept_call_never_drops_out(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {ns: clock.call(ns) for ns in (1_000_000, 1_010_000, 9_000_000)}
    timings = measure.interleave(calls, keep=9_000_000)
    assert [len(t.samples) for t in timings.values()] == [20, 20, 20]


def test_short_calls_are_repeated_in_a_sample(monkeypatch):
    clock, log = Clock(monkeypatch), []
    timings = measure.interleave({"a": clock.call(100, log)})
    assert len(log) >= 500 * len(timings["a"].samples)
    assert timings["a"].best_ns == 100


def test_timing_goes_on_while_times_vary(monkeypatch):
    clock, random = Clock(monkeypatch), np.random.default_rng(0)
    timings = measure.interleave({"varies": clock.call(lambda: int(1e6 * random.uniform(1, 30)))}, seconds=60.0)
    assert 20 < len(timings["varies"].samples) <= 100


def test_timing_stops_when_the_time_is_up(monkeypatch):
    clock, told = Clock(monkeypatch), []
    calls = {n: clock.call(100_000_000) for n in range(3)}
    timings = measure.interleave(calls, seconds=1.6, progress=told.append)
    assert {len(t.samples) for t in timings.values()} == {2}
    assert told == sorted(told) and told[-1] == 1.0
    assert len(measure.interleave(calls, seconds=0.0)[0].samples) == 1


def test_statistics_of_a_timing():
    timing = Timing((120.0, 100.0, 110.0))
    assert (timing.best_ns, timing.median_ns) == (100.0, 110.0)
    assert timing.spread == pytest.approx(0.1)
    assert timing.noise == pytest.approx(0.2)
    assert Timing((100.0, 101.0, 100.5, 900.0, 800.0)).noise == pytest.approx(0.01)
    assert Timing((100.0,)).noise == 0


def noisy(level, noise, rounds=20, slow_seconds=()):
    """Samples around a level; some rounds hit a slow second of the machine."""
    random = np.random.default_rng(int(level))
    samples = level * (1 + noise * random.standard_normal(rounds))
    samples[list(slow_seconds)] *= 10
    return Timing(tuple(samples))


@pytest.mark.parametrize(
    ("challenger", "incumbent", "expected"),
    [
        (noisy(900, 0.001), noisy(1000, 0.001), True),
        (noisy(995, 0.001), noisy(1000, 0.001), False),  # within the floor
        (noisy(970, 0.1), noisy(1000, 0.1), False),  # within the noise
        (noisy(600, 0.1), noisy(1000, 0.1), True),
        (noisy(900, 0.005, slow_seconds=range(3, 17)), noisy(1000, 0.005, slow_seconds=range(3, 17)), True),
        (noisy(1100, 0.001), noisy(1000, 0.001), False),
        (Timing((900.0,)), Timing((1000.0,)), True),
        (Timing((700.0, 900.0, 1400.0)), Timing((1000.0, 1300.0, 1900.0)), True),  # by more than any noise
    ],
)
def test_the_incumbent_stays_unless_beaten_by_more_than_the_noise(challenger, incumbent, expected):
    assert measure.beats(challenger, incumbent) == expected
    old, new = Trial(Candidate("old"), 2), Trial(Candidate("new"), 2)
    timings = {old: incumbent, new: challenger, Trial(Candidate("slow"), 2): noisy(5000, 0.001)}
    assert search.choose(timings, old) == (new if expected else old)
    assert search.choose(timings, None) == min(timings, key=lambda t: timings[t].best_ns)


def test_peak_and_bandwidth_are_positive():
    for dtype in ("float32", "float64"):
        assert 0 < peak.fma_gflops(dtype) <= peak.best_gflops(dtype)
    assert peak.copy_bandwidth() > 0


# Checking


GROUPED = ["n3c6h5w6k9r3s3p1g3_f32_nhwc_bias", "n2c8h7w6k8r3s3p1g8_f32_nchw_relu6"]
PARTS = [TINY, *OTHERS, *GROUPED, "n3c5h6w6_avg2_f32_nchw"]


def exact(problem, work):
    """A call that computes what the reference does."""

    def call():
        if isinstance(problem, ConvProblem):
            work.out[...] = reference.convolve(problem, work.x, work.weight, work.bias)
        else:
            work.out[...], found = reference.pooling(problem, work.x)
            if work.indices is not None:
                work.indices[...] = found

    return call


@pytest.mark.parametrize("flops", [0, 1e9], ids=["in part", "whole"])
@pytest.mark.parametrize("descriptor", PARTS)
def test_right_results_pass_and_wrong_ones_do_not(descriptor, flops, monkeypatch):
    monkeypatch.setattr(check, "_REFERENCE_FLOPS", flops)
    problem = parse(descriptor)
    work = measure.workload(problem)
    right = exact(problem, work)
    assert check.wrong(problem, work, right) is None

    def one_wrong():
        right()
        work.out[-1, -1, -1, -1] += 0.01

    assert check.wrong(problem, work, one_wrong).startswith("1 of ")
    assert "differ from the reference" in check.wrong(problem, work, lambda: None)


def test_the_part_that_is_checked_is_spread_over_the_channels(monkeypatch):
    problem = parse("n4c8h10w10k100r3s3p1_f32_nhwc")
    monkeypatch.setattr(check, "_REFERENCE_FLOPS", 12 * 2 * problem.flops / 400)
    images, filters = check._part(problem)
    assert images.tolist() == [0, 3]
    assert filters.tolist() == list(range(0, 100, 9))


def test_wrong_indices_are_noticed():
    problem = parse(OTHERS[2])
    work = measure.workload(problem)
    right = exact(problem, work)

    def wrong_index():
        right()
        work.indices[0, 0, 0, 0] += 1

    assert check.wrong(problem, work, wrong_index) == "indices differ from the reference"


# Searching


def test_the_fastest_wins_and_is_remembered(made_up):
    told = []
    (result,) = search.tune(TINY, progress=lambda *event: told.append(event))
    assert (result.status, result.rejected) == ("measured", ())
    assert result.entry.candidate == Candidate("quick", (("rows", 1),))
    assert result.entry.runner_up is not None and result.entry.margin > 0
    assert result.entry.workspace == 64
    assert 0 < result.entry.best_ns <= result.entry.ns
    assert wisdom.lookup(parse(TINY), result.entry.threads) == result.entry
    assert told[0][0] == parse(TINY) and told[-1][1:] == (1.0, "done")
    assert [event[1] for event in told] == sorted(event[1] for event in told)


def test_a_disturbed_measurement_is_reported(made_up, monkeypatch):
    rates = iter([200.0, 150.0, 200.0, 20.0])
    monkeypatch.setattr(peak, "best_gflops", lambda *_: 200.0)
    monkeypatch.setattr(peak, "fma_gflops", lambda *_: next(rates))
    monkeypatch.setattr(search, "_TRUSTED_NOISE", 1e9)
    assert [result.disturbed for result in search.tune([TINY, OTHERS[0]])] == [False, True]
    monkeypatch.setattr(peak, "fma_gflops", lambda *_: 200.0)
    monkeypatch.setattr(search, "_TRUSTED_NOISE", -1.0)
    assert search.tune(OTHERS[1])[0].disturbed


def test_what_is_known_is_skipped(made_up, path):
    search.tune(TINY)
    code = algorithms.module("conv", "quick")
    code.runs.clear()
    first, second = search.tune([TINY, OTHERS[2]])
    assert (first.status, second.status) == ("known", "measured")
    assert first.entry == wisdom.lookup(parse(TINY), first.entry.threads)
    search.tune(TINY)
    lines = len(path.read_text().splitlines())
    assert search.tune(TINY, retune=True)[0].status == "measured"
    assert len(path.read_text().splitlines()) == lines + 1


def test_dispatch_uses_the_new_wisdom(made_up):
    problem = parse(TINY)
    assert dispatch.choose(problem).candidate.algorithm == "slow"
    search.tune(problem)
    choice = dispatch.choose(problem)
    assert (choice.source, choice.candidate.algorithm) == ("wisdom", "quick")


@pytest.mark.filterwarnings("ignore:not used for")
def test_a_wrong_kernel_is_rejected(monkeypatch, tmp_path):
    liar = source(seconds=0.0001, error=0.5)
    with registry(monkeypatch, tmp_path, honest=source(seconds=0.001), liar=liar):
        with pytest.warns(RuntimeWarning, match=f"not used for {TINY}: liar rows=1 .* differ from the reference"):
            (result,) = search.tune(TINY)
        assert result.entry.candidate.algorithm == "honest"
        assert any("liar rows=1" in reason for reason in result.rejected)
        assert wisdom.entries() == [result.entry]


@pytest.mark.filterwarnings("ignore:not used for")
def test_a_failing_kernel_does_not_stop_the_others(monkeypatch, tmp_path):
    with registry(monkeypatch, tmp_path, honest=source(), broken=source(error="raise")):
        with pytest.warns(RuntimeWarning, match="broken rows=1 .* RuntimeError: no such instruction"):
            (result,) = search.tune(TINY)
        assert result.entry.candidate.algorithm == "honest"


def test_nothing_is_stored_when_every_kernel_is_wrong(monkeypatch, tmp_path):
    with registry(monkeypatch, tmp_path, liar=source(error=0.5), broken=source(error="raise")):
        with pytest.warns(RuntimeWarning):
            (result,) = search.tune(TINY)
        assert (result.status, result.entry) == ("failed", None)
        assert wisdom.entries() == []


def test_the_incumbent_is_always_measured_and_kept_within_the_noise(made_up, monkeypatch):
    (first,) = search.tune(TINY)
    monkeypatch.setattr(measure, "beats", lambda challenger, incumbent: False)
    slower = replace(first.entry, candidate=Candidate("slow", (("rows", 2),)), run_threads=1)
    wisdom.append(slower)
    (again,) = search.tune(TINY, retune=True)
    assert again.entry.candidate == slower.candidate
    assert again.entry.margin < 0


def test_an_interrupted_run_keeps_what_it_has(made_up):
    def stop(problem, done, step):
        if problem == parse(OTHERS[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.tune([TINY, *OTHERS], progress=stop)
    kept = {entry.problem for entry in wisdom.entries()}
    assert kept == {TINY, OTHERS[0]}
    assert [r.status for r in search.tune([TINY, *OTHERS])] == ["known", "known", "measured", "measured"]


def test_a_budget_is_shared_and_kept(monkeypatch, tmp_path):
    assert [r.status for r in search.tune([TINY, *OTHERS], budget=0)] == ["out of budget"] * 4
    with registry(monkeypatch, tmp_path, sleepy=source(seconds=0.05)):
        start = time.monotonic()
        results = search.tune([f"n{n}c3h5w6k4r3s3p1_f32_nhwc" for n in range(1, 41)], budget=2.0)
        assert time.monotonic() - start < 6.0
        statuses = [r.status for r in results]
        measured = statuses.count("measured")
        assert 0 < measured < 40
        assert statuses == ["measured"] * measured + ["out of budget"] * (40 - measured)


def test_no_store_is_an_error_before_any_work(made_up, monkeypatch):
    monkeypatch.setattr(wisdom, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install fastconv\[tune\]"):
        search.tune(TINY)
    assert algorithms.module("conv", "quick").runs == []


def test_problems_on_a_gpu_are_refused_where_there_is_none(made_up, monkeypatch):
    monkeypatch.setattr(gpu, "first", lambda: None)
    monkeypatch.setattr(gpu, "require", lambda: None)
    with pytest.raises(ValueError, match="there is none here, or no driver for it"):
        search.tune([TINY, f"{TINY}_cuda"])
    assert wisdom.entries() == []


def test_thread_counts_are_checked(made_up):
    with pytest.raises(ValueError, match=r"threads must be from 1 to .* got 4096"):
        search.tune(TINY, threads=4096)
    (result,) = search.tune(TINY, threads=1)
    assert (result.entry.threads, result.entry.run_threads) == (1, 1)


def test_resolve_takes_networks_descriptors_and_problems():
    found = search.resolve(["alexnet", TINY, parse(TINY), [OTHERS[2]]])
    assert [p.descriptor for p in found[5:]] == [TINY, OTHERS[2]]
    with pytest.raises(ValueError, match="'lenet' is not like"):
        search.resolve("lenet")


def test_the_shortlist_has_the_best_of_each_algorithm(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "SHORTLIST", 2)
    with registry(monkeypatch, tmp_path, good=source(cost=1.0), bad=source(cost=100.0)):
        found = search.shortlist(parse(TINY), 1)
    assert found == [Candidate(n, (("rows", r),)) for n, r in [("good", 1), ("bad", 1), ("good", 2)]]


# With the real kernels


@pytest.mark.parametrize("descriptor", ["n1c8h6w6k16r3s3p1_f32_nhwc_bias_relu", "n1c8h6w6_max2u2_f32_nhwc"])
def test_tuning_the_real_kernels(descriptor, monkeypatch):
    monkeypatch.setattr(search, "SHORTLIST", 1)
    monkeypatch.setattr(search, "_SECONDS", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = search.tune(descriptor)
    assert result.status == "measured"
    assert result.entry.gflops > 0
    assert wisdom.lookup(parse(descriptor), result.entry.threads) == result.entry


def test_warming_up_runs_every_candidate(made_up, monkeypatch):
    told = []
    monkeypatch.setattr(warm, "_SHAPES", (TINY.split("_")[0], "n1c3h6w6_max2u2"))
    done = warm.compile_menu(warm.menu(), lambda *event: told.append(event))
    assert done.kernels == 8  # two operations, two algorithms, two parameters
    assert told[-1] == (1.0, "done")
    assert algorithms.module("conv", "quick").runs.count("run") == 8  # in two memory formats
    with pytest.raises(ValueError, match="dtype must be one of float32, float64, got 'int8'"):
        warm.menu(["int8"])

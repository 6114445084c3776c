"""The cost model learns from measurements: what was measured of similar problems decides the order of candidates."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tuning_support import registry, source, store

import fastconv
from fastconv import algorithms, dispatch
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.plan import explain
from fastconv.reference import convolve
from fastconv.tuning import learn, search, wisdom
from fastconv.tuning.wisdom import Entry, Measurement

NEAR, FAR = parse("n1c64h28w28k64r3s3p1_f32_nhwc"), parse("n64c3h224w224k512r1s1u2_f32_nhwc")
UNSEEN = parse("n1c80h26w28k64r3s3p1_f32_nhwc_bias_relu")


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    return store(monkeypatch, tmp_path)


def measured(problem, slow: str, factor: float = 1.5, threads: int = 2, scale: float = 0.5) -> Entry:
    """An entry in which every candidate took `scale` of its prediction, those of the algorithm `slow` more."""
    found = []
    for candidate in algorithms.candidates(problem):
        predicted = math.ceil(algorithms.predicted_ns(problem, candidate))
        ns = scale * predicted * (factor if candidate.algorithm == slow else 1)
        found.append(Measurement(candidate, threads, math.ceil(ns), predicted))
    best = min(found, key=lambda one: one.ns)
    return Entry(
        problem.descriptor, threads, best.candidate, threads, best.ns, best.ns, 0.0, 1.0, 0.1, 0, measured=tuple(found)
    )


def predicted_order(problem):
    return algorithms.candidates(problem)


def test_nothing_measured_changes_nothing():
    assert learn.correction(UNSEEN, 2) is None
    candidate = predicted_order(UNSEEN)[0]
    assert learn.expected_ns(UNSEEN, candidate, 1000.0, 2) is None
    assert dispatch.choose(UNSEEN, threads=2).candidate == candidate


def test_measurements_of_a_similar_problem_change_the_choice():
    first = predicted_order(UNSEEN)[0].algorithm
    wisdom.append(measured(NEAR, slow=first, factor=2.5))
    choice = dispatch.choose(UNSEEN, threads=2)
    assert choice.candidate.algorithm != first and choice.source == "cost model"
    correction = learn.correction(UNSEEN, 2)
    slow, other = (next(c for c in predicted_order(UNSEEN) if (c.algorithm == first) == same) for same in (True, False))
    assert 1.3 < correction(slow) / correction(other) < 2.5  # towards what was measured, but shrunk


def test_measurements_of_another_kind_count_for_nothing():
    first = predicted_order(UNSEEN)[0]
    wisdom.append(measured(replace(NEAR, memory_format="contiguous"), slow=first.algorithm, factor=2.5))
    wisdom.append(measured(FAR, slow=first.algorithm, factor=2.5))
    assert dispatch.choose(UNSEEN, threads=2).candidate == first


def test_the_speed_of_all_candidates_together_is_no_reason():
    wisdom.append(measured(NEAR, slow="none", scale=7.0))
    correction = learn.correction(UNSEEN, 2)
    assert all(correction(c) == pytest.approx(1, abs=1e-3) for c in predicted_order(UNSEEN))


def test_an_outlier_does_little_harm():
    entry = measured(NEAR, slow="none")
    spoilt = entry.measured[0]._replace(ns=1000 * entry.measured[0].ns)
    wisdom.append(replace(entry, measured=(spoilt, *entry.measured[1:])))
    correction = learn.correction(UNSEEN, 2)
    assert all(0.8 < correction(c) < 1.25 for c in predicted_order(UNSEEN) if c != spoilt.candidate)


def test_the_expected_time_is_near_what_will_be_measured():
    for size in (14, 28, 56):
        wisdom.append(measured(replace(NEAR, in_size=(size, size)), slow="tiled", factor=1.4, scale=0.6))
    for candidate in predicted_order(UNSEEN):
        predicted = algorithms.predicted_ns(UNSEEN, candidate)
        truth = 0.6 * predicted * (1.4 if candidate.algorithm == "tiled" else 1)
        assert learn.expected_ns(UNSEEN, candidate, predicted, 2) == pytest.approx(truth, rel=0.15)
    assert learn.expected_ns(UNSEEN, candidate, predicted, 1) is None  # nothing was measured on one thread


def test_rows_without_measurements_still_load(path):
    wisdom.append(measured(NEAR, slow="none"))
    row = json.loads(path.read_text())
    del row["measured"], row["sources"]
    path.write_text(json.dumps(row) + "\n")
    assert wisdom.lookup(NEAR, 2).measured == ()
    assert learn.correction(UNSEEN, 2) is None


def test_a_store_is_read_once_until_it_changes(monkeypatch):
    wisdom.append(measured(NEAR, slow="direct"))
    reads = []
    original = learn._learn
    monkeypatch.setattr(learn, "_learn", lambda entries: reads.append(1) or original(entries))
    for _ in range(3):
        learn.correction(UNSEEN, 2)
    assert len(reads) <= 1
    wisdom.append(measured(NEAR, slow="tiled"))
    learn.correction(UNSEEN, 2)
    assert learn.correction(UNSEEN, 2)(Candidate("tiled")) > 1
    assert 1 <= len(reads) <= 2


def test_edited_kernels_are_not_learned_from(monkeypatch, tmp_path):
    with registry(monkeypatch, tmp_path, slow=source(cost=1e6), quick=source(cost=5e6)):
        wisdom.append(measured(NEAR, slow="quick"))
        assert {m.candidate.algorithm for m in wisdom.lookup(NEAR, 2).current()} == {"slow", "quick"}
        with (tmp_path / "made_up_quick.py").open("a") as file:
            file.write("# edited\n")
        wisdom.source_hash.cache_clear()
        assert {m.candidate.algorithm for m in wisdom.lookup(NEAR, 2).current()} == {"slow"}


def test_tuning_keeps_what_every_candidate_took(monkeypatch, tmp_path):
    with registry(monkeypatch, tmp_path, slow=source(cost=1e6, seconds=0.004), quick=source(cost=5e6)):
        (result,) = search.tune("n1c3h5w6k4r3s3p1_f32_nhwc")
        stored = wisdom.lookup(result.problem, result.entry.threads)
        assert {m.candidate for m in stored.measured} == set(algorithms.candidates(result.problem))
        assert min(m.ns for m in stored.measured) == math.ceil(stored.best_ns)
        similar = replace(result.problem, batch=2)
        choice = dispatch.choose(similar)
        assert choice.candidate.algorithm == "quick", "although the cost model alone says slow"
        known = dispatch.choose(result.problem)
        account = explain(result.problem, algorithms.module("conv", "quick").make(similar, {"rows": 1}, 1), known)
        assert account.expected_ns == pytest.approx(stored.best_ns, rel=1.0)
        assert "measured" in account.others["slow"] and "by similar measurements" in account.others["slow"]


# The most scratch memory that a call may take

LIMITED = [
    "n1c64h20w20k64r3s3p1_f32_nhwc", "n2c32h17w19k48r3s3p1_f32_nchw", "n1c16h15w15k32r3s3p1_f32_nhwc_bias_relu_max2u2",
    "n1c64h14w14k64r3s3p1g64_f32_nhwc", "n1c24h12w12k24r1s1_f32_nchw",
]  # fmt: skip


@pytest.mark.parametrize("descriptor", LIMITED)
def test_a_limit_of_workspace_is_kept_exactly(descriptor):
    problem = parse(descriptor)
    needs = {}
    for candidate in algorithms.candidates(problem):
        alone = algorithms.predicted_ns(problem, candidate) <= dispatch._WORTH_THREADS_NS
        needs[candidate] = needed = algorithms.workspace_bytes(problem, candidate, 1 if alone else 2)
        choice = dispatch.choose(problem, threads=2, max_workspace=needed)
        assert algorithms.workspace_bytes(problem, choice.candidate, choice.threads) <= needed
        named = dispatch.choose(problem, candidate.algorithm, 2, needed)
        assert algorithms.workspace_bytes(problem, named.candidate, named.threads) <= needed
    least = min(needs.values())
    assert dispatch.choose(problem, threads=2, max_workspace=least)
    with pytest.raises(ValueError, match=rf"max_workspace must be at least {least} bytes .*, got {least - 1}"):
        dispatch.choose(problem, threads=2, max_workspace=least - 1)


def test_wisdom_counts_only_if_it_fits():
    entry = measured(NEAR, slow="direct", factor=3.0)
    wisdom.append(entry)
    needed = algorithms.workspace_bytes(NEAR, entry.candidate, 2)
    assert needed > 0
    assert dispatch.choose(NEAR, threads=2, max_workspace=needed).source == "wisdom"
    choice = dispatch.choose(NEAR, threads=2, max_workspace=needed - 1)
    fits = [m for m in entry.measured if algorithms.workspace_bytes(NEAR, m.candidate, m.threads) < needed]
    assert choice.source == "wisdom" and choice.candidate == min(fits, key=lambda m: m.ns).candidate
    told = str(explain(NEAR, dispatch.kernel_for(NEAR, None, 2, needed - 1)[0], choice))
    assert f"needs {needed} bytes, more than {needed - 1} ({entry.candidate})" in told
    assert f"measured      {min(m.ns for m in fits) / 1e3:.1f} us" in told


def test_a_plan_within_a_limit_is_right():
    problem = replace(NEAR, in_size=(9, 11))
    random = np.random.default_rng(0)
    x, weight = random.standard_normal(problem.in_shape), random.standard_normal(problem.weight_shape)
    expected = convolve(replace(problem, dtype="float64"), x, weight, None)
    for algorithm in (None, "im2col", "tiled"):
        limit = 0 if algorithm is None else 1 << 20
        plan = fastconv.plan(
            x.shape, weight, padding=1, memory_format="channels_last", algorithm=algorithm, max_workspace=limit
        )
        assert plan.workspace_bytes <= limit and plan.explain().workspace_bytes == plan.workspace_bytes
        np.testing.assert_allclose(plan(x), expected, atol=1e-10)
    with pytest.raises(ValueError, match=r"max_workspace must be at least \d+ bytes"):
        fastconv.plan(x.shape, weight, padding=1, algorithm="im2col", max_workspace=10)
    for wrong in ("1MB", -1):
        with pytest.raises(ValueError, match=f"max_workspace must be None or a number of bytes.*, got {wrong!r}"):
            fastconv.plan(x.shape, weight, padding=1, max_workspace=wrong)

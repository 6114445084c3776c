"""What a store may hold, or be: nothing of it is half used, stops a call, or takes a lot of memory."""

from __future__ import annotations

import copy
import errno
import json
import os
import pwd
import warnings

import numpy as np
import pytest
from crowds import scenario
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_support import registry, source, store

import fastconv
from fastconv import dispatch, reference
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.tuning import lines, measure, search, wisdom
from fastconv.tuning.wisdom import Entry, Measurement

PROBLEM = parse("n1c2h4w4k3r3s3_f32_nchw_raw")
X, WEIGHT = (np.random.default_rng(0).standard_normal(s, np.float32) for s in (PROBLEM.in_shape, PROBLEM.weight_shape))
EXPECTED = reference.convolve(PROBLEM, X, WEIGHT, None).astype(np.float32)
_TRUSTING = """

_make = make


def make(problem, params, threads):
    assert params in space(problem) and {type(one) for one in (*params.values(), threads)} == {int}
    assert 1 <= threads <= 64
    return _make(problem, params, threads)
"""


@pytest.fixture
def path(monkeypatch, tmp_path):
    """A store, and two algorithms that fail on parameters that they do not offer."""
    monkeypatch.setattr(measure, "_MIN_SECONDS", 0.01)
    texts = (source(cost=1e6) + _TRUSTING, source(cost=5e6) + _TRUSTING)
    with registry(monkeypatch, tmp_path, quick=texts[0], slow=texts[1]):
        yield store(monkeypatch, tmp_path)


def entry(problem=PROBLEM, params=(("rows", 2),)) -> Entry:
    winner, threads = Candidate("slow", params), dispatch._threads(problem, None)
    measured = tuple(Measurement(Candidate("slow", (("rows", n),)), 1, 100 + n, 50 + n) for n in (1, 2))
    return Entry(problem.descriptor, threads, winner, 1, 2.0, 1.5, 0.1, 9.0, 0.5, 64, winner, 0.1, measured=measured)


def check_calls(warned: int | None = None) -> None:
    """A convolution is right, twice, with so many warnings in all."""
    wisdom._Index.seen = None
    dispatch.forget()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            assert np.array_equal(fastconv.conv2d(X, WEIGHT), EXPECTED)
            dispatch.forget()
    assert warned is None or [w.category for w in seen] == [RuntimeWarning] * warned


WRONG = [
    ("threads", True), ("threads", -1), ("threads", 0), ("threads", 10**9), ("threads", 2.0), ("threads", "2"),
    ("run_threads", 65), ("run_threads", None), ("run_threads", 0), ("run_threads", False),
    ("ns", "1"), ("ns", -1.0), ("ns", 10**400), ("best_ns", None), ("spread", []), ("gflops", True),
    ("peak_fraction", "half"), ("workspace", 1.5), ("workspace", -1), ("workspace", 10**30), ("margin", -2),
    ("time", "now"), ("time", 3), ("time", "9999-99-99T00:00:00+00:00"), ("problem", 7), ("problem", ["n1"]),
    ("problem", "n1c3"), ("problem", PROBLEM.descriptor + " "), ("problem", "n99999999999c2h4w4k3r3s3_f32_nchw_raw"),
    ("problem", PROBLEM.descriptor + "\0"), ("problem", "../../etc/passwd"),
    ("candidate", {}), ("candidate", "slow"), ("candidate", {"algorithm": "slow", "params": [["rows", 1]]}),
    ("candidate", {"algorithm": "../slow", "params": {}}), ("candidate", {"algorithm": ["slow"], "params": {}}),
    ("candidate", {"algorithm": "slow", "params": {"rows": 1.0}}),
    ("candidate", {"algorithm": "slow", "params": {"rows": True}}),
    ("candidate", {"algorithm": "slow", "params": {"rows": [1]}}),
    ("candidate", {"algorithm": "slow", "params": {"rows": 10**40}}),
    ("runner_up", 0), ("runner_up", False), ("runner_up", {"algorithm": "slow"}),
    ("measured", {}), ("measured", [1]), ("measured", [["slow rows=1", 1, 1]]), ("measured", [[[], 1, 5, 5]]),
    ("measured", [["slow rows=1", 1, 0, 5]]), ("measured", [["slow rows", 1, 5, 5]]),
    ("measured", [["slow rows=\u0663", 1, 5, 5]]), ("measured", [["slow rows=1_0", 1, 5, 5]]),
    ("measured", [["slow rows=1", 1, 10**300, 5]]),
    ("measured", [["slow rows=1", 65, 5, 5]]), ("measured", [["slow rows=1", 1, 5, 5]] * 1001),
    ("sources", []), ("sources", {"slow": 1}), ("sources", {"a b": "x"}), ("sources", {"slow": "\x1b[2J"}),
    ("machine", None), ("machine", {"cpu": "\x1b[2J"}), ("machine", {"cpu": ["x"]}), ("machine", {"cpu": "x" * 201}),
    ("machine", {"cores": 10**30}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: ascii(value)[:30])
def test_a_field_of_the_wrong_kind_damages_the_line(path, name, value):
    wisdom.append(entry())
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}) + "\n")
    assert wisdom.rows(path) == ([], 1, 1)
    check_calls(warned=1)


LINES = {
    "deep list": b"[" * 60_000,
    "deep object": b'{"machine":' * 5_000 + b"1" + b"}" * 5_000,
    "deep unknown field": b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "long number": b'{"threads":' + b"1" * 5_000 + b"}",
    "long line": b'{"x":"' + b"x" * lines.LONGEST + b'"}',
    "very long line": b"[" * 5_000_000,
    "bytes": bytes(range(11, 256)),
    "zeros": b"\0" * 4096,
    "no object": b"null",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_hostile_line_is_skipped(path, line):
    wisdom.append(entry())
    good = path.read_bytes()
    path.write_bytes(good + line + b"\n" + good)
    found, damaged, first = wisdom.rows(path)
    assert (len(found), damaged, first) == (2, 1, 2)
    check_calls(warned=1)
    assert dispatch.choose(PROBLEM).source == "wisdom"


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number(path, word):
    wisdom.append(entry())
    path.write_text(path.read_text().replace('"ns":2.0', f'"ns":{word}'))
    assert wisdom.rows(path) == ([], 1, 1)


def test_parameters_that_no_algorithm_offers_are_not_run(path):
    wisdom.append(entry(params=(("rows", 1 << 40),)))
    check_calls(warned=0)
    (result,) = search.tune(PROBLEM)  # nor is it known, nor tried
    assert (result.status, result.rejected) == ("measured", ())
    assert result.entry.candidate.params == (("rows", 1),)


_GARBAGE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([]) | st.just({})


def _places(value, place=()):
    """Where in a document values are, as tuples of keys."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*place, key))


def _changed(document, place, value):
    if not place:
        return value
    inner = copy.deepcopy(document)
    found = inner
    for key in place[:-1]:
        found = found[key]
    found[place[-1]] = value
    return inner


_ONCE = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_ONCE
@given(data=st.data())
def test_any_value_anywhere(path, data):
    path.unlink(missing_ok=True)
    wisdom.append(entry())
    document = json.loads(path.read_text())
    known = st.sampled_from([1, 2, 64, 65, "slow rows=2", "quick", PROBLEM.descriptor])
    place = data.draw(st.sampled_from(list(_places(document))))
    changed = _changed(document, place, data.draw(_GARBAGE | known))
    path.write_text(json.dumps(changed) + "\n")
    check_calls()
    wisdom.export(path.with_name("exported"))


@_ONCE
@given(data=st.data())
def test_any_bytes_anywhere(path, data):
    path.unlink(missing_ok=True)
    wisdom.append(entry())
    row = path.read_bytes()
    at, length = data.draw(st.integers(0, len(row))), data.draw(st.integers(0, 30))
    path.write_bytes(row + row[:at] + data.draw(st.binary(max_size=8)) + row[at + length :] + row)
    check_calls()
    assert len(wisdom.rows(path)[0]) >= 1
    wisdom.append(entry())
    assert len(wisdom.rows(path)[0]) >= 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "below a file"])
def test_a_store_that_is_no_file(path, kind, monkeypatch):
    if kind == "device":
        monkeypatch.setenv("FASTCONV_WISDOM", "/dev/full")
        monkeypatch.setattr(lines, "locked", lambda file: warnings.catch_warnings())  # no lock file in /dev
    elif kind == "below a file":
        path.touch()
        monkeypatch.setenv("FASTCONV_WISDOM", str(path / "wisdom.jsonl"))
    else:
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    check_calls(warned=int(kind != "below a file"))
    with pytest.warns(RuntimeWarning, match="count for this process only") as seen:
        results = search.tune(["n1c3h5w5k2r3s3", "n2c3h5w5k2r3s3"])
    assert len(seen) == 1
    assert [result.status for result in results] == ["measured"] * 2
    for result in results:
        assert dispatch.choose(result.problem).entry == result.entry
    assert [result.status for result in search.tune("n1c3h5w5k2r3s3")] == ["known"]
    with pytest.raises(OSError):
        wisdom.append(entry())
    with pytest.raises(OSError):
        wisdom.clear()


def test_a_user_without_a_home(path, monkeypatch):
    for name in ("FASTCONV_WISDOM", "HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert wisdom.path() is None
    check_calls(warned=0)
    with pytest.warns(RuntimeWarning, match="let FASTCONV_WISDOM name a file"):
        (result,) = search.tune("n1c3h5w5k2r3s3")
    assert dispatch.choose(result.problem).entry == result.entry


@pytest.mark.parametrize("parts", [[1, 7], [0], [5]])
def test_a_disk_that_fills_up_leaves_whole_lines(path, monkeypatch, parts):
    wisdom.append(entry())
    before, real, left = path.read_bytes(), os.write, list(parts)

    def write(descriptor: int, data: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: left.pop()])

    monkeypatch.setattr(lines.os, "write", write)
    with pytest.raises(OSError, match="No space"):
        wisdom.append(entry())
    assert path.read_bytes() == before
    monkeypatch.setattr(lines.os, "write", lambda descriptor, data: real(descriptor, data[:100]))
    wisdom.append(entry())
    assert len(wisdom.rows(path)[0]) == 2


@pytest.mark.parametrize(
    ("tail", "rows"),
    [(b'{"problem":"n1c', 2), (b"x" * (lines.LONGEST + 9), 2), ("row", 3)],
    ids=["torn", "long", "row"],
)
def test_what_follows_a_line_without_an_end(path, tail, rows):
    wisdom.append(entry())
    good = path.read_bytes()
    path.write_bytes(good + (good[:-1] if tail == "row" else tail))
    check_calls(warned=int(len(tail) > lines.LONGEST))
    wisdom.append(entry())
    found, damaged, _ = wisdom.rows(path)
    assert (len(found), damaged) == (rows, int(len(tail) > lines.LONGEST))


def test_a_line_that_takes_the_place_of_a_torn_one_is_no_damage(path, monkeypatch):
    wisdom.append(entry())
    read, looks = lines.read, []

    def read_amid(*arguments):
        looks.append(path.stat())
        yield from read(*arguments)
        if len(looks) == 1:  # half of the torn line, and half of the new one
            os.utime(path, ns=(0, 0))
            yield 2, b'{"problem":"n1c3h4"}\n'

    monkeypatch.setattr(lines, "read", read_amid)
    assert [len(wisdom.rows(path)[0]), *wisdom.rows(path)[1:], len(looks)] == [1, 0, 0, 3]


def test_of_a_large_file_the_end_is_read(path, monkeypatch):
    for _ in range(20):
        wisdom.append(entry())
    monkeypatch.setattr(lines, "MOST", path.stat().st_size // 2)
    with pytest.warns(RuntimeWarning, match="only"):
        assert wisdom.lookup(PROBLEM, entry().threads) is not None
    assert len(wisdom.rows(path)[0]) == 10


def test_the_store_is_not_exported_onto_itself(path):
    wisdom.append(entry())
    with pytest.raises(ValueError, match="another file"):
        wisdom.export(path)
    assert len(wisdom.rows(path)[0]) == 1


def test_clear_removes_damage_too(path):
    path.write_text("damaged\n")
    assert wisdom.clear() == 0
    assert path.read_text() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the scenarios fork")
@pytest.mark.parametrize(("name", "count"), [("killed", 10), ("killed, with export and merge", 5), ("cleared", 10)])
def test_processes_that_are_killed_lose_nothing_that_was_finished(name, count):
    found = scenario(name, script="stores.py", count=count)  # asserts that nothing is wrong
    assert found.get("reported", 1) > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the scenarios fork")
def test_an_interrupted_tune_goes_on_where_it_was():
    found = scenario("interrupted", script="stores.py", count=2)
    assert found["SIGINT"] + found["SIGKILL"] == 2

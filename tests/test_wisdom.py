"""The wisdom store: what is written is found again, by the right machine, whatever happened to the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tuning_support import registry, source, store

from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.tuning import validators, wisdom
from fastconv.tuning.wisdom import Entry

PROBLEM = parse("n1c8h6w6k16r3s3p1_f32_nhwc")
OTHER = parse("n2c8h6w6k16r3s3p1_f32_nhwc_bias_relu")


@pytest.fixture
def path(monkeypatch, tmp_path):
    return store(monkeypatch, tmp_path)


def entry(problem=PROBLEM, threads=2, algorithm="direct", ns=1000.0) -> Entry:
    winner, second = Candidate(algorithm, (("rows", 7), ("vectors", 2))), Candidate("im2col", (("rows", 4),))
    return Entry(problem.descriptor, threads, winner, 1, ns, ns - 10, 0.01, 50.0, 0.25, 4096, second, 0.125)


def test_an_entry_is_found_again(path):
    stored = wisdom.append(entry())
    assert wisdom.lookup(PROBLEM, 2) == stored
    assert (stored.ns, stored.margin, stored.runner_up) == (1000.0, 0.125, Candidate("im2col", (("rows", 4),)))
    assert stored.time.endswith("+00:00")


def test_problem_and_threads_are_the_key(path):
    wisdom.append(entry())
    assert wisdom.lookup(PROBLEM, 1) is None
    assert wisdom.lookup(OTHER, 2) is None


def test_an_entry_without_a_runner_up(path):
    wisdom.append(Entry(PROBLEM.descriptor, 1, Candidate("reference"), 1, 9.0, 9.0, 0.0, 1.0, 0.1, 0))
    found = wisdom.lookup(PROBLEM, 1)
    assert (found.runner_up, found.margin) == (None, None)


def test_the_latest_row_counts(path):
    wisdom.append(entry(ns=1000.0))
    wisdom.append(entry(ns=2000.0))
    assert wisdom.lookup(PROBLEM, 2).ns == 2000.0
    assert [e.ns for e in wisdom.entries()] == [2000.0]
    assert len(path.read_text().splitlines()) == 2


def test_no_file_means_no_wisdom(path):
    assert wisdom.lookup(PROBLEM, 2) is None
    assert wisdom.entries() == []
    assert wisdom.history() == []


def test_a_change_by_another_process_is_seen(path):
    wisdom.append(entry())
    assert wisdom.lookup(OTHER, 2) is None
    line = path.read_text().replace(PROBLEM.descriptor, OTHER.descriptor)
    with path.open("a") as file:
        file.write(line)
    assert wisdom.lookup(OTHER, 2) is not None


@pytest.mark.parametrize("name", ["fastconv", "numba", "llvmlite", "cpu", "vector_bytes", "cores", "source"])
def test_another_machine_or_version_is_passed_over(path, name):
    wisdom.append(entry())
    row = json.loads(path.read_text())
    row["machine"][name] = "another"
    path.write_text(json.dumps(row) + "\n")
    assert wisdom.lookup(PROBLEM, 2) is None
    (found,) = wisdom.history()
    assert found.stale.startswith(f"{name} was another, is ")


def test_an_unknown_algorithm_is_passed_over(path):
    wisdom.append(entry())
    path.write_text(path.read_text().replace('"algorithm":"direct"', '"algorithm":"winograd"'))
    assert wisdom.lookup(PROBLEM, 2) is None
    assert "winograd" in wisdom.history()[0].stale


DAMAGE = [
    b"not json\n",
    b"[1, 2]\n",
    b'{"problem": "n1c8h6w6k16r3s3p1_f32_nhwc"}\n',
    b"\xff\xfe\x00\n",
    b'{"problem":"nonsense","threads":2,"machine":{}}\n',
    b"3\n",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_are_skipped_with_one_warning(path, damage):
    wisdom.append(entry())
    path.write_bytes(damage + path.read_bytes() + damage)
    with pytest.warns(RuntimeWarning, match=r"skipped 2 damaged line\(s\), the first is line 1"):
        assert wisdom.lookup(PROBLEM, 2) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wisdom.append(entry(OTHER))
        assert wisdom.lookup(OTHER, 2) is not None


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_a_torn_line_does_not_spoil_the_next(path):
    wisdom.append(entry())
    path.write_bytes(path.read_bytes() + b'{"problem":"n1c8h6')
    wisdom.append(entry(OTHER))
    assert wisdom.lookup(PROBLEM, 2) is not None
    assert wisdom.lookup(OTHER, 2) is not None


def test_unknown_fields_of_a_later_version_do_no_harm(path):
    wisdom.append(entry())
    path.write_text(path.read_text().replace('{"', '{"humidity":3,"', 1))
    assert wisdom.lookup(PROBLEM, 2) is not None


WRITER = """
import sys
from fastconv.tuning import wisdom
from fastconv.algorithms import Candidate
who = int(sys.argv[1])
for n in range(1, 21):
    descriptor = f"n{n}c8h6w6k16r3s3p1_f32_nhwc"
    wisdom.append(wisdom.Entry(descriptor, who, Candidate("direct", (("rows", 7),)), 1, n, n, 0, 1, 1, 0))
"""


def test_concurrent_writers_lose_nothing(path):
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(who)], env=env) for who in range(1, 5)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    found, damaged, _ = wisdom.rows(path)
    assert not damaged
    keys = {(row.entry.problem, row.entry.threads) for row in found}
    assert len(found) == len(keys) == 80
    assert wisdom.lookup(parse("n7c8h6w6k16r3s3p1_f32_nhwc"), 3).ns == 7


def test_an_edit_invalidates_the_rows_of_its_kernel_only(monkeypatch, path, tmp_path):
    with registry(monkeypatch, tmp_path, quick=source(), slow=source()):
        wisdom.append(entry(algorithm="quick"))
        wisdom.append(entry(OTHER, algorithm="slow"))
        with (tmp_path / "made_up_slow.py").open("a") as file:
            file.write("# edited\n")
        validators.source_hash.cache_clear()
        stale = [row.entry.problem for row in wisdom.history() if row.stale]
        assert stale == [OTHER.descriptor]
        monkeypatch.setattr(wisdom._Index, "seen", None)  # as in a new process
        assert wisdom.lookup(PROBLEM, 2) is not None
        assert wisdom.lookup(OTHER, 2) is None


def test_the_source_hash_follows_what_a_kernel_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [
        "import math",
        "from fastconv.cpu.direct import make",
        "from fastconv.cpu.pack import (",
        "    Packed,",
        ")",
    ]
    lines += ["from fastconv.cpu import bands, lanewise as lanes", "import fastconv.cpu.host"]
    (tmp_path / "made_up_kernel.py").write_text("\n".join(lines))
    seen = []
    original = validators._source_file
    monkeypatch.setattr(validators, "_source_file", lambda name: seen.append(name) or original(name))
    validators.source_hash.__wrapped__("made_up_kernel")
    named = {"made_up_kernel", "fastconv.cpu.direct", "fastconv.cpu.contract", "fastconv.jit", "fastconv.cpu.pack"}
    assert named | {"fastconv.cpu.bands", "fastconv.cpu.lanewise", "fastconv.cpu.host"} <= set(seen)
    assert "fastconv.problem" not in seen


def test_export_and_merge(path, tmp_path, monkeypatch):
    wisdom.append(entry(ns=1000.0))
    wisdom.append(entry(ns=2000.0))
    wisdom.append(entry(OTHER))
    assert wisdom.export(tmp_path / "exported.jsonl") == 2
    monkeypatch.setenv("FASTCONV_WISDOM", str(tmp_path / "elsewhere" / "wisdom.jsonl"))
    assert wisdom.merge(tmp_path / "exported.jsonl") == 2
    assert wisdom.merge(tmp_path / "exported.jsonl") == 0
    assert wisdom.lookup(PROBLEM, 2).ns == 2000.0


def test_merging_older_rows_keeps_the_newer_one(path, tmp_path, monkeypatch):
    wisdom.append(entry(ns=1000.0))
    wisdom.export(tmp_path / "old.jsonl")
    wisdom.clear()
    wisdom.append(entry(ns=2000.0))
    assert wisdom.merge(tmp_path / "old.jsonl") == 1
    assert wisdom.lookup(PROBLEM, 2).ns == 2000.0


def test_clear_forgets_everything(path):
    assert wisdom.clear() == 0
    wisdom.append(entry())
    assert wisdom.clear() == 1
    assert wisdom.lookup(PROBLEM, 2) is None


def test_listeners_hear_of_every_change(path, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(wisdom, "_listeners", [])
    wisdom.on_change(lambda: heard.append(wisdom.lookup(PROBLEM, 2)))
    wisdom.append(entry())
    wisdom.clear()
    assert [found is not None for found in heard] == [True, False]


def test_without_platformdirs_there_is_no_store(monkeypatch):
    monkeypatch.delenv("FASTCONV_WISDOM", raising=False)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert wisdom.path() is None
    assert wisdom.lookup(PROBLEM, 2) is None
    with pytest.raises(ImportError, match=r"pip install fastconv\[tune\]"):
        wisdom.append(entry())


def test_without_filelock_nothing_is_written(path, monkeypatch):
    monkeypatch.setattr(wisdom, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"filelock: pip install fastconv\[tune\]"):
        wisdom.append(entry())


def test_the_default_place_is_the_users_data_directory(monkeypatch):
    monkeypatch.delenv("FASTCONV_WISDOM", raising=False)
    assert wisdom.path().name == "wisdom.jsonl"
    assert "fastconv" in str(wisdom.path().parent)

"""The command line: what goes to stdout and to stderr, JSON, and exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_support import registry, source, store
from typer.testing import CliRunner

import fastconv.cli
from fastconv._version import __version__
from fastconv.cli import machine, output
from fastconv.cli.commands import app
from fastconv.tuning import measure, search, warm

TINY = "n1c3h5w6k4r3s3p1_f32_nhwc"
POOL = "n1c3h6w6_max2u2_f32_nhwc"


@pytest.fixture(autouse=True)
def made_up(monkeypatch, tmp_path):
    """Two algorithms, a store and short timing."""
    store(monkeypatch, tmp_path)
    monkeypatch.setattr(measure, "_MIN_SECONDS", 0.01)
    with registry(monkeypatch, tmp_path, slow=source(cost=1e6, seconds=0.003), quick=source(cost=5e6)):
        yield


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_version():
    assert run("--version").stdout.strip() == __version__


def test_tune_prints_a_table():
    result = run("tune", TINY, POOL)
    rows = [line for line in result.stdout.splitlines() if TINY in line or POOL in line]
    assert len(rows) == 2
    assert all("quick rows=1" in row and "measured" in row for row in rows)
    for heading in ("problem", "winner", "runner-up", "margin", "GFLOP/s", "peak", "workspace"):
        assert heading in result.stdout
    assert TINY in result.stderr  # the progress bar
    assert "known" in run("tune", TINY).stdout
    assert "measured" in run("tune", TINY, "--retune").stdout


def test_tune_as_json():
    first, second = lines(run("tune", TINY, POOL, "--json"))
    assert (first["problem"], first["status"], first["rejected"]) == (TINY, "measured", [])
    assert first["entry"]["candidate"] == {"algorithm": "quick", "params": {"rows": 1}}
    assert second["problem"] == POOL


def test_tune_a_network(monkeypatch):
    seen = []
    failed = lambda problem, *_: seen.append(problem) or search.Result(problem, "failed")  # noqa: E731
    monkeypatch.setattr(search, "tune_one", failed)
    options = ["--batch", "2", "--dtype", "float32", "--memory-format", "contiguous", "--direction", "forward"]
    result = run("tune", "alexnet", *options, "--json", code=1)
    assert [row["status"] for row in lines(result)] == ["failed"] * 5
    assert {(p.batch, p.dtype, p.memory_format) for p in seen} == {(2, "float32", "contiguous")}


def test_tune_interrupted(monkeypatch):
    original = search.tune_one

    def interrupted(problem, *rest):
        if problem.descriptor == POOL:
            raise KeyboardInterrupt
        return original(problem, *rest)

    monkeypatch.setattr(search, "tune_one", interrupted)
    result = run("tune", TINY, POOL, code=130)
    assert "quick rows=1" in result.stdout
    assert "kept 1 of 2 problems, run again for the others" in result.stderr


def test_tune_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(search, "_TRUSTED_NOISE", -1.0)
    result = run("tune", TINY, "--json")
    assert lines(result)[0]["disturbed"]
    assert "other programs used the CPU while 1 problem(s) were measured" in result.stderr


def test_a_table_too_wide_for_the_terminal_becomes_records(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    output.show_table(None, {"problem": "left", "winner": "left"}, [[TINY, "direct rows=6 vectors=4"]])
    assert [line.strip() for line in terminal.getvalue().splitlines()] == [TINY, "winner       direct rows=6 vectors=4"]


def test_tune_for_raw_weights():
    (row,) = lines(run("tune", "n1c2h5w5k3r3s3", "--raw", "--budget", "0", "--json"))
    assert row["problem"] == "n1c2h5w5k3r3s3_f32_nchw_raw"


def test_tune_within_a_budget():
    assert lines(run("tune", TINY, "--budget", "0", "--json"))[0]["status"] == "out of budget"
    assert "out of budget" in run("tune", TINY, "--budget", "0").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "lenet"], "descriptor 'lenet'"),
        (["tune", TINY, "--direction", "sideways"], "direction must be one of forward, backward_input"),
        (["tune", "vgg16", "--dtype", "int8"], "dtype must be one of"),
        (["tune", TINY, "--threads", "4096"], "threads must be from 1 to"),
        (["explain", "n1c3"], "descriptor 'n1c3'"),
        (["explain", TINY, "--algorithm", "winograd"], "algorithm must be None or one of slow, quick"),
        (["explain", TINY, "--threads", "0"], "threads must be from 1 to"),
        (["bench", "n1c3h5w6k4r9s9"], "kernel_size 9"),
        (["list", "lenet"], "name must be one of"),
        (["warmup", "--dtype", "int8"], "dtype must be one of"),
    ],
)
def test_a_bad_argument_is_one_line_on_stderr(arguments, message):
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1


def test_explain_an_algorithm_that_does_not_fit():
    result = run("explain", "n1c3h5w6k4r3s3_f64_nhwc", "--algorithm", "quick", code=2)
    assert "it takes float32 only" in result.stderr


def test_explain():
    before = run("explain", TINY).stdout
    assert "slow rows=1" in before and "cost model" in before and "fastconv tune" in before
    run("tune", TINY)
    after = run("explain", TINY).stdout
    assert "quick rows=1" in after and "wisdom" in after and "runner-up" in after
    assert "GFLOP/s" in after and "workspace" in after
    (account,) = lines(run("explain", TINY, "--json"))
    assert (account["algorithm"], account["source"]) == ("quick", "wisdom")
    assert account["entry"]["problem"] == TINY
    assert lines(run("explain", POOL, "--json"))[0]["entry"] is None
    assert lines(run("explain", TINY, "--json", "--algorithm", "slow"))[0]["source"] == "requested"


def test_bench():
    result = run("bench", TINY, "--seconds", "0.1")
    assert "quick rows=1" in result.stdout and "slow rows=1" in result.stdout
    assert TINY in result.stderr
    rows = lines(run("bench", TINY, POOL, "--seconds", "0.1", "--json"))
    assert [(row["problem"], row["algorithm"]) for row in rows[:2]] == [(TINY, "quick"), (TINY, "slow")]
    assert [row["chosen"] for row in rows[:2]] == [False, True]
    assert all(row["best_ns"] <= row["median_ns"] for row in rows)
    assert run("wisdom", "show", "--json").stdout == ""


def test_list():
    assert "resnet50" in run("list").stdout
    (known,) = lines(run("list", "--json"))
    assert known["networks"]["resnet50"] == 20
    assert known["algorithms"]["conv"] == ["slow", "quick"]
    assert run("list", "vgg16", "--batch", "8").stdout.splitlines()[0] == "n8c3h224w224k64r3s3p1_f32_nhwc_bias_relu"
    assert len(lines(run("list", "vgg16", "--json"))[0]) == 9


def test_info(monkeypatch):
    monkeypatch.setattr(machine.peak, "copy_bandwidth", lambda threads: 5e9)
    text = run("info").stdout
    for heading in ("CPU", "threads", "FMA peak", "memory", "GPU", "kernel cache", "wisdom"):
        assert heading in text
    (facts,) = lines(run("info", "--json"))
    assert facts["fastconv"] == __version__
    assert facts["fma_gflops"]["float32"] > 0
    assert facts["wisdom"].endswith("wisdom.jsonl")


def test_info_lists_gpus(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(tool))
    assert machine._gpus() == ["NVIDIA H100"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine._gpus() == []
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine._gpus() == []


def test_warmup(monkeypatch):
    monkeypatch.setattr(warm, "_SHAPES", (TINY.split("_")[0],))
    assert "4 kernels ready" in run("warmup").stdout
    (facts,) = lines(run("warmup", "--json"))
    assert facts["kernels"] == 4 and facts["cache"]


def test_wisdom_commands(tmp_path, monkeypatch):
    run("tune", TINY)
    assert run("wisdom", "path").stdout.strip() == str(tmp_path / "wisdom.jsonl")
    assert "quick rows=1" in run("wisdom", "show").stdout
    (row,) = lines(run("wisdom", "show", "--json"))
    assert (row["problem"], row["stale"]) == (TINY, None)
    exported = tmp_path / "exported.jsonl"
    exported.write_text(run("wisdom", "export").stdout)
    assert "wrote 1 rows" in run("wisdom", "export", str(tmp_path / "again.jsonl")).stderr
    assert (tmp_path / "again.jsonl").read_text() == exported.read_text()
    assert "removed 1 rows" in run("wisdom", "clear", "--yes").stderr
    assert run("wisdom", "show", "--json").stdout == ""
    assert "added 1 rows" in run("wisdom", "merge", str(exported)).stderr
    assert len(lines(run("wisdom", "show", "--json"))) == 1


def test_wisdom_of_elsewhere_is_shown_on_request(tmp_path):
    run("tune", TINY)
    path = tmp_path / "wisdom.jsonl"
    path.write_text(path.read_text().replace('"numba":"', '"numba":"9.'))
    assert lines(run("wisdom", "show", "--json")) == []
    (row,) = lines(run("wisdom", "show", "--all", "--json"))
    assert row["stale"].startswith("numba was 9.")
    assert "numba was 9." in run("wisdom", "show", "--all").stdout


def test_wisdom_clear_asks(tmp_path):
    run("tune", TINY)
    result = CliRunner().invoke(app, ["wisdom", "clear"], input="n\n")
    assert result.exit_code == 1 and "Remove all rows of" in result.stderr
    assert len(lines(run("wisdom", "show", "--json"))) == 1


def test_a_missing_file_to_merge():
    result = run("wisdom", "merge", "nowhere.jsonl", code=1)
    assert "nowhere.jsonl" in result.stderr and result.stdout == ""


def test_main_without_typer_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(fastconv.cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        fastconv.cli.main()
    assert stopped.value.code == 1
    assert "pip install fastconv[cli]" in capsys.readouterr().err


def test_main_runs_the_command():
    command = [sys.executable, "-c", "from fastconv.cli import main; main()", "list"]
    root = Path(fastconv.cli.__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "mobilenet_v2" in done.stdout and done.stderr == ""


def test_tune_says_at_once_that_the_store_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTCONV_WISDOM", str(tmp_path / "file" / "wisdom.jsonl"))
    monkeypatch.setattr(search, "tune_one", lambda *_: pytest.fail("measured in vain"))
    result = run("tune", TINY, code=1)
    assert result.stdout == "" and str(tmp_path / "file") in result.stderr
    assert "let FASTCONV_WISDOM name a file that can be" in result.stderr


def test_a_store_that_cannot_be_read_is_one_line_on_stderr(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_WISDOM", str(tmp_path))
    for command in (["show"], ["export"], ["clear", "--yes"]):
        result = run("wisdom", *command, code=1)
        assert "fastconv: [Errno 21] Is a directory" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_damaged_store_is_shown_exported_and_cleared(tmp_path):
    run("tune", TINY)
    path = tmp_path / "wisdom.jsonl"
    good = path.read_text()
    path.write_text("[" * 50_000 + "\n" + good + "damaged\n")
    with pytest.warns(RuntimeWarning, match=r"skipped 2 damaged line\(s\), the first is line 1"):
        assert len(lines(run("wisdom", "show", "--all", "--json"))) == 1
    assert run("wisdom", "export").stdout == good
    assert "target must be another file" in run("wisdom", "export", str(path), code=2).stderr
    assert "removed 1 rows" in run("wisdom", "clear", "--yes").stderr
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "module", "name"), [(["bench", TINY], measure, "workload"), (["warmup"], warm, "menu")]
)
def test_control_c_ends_any_command(monkeypatch, arguments, module, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    assert run(*arguments, code=130).stdout == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(130)])
def test_main_says_that_it_was_interrupted(monkeypatch, capsys, error):
    def interrupted():
        raise error

    monkeypatch.setattr("fastconv.cli.commands.app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        fastconv.cli.main()
    assert (stopped.value.code, capsys.readouterr().err) == (130, "fastconv: interrupted\n")


def test_info_where_no_kernel_can_be_kept(monkeypatch):
    monkeypatch.setattr(machine, "cache_path", lambda: None)
    monkeypatch.setattr(machine.peak, "copy_bandwidth", lambda threads: 5e9)
    assert "none: let NUMBA_CACHE_DIR name a folder" in run("info").stdout

"""What fastconv does not do: run what it reads, rely on asserts, and open, write or start anything when imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastconv

PACKAGE = Path(fastconv.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
SMOKE = Path(__file__).parents[1] / "bench" / "smoke.py"

RUNS_DATA = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dbm", "dill", "cloudpickle", "joblib", "yaml", "code",
}  # fmt: skip
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "asyncio", "socketserver", "xmlrpc", "requests"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
EXCEPTIONS = {
    "cli/machine.py": {"subprocess"},  # asks nvidia-smi about GPUs
    "jit_cache.py": {"pickle"},  # what Numba keeps of a function that it has compiled on this machine
}


def modules(tree: ast.AST) -> Iterator[str]:
    """Roots of all that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the text of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def complaints(name: str, tree: ast.AST) -> list[str]:
    """What in a file might run data as code, or reach out."""
    banned = (RUNS_DATA | NETWORK | {"subprocess", "multiprocessing"}) - EXCEPTIONS.get(name, set())
    found = [f"imports {module}" for module in modules(tree) if module in banned]
    for called, node in calls(tree):
        if called in RUNS_TEXT | {"os.system", "os.popen"}:
            found.append(f"line {node.lineno} calls {called}")
        if called in ("np.load", "numpy.load", "np.lib.format.read_array", "np.memmap"):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if options.get("allow_pickle") != "False":
                found.append(f"line {node.lineno}: {called} without allow_pickle=False")
        if any(option.arg == "allow_pickle" and ast.unparse(option.value) != "False" for option in node.keywords):
            found.append(f"line {node.lineno} allows pickles")
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_data_is_never_run(name: str) -> None:
    assert complaints(name, SOURCES[name]) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from yaml import load", "def f():\n    import marshal", "np.load(path)", "eval(text)",
     "np.load(path, allow_pickle=True)", "import urllib.request", "import subprocess", "os.system(text)"],
)  # fmt: skip
def test_what_would_run_data_is_noticed(code: str) -> None:
    assert complaints("made_up.py", ast.parse(code))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_asserts_only_narrow_types(name: str) -> None:
    """Under -O they are gone: nothing that a caller can get wrong, and nothing with an effect, may be in them."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Assert):
            parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            for part in map(ast.unparse, parts):
                assert part.endswith(" is not None") or part.startswith("isinstance("), f"line {node.lineno}: {part}"


AUDIT = """
import os, sys, threading, numba, numpy
seen = []
starts = ("socket.", "subprocess.", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "_thread.start")
writes = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.")
def hook(event, args):
    if event.startswith(starts):
        seen.append(event)
    elif event.startswith(writes) or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if os.path.commonpath([os.path.abspath(args[0]), kept]) != kept:
            seen.append(f"{event} {args[0]}")
kept = os.environ["NUMBA_CACHE_DIR"]
sys.addaudithook(hook)
""".strip()


def python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run another interpreter, which finds the same fastconv."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def audited(action: str, folder: Path) -> list[str]:
    """What an action opened, wrote or started, outside of Numba's folder for kernels."""
    (folder / "kernels").mkdir()
    end = "seen += [f'thread {t.name}' for t in threading.enumerate()[1:]]\nprint(*seen, sep='\\n')"
    done = python("-c", f"{AUDIT}\n{action}\n{end}", cwd=folder, NUMBA_CACHE_DIR=str(folder / "kernels"))
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_importing_fastconv_opens_writes_and_starts_nothing(tmp_path: Path) -> None:
    assert audited("import fastconv", tmp_path) == []
    # Numba tries whether it may write to its folder, and takes away what it wrote.
    assert [path for path in (tmp_path / "kernels").rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize(
    "action",
    ["open('made', 'w')", "os.mkdir('made')", "import socket; socket.socket()", "os.fork() or os._exit(0)",
     "import subprocess; subprocess.run(['true'])", "threading.Timer(0.5, int).start()"],
)  # fmt: skip
def test_what_an_import_should_not_do_is_noticed(action: str, tmp_path: Path) -> None:
    assert len(audited(action, tmp_path)) >= 1


def test_an_archive_is_refused_with_a_reason(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "fastconv.zip", "w") as archive:
        for path in PACKAGE.rglob("*.py"):
            archive.write(path, path.relative_to(PACKAGE.parent))
    done = python("-c", "import fastconv", cwd=tmp_path, PYTHONPATH=str(tmp_path / "fastconv.zip"))
    assert done.returncode == 1
    assert "ImportError: fastconv runs from a folder, not from an archive: unpack, or install, " in done.stderr


@pytest.mark.parametrize("flags", [["-OO"], ["-W", "error"], ["-X", "dev"]], ids=" ".join)
def test_other_ways_to_run_python(flags: list[str], tmp_path: Path) -> None:
    done = python(*flags, str(SMOKE), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

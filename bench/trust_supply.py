"""What fastconv installs, with which versions it works, and what a hostile checkpoint can do.

    python bench/trust_supply.py --python python3.11 --python python3.12 --markdown docs/trust.md

Builds a wheel, installs it beside the oldest and the newest packages that pyproject.toml admits, and runs a part of the
tests there, away from the sources. `--short` checks the wheel and tests the oldest packages of one Python; nothing is
written. Needs the extras `test` and `supply`, a package index, and Linux (a folder is mounted read-only).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import shorten

from archives import HOSTILE, load_elsewhere
from environments import ROOT, Environment, attempt, build, check_wheel, create, resolve, run
from pages import put
from report import circumstances, table

# By extra: caches, files, the command, arguments, other packages; kernels are tried by `smoke.py`.
TESTS = {
    "test": (
        "test_wisdom.py", "test_checkpoint.py", "test_hostile_checkpoints.py", "test_cli.py", "test_geometry.py",
        "test_problem.py", "test_reference.py",
    ),
    "cuda-test": ("test_cuda_ptx.py",),
}  # fmt: skip
COMPILES = "tune or bench or explain or module or torch"  # tests among them that compile much
EXTRAS = ("", "tune", "cli", "demo", "safetensors", "cuda")
CORE = {"fastconv", "numba", "numpy", "llvmlite"}
NAMES = {"highest": "newest", "lowest-direct": "oldest"}
SMOKE = ROOT / "bench" / "smoke.py"
WAYS = {
    "`python -O`": ("-O",), "`python -OO`": ("-OO",), "`python -W error`": ("-W", "error"),
    "`python -X dev`": ("-X", "dev"),
}  # fmt: skip
_VERSIONS = ["Python", "packages", "extra", "numba", "llvmlite", "numpy", "numba-cuda", "passed", "skipped"]
_INSTALLED = ["installed", "beside fastconv, numba, llvmlite, numpy", "packages", "MiB"]
_EXTRAS = "What an installation pulls in, on the first of these Pythons; `packages` counts all:"
_WAYS = "`bench/smoke.py` run in other ways, on the first of these Pythons with its newest packages:"
_HOSTILE = """\
Checkpoints that were made to do harm, each loaded by `fastconv.load` in a process of its own. All are refused by a
`ValueError` with the file's name; no file was left beside them, and no code in them ran. MiB is how much the process
grew at its peak. An archive that unpacks to no more than the memory that is free is unpacked. Checkpoints and wisdom
are never unpickled; Numba's cache of kernels is: keep `NUMBA_CACHE_DIR` where only you can write."""
_VERSIONS_NOTE = """\
It and the source archive come out the same, byte for byte, when they are built again with `SOURCE_DATE_EPOCH` set;
`twine check --strict` has nothing to say. Each line is a new environment with the wheel, an extra and the newest
packages there are for that Python, or, on the first, the oldest that pyproject.toml admits. What ran there, beside no
other fastconv: `bench/smoke.py`, with right results, and what compiles little of these tests:
{tests}. None failed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", help="a name or a path; may be given again")
    parser.add_argument("--short", action="store_true", help="the wheel, and the oldest packages of the first Python")
    parser.add_argument("--markdown", type=Path, help="write figures here")
    options = parser.parse_args()
    pythons = options.python or [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel, facts = built(work)
        if options.short:
            print(table(_VERSIONS, [row(work, wheel, pythons[0], "lowest-direct")[1]], left=3))
            return
        found = [row(work, wheel, python, "highest") for python in pythons]
        found.append(row(work, wheel, pythons[0], "lowest-direct"))
        found += [row(work, wheel, pythons[0], how, "cuda-test") for how in NAMES]
        tables = [
            introduction(facts), table(_VERSIONS, [cells for _, cells in found], left=3),
            _EXTRAS, table(_INSTALLED, extras(work, wheel, pythons[0]), left=2),
            _WAYS, table(["how", "result"], ways(work, found[0][0], wheel), left=2),
            _HOSTILE, table(["file", "what it is", "refused with", "MiB"], hostile(work), left=3),
        ]  # fmt: skip
    text = "\n\n".join(tables)
    print(text)
    if options.markdown:
        put(options.markdown, "supply", text)


def built(work: Path) -> tuple[Path, dict[str, int]]:
    """The wheel, once it is known to hold what it should, and the same bytes when built again."""
    archive, wheel = build(work / "first")
    for one, again in zip((archive, wheel), build(work / "second"), strict=True):
        if one.read_bytes() != again.read_bytes():
            raise ValueError(f"{one.name} differs when it is built again")
    run(sys.executable, "-m", "twine", "check", "--strict", archive, wheel)
    return wheel, check_wheel(wheel)


def row(work: Path, wheel: Path, python: str, how: str, extra: str = "test") -> tuple[Environment, list[str]]:
    """An environment of one Python with the oldest or newest packages, and a line on the tests in it."""
    print(python, how, extra, file=sys.stderr)
    environment = create(work / f"{Path(python).name}-{how}-{extra}", python, wheel, *resolve(python, extra, how))
    version = run(environment.python, "-c", "import platform; print(platform.python_version())").strip()
    counts = run_tests(work / "tests", environment, TESTS[extra])
    run(environment.python, SMOKE, **kernels(environment))
    packages = environment.packages()
    versions = (packages.get(name, "") for name in ("numba", "llvmlite", "numpy", "numba-cuda"))
    return environment, [version, NAMES[how], extra, *versions, *counts]


def run_tests(folder: Path, environment: Environment, names: tuple[str, ...]) -> list[str]:
    """How many tests passed and were skipped, from a copy beside which there is no fastconv but the wheel's."""
    for name in ("tests", "bench"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    files = [f"tests/{name}" for name in names]
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({COMPILES})", *files]
    done = attempt(*command, cwd=folder, **kernels(environment))
    if done.returncode:
        raise RuntimeError(f"in {environment.folder.name}: {done.stdout[-5000:]}{done.stderr[-1000:]}")
    return [re.findall(rf"(\d+) {word}|$", done.stdout.splitlines()[-1])[0] or "0" for word in ("passed", "skipped")]


def kernels(environment: Environment) -> dict[str, str]:
    """A folder for compiled kernels of its own, and Numba's threads as CI has them."""
    return {"NUMBA_CACHE_DIR": str(environment.folder.with_suffix(".kernels")), "NUMBA_NUM_THREADS": "2"}


def extras(work: Path, wheel: Path, python: str) -> list[list[str]]:
    """A line for the core and each extra: what pip would install."""
    rows = []
    for extra in EXTRAS:
        environment = create(work / f"extra-{extra}", python, f"{wheel}[{extra}]" if extra else wheel)
        packages = set(environment.packages())
        if not extra and packages != CORE:
            raise ValueError(f"the core pulls in {sorted(packages - CORE)}")
        name = f"fastconv[{extra}]" if extra else "fastconv"
        others = ", ".join(sorted(packages - CORE))
        rows.append([name, others, str(len(packages)), f"{environment.mebibytes():.0f}"])
        shutil.rmtree(environment.folder)
    return rows


def ways(work: Path, environment: Environment, wheel: Path) -> list[list[str]]:
    """A line for each odd way to run Python, or to install."""
    home = work / "home"
    home.mkdir()
    warm = kernels(environment)
    known = {warm["NUMBA_CACHE_DIR"]: "$NUMBA_CACHE_DIR", str(home): "~"}
    rows = [[name, outcome(attempt(environment.python, *flags, SMOKE, **warm), known)] for name, flags in WAYS.items()]
    # Python and the packages of an administrator: in a mount that not even root can write to.
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" && exec "$0/bin/python" "$1"'
    namespace = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, environment.folder, SMOKE)
    done = attempt(*namespace, HOME=str(home))
    rows.append(["site-packages mounted read-only", outcome(done, known)])
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fastconv"
    bare = create(work / "bare", environment.python, "numba", "numpy")
    rows.append(["imported from the wheel, not installed", outcome(attempt(bare.python, "-c", code, wheel), known)])
    return rows


def outcome(done: subprocess.CompletedProcess, known: dict[str, str]) -> str:
    """What came of a run of `smoke.py`, with names for folders that are known."""
    if done.returncode:
        return done.stderr.strip().splitlines()[-1].split(": unpack")[0]
    folders = {str(Path(folder).parent) for folder in json.loads(done.stdout)["kernels"]}
    for path, name in known.items():
        folders = {folder.replace(path, name) for folder in folders}
    return f"results right, kernels in {', '.join(sorted(folders))}"


def hostile(work: Path) -> list[list[str]]:
    """A line for each hostile checkpoint."""
    rows = []
    for number, name in enumerate(HOSTILE):
        folder = work / f"hostile-{number}"
        folder.mkdir()
        found = load_elsewhere(name, folder)
        rows.append([HOSTILE[name][0], name, shorten(found["error"], 100), f"{found['mebibytes']:.0f}"])
    return rows


def introduction(facts: dict[str, int]) -> str:
    """What was done, where and when."""
    here = circumstances(2, 1)
    tests = "; ".join(f"{extra}: {', '.join(names)}" for extra, names in TESTS.items())
    return "\n".join([
        "Written by `python bench/trust_supply.py --markdown docs/trust.md`, not by hand:",
        f"{here['cpu']}, {here['date']}.", "",
        f"The wheel has {facts['files']} files, {facts['bytes'] >> 10} KiB: the package, its licence, its metadata.",
        _VERSIONS_NOTE.format(tests=tests),
    ])  # fmt: skip


if __name__ == "__main__":
    main()

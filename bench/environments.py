"""Environments with packages of chosen versions and a built wheel of fastconv. Needs uv and build (extra `supply`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FIXED_TIME = "1700000000"  # SOURCE_DATE_EPOCH: archives note it instead of files' times
_FOREIGN = (
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR",
    "FASTCONV_MODE", "FASTCONV_WISDOM", "XDG_CACHE_HOME",
)  # fmt: skip


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What a command prints.

    Raises
    ------
    RuntimeError
        With its last lines, if it fails.
    """
    done = attempt(*command, cwd=cwd, **variables)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def attempt(*command: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run a command among the variables of this process that do not concern another Python."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | variables
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800)


def _uv(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "uv", *arguments, cwd=ROOT)


def build(folder: Path) -> tuple[Path, Path]:
    """A source archive, and the wheel that it gives."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, SOURCE_DATE_EPOCH=_FIXED_TIME)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def check_wheel(wheel: Path) -> dict[str, int]:
    """Look that a wheel has the package, all of it, and nothing else; its files and bytes.

    Raises
    ------
    ValueError
        If there is more or less in it.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        notes = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
        entries, metadata = (archive.read(f"{notes}/{name}").decode() for name in ("entry_points.txt", "METADATA"))
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastconv").rglob("*.py")} | {"fastconv/py.typed"}
    about = {f"{notes}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    if names != package | about:
        raise ValueError(f"{wheel.name} should not differ from the package by {sorted(names ^ (package | about))}")
    if entries.split() != ["[console_scripts]", "fastconv", "=", "fastconv.cli:main"]:
        raise ValueError(f"entry points are {entries!r}")
    needed = [text for text in Parser().parsestr(metadata).get_all("Requires-Dist", []) if "extra ==" not in text]
    if sorted(re.match(r"[\w-]+", text)[0] for text in needed) != ["numba", "numpy"]:
        raise ValueError(f"the core needs {needed}")
    return {"files": len(names), "bytes": wheel.stat().st_size}


def resolve(python: str | Path, extra: str, resolution: str) -> list[str]:
    """The exact versions, `lowest-direct` or `highest`, of what the core and an extra need; wheels only."""
    chosen = ["--extra", extra] if extra else []
    text = _uv(
        "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:",
        "--python", python, "--resolution", resolution, *chosen, "pyproject.toml",
    )  # fmt: skip
    return text.split()


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def packages(self) -> dict[str, str]:
        """Names and versions of what is installed."""
        found = json.loads(_uv("pip", "list", "--quiet", "--format", "json", "--python", self.python))
        return {package["name"]: package["version"] for package in found}

    def mebibytes(self) -> float:
        """The size of all that is installed."""
        files = (self.folder / "lib").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink()) / 2**20


def create(folder: Path, python: str | Path, *requirements: str | Path) -> Environment:
    """A new environment with these packages, from wheels."""
    _uv("venv", "--quiet", "--clear", "--python", python, folder)
    environment = Environment(folder)
    _uv("pip", "install", "--quiet", "--only-binary", ":all:", "--python", environment.python, *requirements)
    return environment

"""The command ``fastconv``: data on stdout, progress and messages on stderr, ``--json`` for programs."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Entry point of the command; exits with 1 if typer or rich is not installed, with 130 on Ctrl-C."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(f"fastconv: the command needs {' and '.join(missing)}: pip install fastconv[cli]", file=sys.stderr)
        raise SystemExit(1)
    try:
        from fastconv.cli.commands import app

        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("fastconv: interrupted", file=sys.stderr)
        raise SystemExit(130) from None

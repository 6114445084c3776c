"""``fastconv wisdom``: where it is, what it says, and how to carry it to another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastconv.cli.output import Json, emit, kibibytes, microseconds, note, share, show_table, user_errors
from fastconv.tuning import wisdom
from fastconv.tuning.wisdom import Entry

app = typer.Typer(no_args_is_help=True, help="The store of measured winners.")

COLUMNS = {
    "problem": "left", "winner": "left", "runner-up": "left", "margin": "right", "best": "right",
    "GFLOP/s": "right", "peak": "right", "workspace": "right",
}  # fmt: skip


def cells(entry: Entry) -> list[str]:
    """An entry as a row under `COLUMNS`."""
    serial = " serial" if entry.run_threads == 1 < entry.threads else ""
    return [
        entry.problem, f"{entry.candidate}{serial}", str(entry.runner_up or "-"),
        "-" if entry.margin is None else f"{entry.margin:+.1%}", microseconds(entry.best_ns),
        f"{entry.gflops:.1f}", share(entry.peak_fraction), kibibytes(entry.workspace),
    ]  # fmt: skip


@app.command("path")
@user_errors()
def path() -> None:
    """Print where the store is."""
    typer.echo(str(wisdom.require()))


@app.command("show")
@user_errors()
def show(
    everything: Annotated[bool, typer.Option("--all", help="Include rows that are not valid here.")] = False,
    json: Json = False,
) -> None:
    """Print the entries that are valid on this machine."""
    rows = wisdom.history()
    if not everything:
        rows = [row for row in rows if row.stale is None]
    if json:
        for row in rows:
            emit({**row.entry.as_dict(), "stale": row.stale})
        return
    stale = {"not valid because": "left"} if everything else {}
    lines = [[*cells(row.entry), str(row.entry.threads), *([row.stale or ""] if everything else [])] for row in rows]
    show_table(None, COLUMNS | {"threads": "right"} | stale, lines)


@app.command("export")
@user_errors()
def export(target: Annotated[Path, typer.Argument(help="File to write, or - for stdout.")] = Path("-")) -> None:
    """Write the store's rows, of all machines, as JSON lines."""
    if str(target) == "-":
        for row in wisdom.history():
            typer.echo(row.text)
    else:
        note(f"wrote {wisdom.export(target)} rows to {target}")


@app.command("merge")
@user_errors()
def merge(source: Annotated[Path, typer.Argument(help="A store, or what export wrote.")]) -> None:
    """Add the rows of another store; the more recent of two measurements counts."""
    note(f"added {wisdom.merge(source)} rows")


@app.command("clear")
@user_errors()
def clear(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Forget everything."""
    if not yes:
        typer.confirm(f"Remove all rows of {wisdom.require()}?", abort=True, err=True)
    note(f"removed {wisdom.clear()} rows")

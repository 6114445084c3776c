"""How the command talks: JSON or tables on stdout, one-line errors and progress bars on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_UNBOUNDED = 10_000
_PIPE_WIDTH = 200  # columns of a table that goes to a file, where nothing needs to be squeezed


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what ends a command into one line on stderr and an exit code.

    2 for a bad argument, 1 for a missing package or a file, 130 for Ctrl-C.
    """
    try:
        yield
    except (ValueError, LookupError) as error:
        note(str(error))
        raise typer.Exit(2) from None
    except (ImportError, OSError) as error:
        note(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:  # `fastconv.cli.main` says so
        raise typer.Exit(130) from None


def note(message: str) -> None:
    """A message for people."""
    typer.echo(f"fastconv: {message}", err=True)


def emit(value: Any) -> None:
    """One JSON document on one line."""
    typer.echo(json.dumps(value))


def show_table(title: str | None, columns: dict[str, str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table; `columns` gives each heading's side, "left" or "right"."""
    rows = list(rows)
    table = Table(title=title, title_justify="left")
    for heading, side in columns.items():
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False)
    if Console(width=_UNBOUNDED).measure(table).maximum <= console.width:
        console.print(table)
    else:
        _show_records(console, title, list(columns), [[str(cell) for cell in row] for row in rows])


def _show_records(console: Console, title: str | None, headings: list[str], rows: list[list[str]]) -> None:
    """The rows of a table that is too wide for the terminal, each as a heading and a few lines."""
    if title:
        console.print(title)
    for first, *cells in rows:
        console.print(first)
        for heading, cell in zip(headings[1:], cells, strict=True):
            console.print(f"  {heading:<12} {cell}")


def progress_bars() -> Progress:
    """Bars on stderr; use as a context manager."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True, markup=False))


def microseconds(ns: float) -> str:
    """Such as ``12.3 us``."""
    return f"{ns / 1e3:.1f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


def kibibytes(count: int) -> str:
    """Such as ``12.5 KiB``."""
    return f"{count / 1024:.1f} KiB"


def share(fraction: float | None) -> str:
    """Such as ``83%``."""
    return "-" if fraction is None else f"{fraction:.0%}"

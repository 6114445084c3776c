"""``fastconv summary``: what a named network costs."""

from __future__ import annotations

from typing import Annotated

import typer

from fastconv.cli.output import Json, emit, show_table, user_errors
from fastconv.nn import models
from fastconv.summary import COLUMNS, cells
from fastconv.summary import summary as summarise

_DTYPES = ("float32", "float64")


@user_errors()
def summary(
    network: Annotated[str, typer.Argument(help=f"One of {', '.join(models.__all__)}.")],
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    size: Annotated[int, typer.Option(help="Height and width of an image, in pixels.")] = 224,
    classes: Annotated[int, typer.Option(help="Scores for each image.")] = 1000,
    optimizer: Annotated[
        str, typer.Option(help="Whose state is counted: sgd, sgd_momentum, adagrad, rmsprop, adam.")
    ] = "adam",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    json: Json = False,
) -> None:
    """List a network's layers: sizes, parameters, operations, memory, and what each sees of the image."""
    if network not in models.__all__:
        raise ValueError(f"network must be one of {', '.join(models.__all__)}, got {network!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    model = getattr(models, network)(classes, dtype=dtype)
    found = summarise(model, (3, size, size), batch, optimizer)
    if json:
        emit(found.as_dict())
        return
    show_table(None, COLUMNS, map(cells, found.layers))
    typer.echo("\n".join(found.totals()))

"""``fastconv train-demo``: train a small network on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fastconv import demo
from fastconv.checkpoint import save
from fastconv.cli.output import Json, emit, note, progress_bars, user_errors
from fastconv.demo import Settings


@user_errors()
def train_demo(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = Settings.epochs,
    batch_size: Annotated[int, typer.Option(help="Images in one step.")] = Settings.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = Settings.learning_rate,
    seed: Annotated[int, typer.Option(help="The same seed gives the same results.")] = Settings.seed,
    output: Annotated[Path, typer.Option(help="Directory for the checkpoint and the plot.")] = Path("."),
    json: Json = False,
) -> None:
    """Train a small network to read handwritten digits; needs scikit-learn and matplotlib.

    Writes its parameters to digits.npz, and loss and accuracy of each epoch to digits.png.
    """
    demo.check_packages()
    settings = Settings(epochs, batch_size, learning_rate, seed)
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    data, net = demo.digits(rng), demo.network(rng)
    history: list[demo.Epoch] = []
    with progress_bars() as bars:
        task = bars.add_task("training", total=epochs, step="compiling")
        for done in demo.train(net, data, settings, rng):
            history.append(done)
            figures = f"loss {done.loss:.4f}, accuracy {done.accuracy:.2%}, {done.images_per_second:.0f} images/s"
            bars.update(task, description=f"epoch {done.epoch}/{epochs}", advance=1, step=figures)
            if json:
                emit(asdict(done))
    checkpoint, plot = output / "digits.npz", output / "digits.png"
    save(net, checkpoint)
    demo.draw(history, plot)
    tell = note if json else typer.echo
    tell(f"accuracy {history[-1].accuracy:.2%} on {len(data.test_labels)} test images; {checkpoint}, {plot}")

"""What it takes to choose a kernel: the cost model, wisdom, and tuning itself."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import fastconv
from fastconv import dispatch
from fastconv.tuning import wisdom

from .common import LAYERS, TINY

THREADS = 1


def problem(layer):
    """The problem of a plan for channels-last arrays, new each time: it remembers what has been asked of it."""
    return fastconv.ConvProblem.create(layer.shape, layer.weight_shape, memory_format="channels_last", **layer.options)


class CostModel:
    """Choosing for a problem that nothing is known of, as the first call with new shapes does."""

    params = (list(LAYERS),)
    param_names = ("layer",)

    def setup(self, layer):
        """Import the algorithms."""
        self.time_choose(layer)

    def time_choose(self, layer):
        """Describe the problem, and predict all candidates."""
        dispatch.choose(problem(LAYERS[layer]), threads=THREADS)


class _Store:
    """A store of wisdom of its own."""

    def setup(self, *params):
        """Make an empty one."""
        self.folder = tempfile.TemporaryDirectory()
        os.environ["FASTCONV_WISDOM"] = str(Path(self.folder.name, "wisdom.jsonl"))

    def teardown(self, *params):
        """Remove it."""
        os.environ["FASTCONV_WISDOM"] = os.devnull
        self.folder.cleanup()


class Tune(_Store):
    """Tuning a tiny problem: timing all candidates, the machine's peak, and checking the winner's results."""

    def setup(self):
        """Compile all candidates; with a smaller budget each run would compile some more of them."""
        super().setup()
        self.time_tune()

    def time_tune(self):
        """Measure, and store the winner."""
        fastconv.tune(problem(TINY), budget=60, threads=THREADS, retune=True)


class Wisdom(_Store):
    """A store with a line for each of many problems."""

    params = ([10, 1000],)
    param_names = ("lines",)

    def setup(self, lines):
        """Write lines that differ in the number of images."""
        super().setup()
        self.known = problem(TINY)
        candidate = dispatch.choose(self.known, threads=THREADS).candidate
        wisdom.append(wisdom.Entry(self.known.descriptor, THREADS, candidate, 1, 1e3, 1e3, 0.0, 1.0, 0.1, 0))
        row = json.loads(wisdom.path().read_text())
        with wisdom.path().open("a") as store:
            for batch in range(2, lines + 1):
                row["problem"] = problem(TINY._replace(batch=batch)).descriptor
                print(json.dumps(row), file=store)
        assert dispatch.choose(self.known, threads=THREADS).source == "wisdom"

    def time_choose(self, lines):
        """Choose what a line says."""
        dispatch.choose(self.known, threads=THREADS)

    def time_load(self, lines):
        """Read the store again, as after a change by another process."""
        os.utime(wisdom.path())
        dispatch.choose(self.known, threads=THREADS)

"""The autotuner: measures the algorithms on this machine and remembers the winners."""

from fastconv.tuning.search import Result, tune

__all__ = ["Result", "tune"]

"""The least that the first call of any cached Numba function costs; `latency.py` times it as the floor."""

from numba import njit


@njit(cache=True)
def nothing():
    """Do nothing."""

"""What a user waits for before the first result: import, and making a plan whose kernel is known."""

from __future__ import annotations

import numpy as np

import fastconv


class Plan:
    """Making and calling a plan for a tiny problem."""

    def setup(self):
        """Compile or load the kernel."""
        self.x, self.weight = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 3, 3), np.float32)
        self.plan = fastconv.plan(self.x.shape, self.weight, padding=1)
        self.out = self.plan(self.x)

    def time_make(self):
        """Choose, and pack the weights."""
        fastconv.plan(self.x.shape, self.weight, padding=1)

    def time_call(self):
        """The cost of a call where there is little to compute."""
        self.plan(self.x, out=self.out)


class Import:
    """Importing in a new process; subtract numba's own."""

    timeout = 120

    def timeraw_fastconv(self):
        """``import fastconv``."""
        return "import fastconv"

    def timeraw_numba(self):
        """``import numba``, the floor."""
        return "import numba"

"""What a user waits for before the first result: import, the first call, and making a plan whose kernel is known."""

from __future__ import annotations

import fastconv

from .common import TINY


class Import:
    """Importing, in a new process."""

    def timeraw_fastconv(self):
        """``import fastconv`` where numba has been imported: what fastconv adds."""
        return "import fastconv", "import numba"

    def timeraw_numba(self):
        """``import numba``, the floor."""
        return "import numba"

    def peakmem_fastconv(self):
        """Memory of a process that has imported fastconv, Python and numba included."""


class FirstCall:
    """The first call in a new process, after the import, with kernels in Numba's disk cache."""

    preparation = """
    import fastconv, numpy
    x, weight = numpy.ones((1, 8, 8, 8), "float32"), numpy.ones((8, 8, 3, 3), "float32")
    """

    def setup(self):
        """Compile the kernels."""
        x, weight = TINY.arrays("contiguous")
        fastconv.conv2d(x, weight, padding=1)
        fastconv.plan(x.shape, weight, padding=1)(x)

    def timeraw_tiny_conv2d(self):
        """The function."""
        return "fastconv.conv2d(x, weight, padding=1)", self.preparation

    def timeraw_tiny_plan(self):
        """Making and calling a plan."""
        return "fastconv.plan(x.shape, weight, padding=1)(x)", self.preparation


class Plan:
    """Making a plan, for a tiny problem whose kernel has been loaded."""

    def setup(self):
        """Compile or load the kernel."""
        self.x, self.weight = TINY.arrays("contiguous")
        self.time_make()

    def time_make(self):
        """Choose, and pack the weights."""
        fastconv.plan(self.x.shape, self.weight, padding=1)

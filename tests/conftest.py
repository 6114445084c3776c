"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# No deadline: the first call of a kernel compiles it, and shared machines stall.
settings.register_profile("fastconv", deadline=None)
settings.load_profile("fastconv")

"""Settings of all tests."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# What a user has tuned, or set, must not change what is tested.
os.environ["FASTCONV_WISDOM"] = os.path.join(tempfile.mkdtemp(prefix="fastconv-tests-"), "wisdom.jsonl")
os.environ.pop("FASTCONV_MODE", None)

# No deadline: the first call of a kernel compiles it, and shared machines stall.
settings.register_profile("fastconv", deadline=None)
settings.load_profile("fastconv")

"""Settings of all tests."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import pytest
from hypothesis import settings

# What a user has tuned, or set, must not change what is tested.
_own = tempfile.TemporaryDirectory(prefix="fastconv-tests-")  # goes with this process
os.environ["FASTCONV_WISDOM"] = os.path.join(_own.name, "wisdom.jsonl")
os.environ.pop("FASTCONV_MODE", None)

# No deadline: the first call of a kernel compiles it, and shared machines stall.
settings.register_profile("fastconv", deadline=None)
settings.load_profile("fastconv")


@pytest.fixture
def small_l2(monkeypatch):
    """`two_pass` on a machine with a cache of 80 KiB."""
    from fastconv.cpu import two_pass  # not before the environment is set

    small = replace(two_pass.host(), l2=80 << 10)
    two_pass._parts.cache_clear()
    monkeypatch.setattr(two_pass, "host", lambda: small)
    yield
    two_pass._parts.cache_clear()

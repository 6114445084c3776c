"""A memory of calls, so that a repeated one decides nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastconv.dispatch import on_forget

_MOST = 512  # as many as kernels are kept: these hold on to kernels, with their tables and workspaces


class CallCache(dict):
    """What was prepared for a call, by its arguments; emptied when choices may have changed."""

    def __init__(self) -> None:
        super().__init__()
        on_forget(self.clear)

    def remember(self, key: tuple, prepared: Any) -> None:
        """Keep `prepared`, unless an argument (a list, say) cannot be part of a key."""
        if len(self) >= _MOST:
            self.clear()
        with suppress(TypeError):
            self[key] = prepared

"""The page for learners: its blocks run, one after the other, and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "learn.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each block prints."""
    names: dict = {}
    found = []
    for code, _ in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(code, "docs/learn.md", "exec"), names)
        found.append(output.getvalue())
    return found


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_prints_what_the_page_says(number: int, printed: list[str]) -> None:
    assert printed[number] == BLOCKS[number][1]


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == PAGE.count("```text") >= 8

"""Parts of Markdown pages that scripts write: what lies between two comments that have a part's name."""

from __future__ import annotations

from pathlib import Path


def has_part(text: str, name: str) -> bool:
    """Whether a page has both marks of the part."""
    begin, end = _marks(name)
    return begin in text and end in text.partition(begin)[2]


def put(page: Path, name: str, content: str) -> None:
    """Write a part of a page between its marks, in place of what was there.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    text = page.read_text()
    if not has_part(text, name):
        raise ValueError(f"{page} has no {' '.join(_marks(name))} to write between")
    begin, end = _marks(name)
    before, _, rest = text.partition(begin)
    page.write_text(f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}")


def part(page: Path, name: str) -> str:
    """What is between the marks now."""
    begin, end = _marks(name)
    return page.read_text().partition(begin)[2].partition(end)[0].strip()


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"

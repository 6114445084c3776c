"""Hostile calls: some of each function, with little memory, and many of a few."""

from __future__ import annotations

import sys

import pytest
from hostile import limits, runs
from hostile.inventory import INVENTORY, missing

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and guard pages as Linux has them")

FAMILIES: dict[str, list[str]] = {}
for _name in INVENTORY:
    FAMILIES.setdefault(_name.rsplit(".", 1)[0], []).append(_name)


def test_every_public_function_has_calls():
    assert missing() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_end_in_a_right_answer_or_a_named_argument(family):
    found = runs.search(FAMILIES[family], 15)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.endings["compared"] > found.endings.total() / 10
    assert found.endings["refused"] > found.endings.total() / 10


def test_without_memory_nothing_is_half_done():
    found = limits.run("scarce")
    assert {name: ends["wrong"] for name, ends in found.items()} == {name: [] for name in found}
    assert all(ends["right"] and ends["MemoryError"] for ends in found.values()), found


def test_without_room_for_threads_there_is_an_error():
    found = limits.run("first")
    assert "stacks" in found["failed"]
    assert found["right"]


def test_memory_does_not_grow():
    found = limits.run("growth", "same", "3000")
    # What is new after the first shapes has been seen twice is noise of the allocator.
    assert found[-1] - found[4] < 8, found

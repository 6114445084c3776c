"""The section ``scaling``: how much a second thread brings, for the same problem and for one twice as large."""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from harness import Worker
from harness import measure as measure_problem

from fastconv.descriptor import parse

TITLE = "Scaling from one thread to two"
AIM = (
    "Strong scaling is the time on one thread over that on two; weak scaling twice the time of one image on one thread "
    "over that of two images on two. Both would be 2 if threads shared nothing; 1.8 by geometric mean is asked."
)
PROBLEMS = (
    "n1c64h56w56k64r3s3p1_f32_nhwc", "n1c256h14w14k256r3s3p1_f32_nhwc", "n1c512h7w7k512r3s3p1_f32_nhwc",
    "n1c64h56w56k256r1s1_f32_nhwc", "n1c1024h14w14k256r1s1_f32_nhwc", "n1c3h224w224k64r7s7p3u2_f32_nhwc",
    "n1c144h56w56k144r3s3p1g144_f32_nhwc", "n1c256h28w28k256r3s3p1g32_f32_nhwc",
)  # fmt: skip
_PEERS = {"fastconv": "fastconv plan", "oneDNN": "oneDNN prepacked"}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each problem on one thread, on two, and two images on two.

    Returns
    -------
    dict
        "rows": {problem: {peer: {"strong", "weak"}}}, of medians; "means": {peer: {"strong", "weak"}}, geometric
        means; and "met".
    """
    rows = {}
    with ExitStack() as stack:
        teams = [
            {name: stack.enter_context(closing(Worker(peer, threads))) for name, peer in _PEERS.items()}
            for threads in (1, 2)
        ]
        for word in PROBLEMS[: options.problems]:
            twice = replace(parse(word), batch=2).descriptor
            one, two = (measure_problem(team, word, options.rounds) for team in teams)
            both = measure_problem(teams[1], twice, options.rounds)
            rows[word] = {
                name: {
                    "strong": one[name]["median"] / two[name]["median"],
                    "weak": 2 * one[name]["median"] / both[name]["median"],
                }
                for name in _PEERS
            }
    means = {
        name: {kind: statistics.geometric_mean(row[name][kind] for row in rows.values()) for kind in ("strong", "weak")}
        for name in _PEERS
    }
    return {"rows": rows, "means": means, "met": min(means["fastconv"].values()) >= 1.8}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Heading and lines."""
    kinds = [(name, kind) for kind in ("strong", "weak") for name in _PEERS]
    lines = [[word, *(f"{row[name][kind]:.2f}" for name, kind in kinds)] for word, row in result["rows"].items()]
    return [["problem", *(f"{name}, {kind}" for name, kind in kinds)], *lines]


def verdict(result: dict[str, Any]) -> list[str]:
    """What was reached, in parts."""
    return [f"{name} {mean['strong']:.2f} strong and {mean['weak']:.2f} weak" for name, mean in result["means"].items()]

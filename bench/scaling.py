"""The section ``scaling``: how much a second thread brings, for the same problem and for one twice as large."""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
from typing import Any

from harness import Worker, interleave, set_threads

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
        workers = {}
        for who in product(_PEERS, ("one", "two", "both")):
            threads = 1 if who[1] == "one" else 2
            set_threads(threads)  # a process reads it when it starts
            workers[who] = stack.enter_context(closing(Worker(_PEERS[who[0]], threads)))
        set_threads(options.threads)
        for word in PROBLEMS[: options.problems]:
            twice = replace(parse(word), batch=2).descriptor
            for (_, what), worker in workers.items():
                worker.ask("prepare", twice if what == "both" else word)
            samples = interleave({who: worker.sample for who, worker in workers.items()}, options.rounds)
            time = {who: statistics.median(seconds) for who, seconds in samples.items()}
            rows[word] = {
                name: {
                    "strong": time[name, "one"] / time[name, "two"],
                    "weak": 2 * time[name, "one"] / time[name, "both"],
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

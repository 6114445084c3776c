"""Reading a problem from its one-line descriptor.

The grammar is at the top of `fastconv.problem`, whose problems print their own descriptors.
"""

from __future__ import annotations

import re
from typing import Any

from fastconv.pooling import Pool
from fastconv.problem import ACTIVATIONS, DIRECTIONS, DTYPES, FORMATS, ConvProblem, PoolProblem, Problem
from fastconv.sizes import shown

_NUMBERS = r"\d+(?:\.\d+)*"
_HEAD = re.compile(
    r"n(?P<n>\d+)c(?P<c>\d+)h(?P<h>\d+)w(?P<w>\d+)(?:k(?P<k>\d+)r(?P<r>\d+)s(?P<s>\d+))?"
    rf"(?:p(?P<p>{_NUMBERS}))?(?:u(?P<u>{_NUMBERS}))?(?:d(?P<d>{_NUMBERS}))?(?:g(?P<g>\d+))?"
)
_POOL = re.compile(
    rf"(?P<mode>max|avg|lp)(?P<kernel>{_NUMBERS})(?:u(?P<u>{_NUMBERS}))?(?:p(?P<p>{_NUMBERS}))?"
    rf"(?:d(?P<d>{_NUMBERS}))?(?:n(?P<norm>[\d.e+-]+))?(?P<ceil>ceil)?(?P<nopad>nopad)?"
)
_FLAGS = {
    **{word: ("dtype", name) for word, name in DTYPES.items()},
    **{word: ("memory_format", name) for word, name in FORMATS.items()},
    **{name.replace("_", ""): ("activation", name) for name in ACTIVATIONS},
    **{word: ("direction", name) for word, name in DIRECTIONS.items() if word},
    "bias": ("bias", True),
    "raw": ("raw", True),
    "indices": ("return_indices", True),
    "tf32": ("precision", "tf32"),
    "cuda": ("device", "cuda"),
}


def parse(descriptor: str) -> Problem:
    """Read a problem from its descriptor (the grammar is at the top of `fastconv.problem`).

    Words after the sizes may come in any order; float32, NCHW and no epilogue are the defaults.

    Raises
    ------
    ValueError
        Says which part was not understood.
    """
    if not isinstance(descriptor, str):
        raise TypeError(f"descriptor must be a str, got {shown(descriptor)}")
    head, *words = descriptor.strip().split("_")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ValueError(f"descriptor {shown(descriptor)}: {shown(head)} is not like 'n1c64h56w56k64r3s3p1'")
    rest: dict[str, Any] = {}
    for word in words:
        key, value = ("pool", found) if (found := _POOL.fullmatch(word)) else _FLAGS.get(word, (None, None))
        if key is None:
            raise ValueError(
                f"descriptor {shown(descriptor)}: {shown(word)} is not a pooling or one of {sorted(_FLAGS)}"
            )
        if key in rest:
            raise ValueError(f"descriptor {shown(descriptor)}: {word!r} says {key} a second time")
        rest[key] = value
    return _build(descriptor, match, rest)


def _build(descriptor: str, match: re.Match, rest: dict[str, Any]) -> Problem:
    try:
        n, c, h, w = (int(match[f]) for f in "nchw")
        if "pool" in rest:
            rest["pool"] = _parse_pool(rest["pool"])
        if match["k"] is None:
            if "pool" not in rest:
                raise ValueError("neither a kernel (k, r, s) nor a pooling is given")
            if any(match[field] for field in "pudg"):
                raise ValueError(
                    "p, u, d and g after the sizes are a convolution's; a pooling has its own, as in max3u2p1"
                )
            problem = PoolProblem(n, c, (h, w), **rest)
            _ = problem.out_size
            return problem
        groups = int(match["g"] or 1)
        return ConvProblem.create(
            (n, c, h, w), (int(match["k"]), c // max(groups, 1), int(match["r"]), int(match["s"])),
            padding=_parse_padding(match["p"] or "0"), stride=_parse_pair(match["u"] or "1"),
            dilation=_parse_pair(match["d"] or "1"), groups=groups, **rest,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise ValueError(f"descriptor {shown(descriptor)}: {error}") from None


def _parse_pool(match: re.Match) -> Pool:
    return Pool(
        match["mode"], _parse_pair(match["kernel"]), _parse_pair(match["u"]) if match["u"] else None,
        _parse_pair(match["p"] or "0"), _parse_pair(match["d"] or "1"), match["ceil"] is not None,
        match["nopad"] is None, float(match["norm"] or 2),
    )  # fmt: skip


def _parse_pair(text: str) -> Any:
    numbers = tuple(int(v) for v in text.split("."))
    return numbers[0] if len(numbers) == 1 else numbers


def _parse_padding(text: str) -> Any:
    numbers = _parse_pair(text)
    return (numbers[:2], numbers[2:]) if isinstance(numbers, tuple) and len(numbers) == 4 else numbers

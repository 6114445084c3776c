"""What `versus.py` compares: problems, who runs them, and the aim that each section is held to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastconv.networks import problems

_TINY = ["n1c8h8w8k8r3s3p1", "n1c8h8w8k8r1s1", "n1c8h8w8k8r3s3p1g8"]
_POOLS = [
    "n1c64h112w112_max3u2p1", "n1c96h55w55_max3u2", "n1c64h224w224_max2", "n1c512h14w14_max2",
    "n1c64h112w112_avg3u2p1", "n1c256h28w28_avg2", "n1c2048h7w7_avg7",
]  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One comparison.

    Attributes
    ----------
    name, title : str
        As on the command line, and as a heading.
    aim : str
        What is asked of the numbers, in words; printed beside them.
    problems : tuple of str
        Descriptors (`fastconv.problem`).
    ours, rivals : tuple of str
        Names in `peers.PEERS`. Ratios are rival time over ours, of the first of `ours` to each of `rivals`.
    least_ratio : float
        What the ratios of medians must reach: their geometric mean, or `every` one of them.
    least_each : float
        What each of them must reach besides.
    peak : bool
        Whether to measure the FMA peak in the same rounds.
    least_peak : float
        The share of it that every 3x3 convolution must reach, from best times.
    timed : bool
        False for a section that looks at errors only.
    fastest : str
        If not empty, what the fastest of the rivals on each problem is called; it then is the first rival.
    """

    name: str
    title: str
    aim: str
    problems: tuple[str, ...]
    ours: tuple[str, ...]
    rivals: tuple[str, ...]
    least_ratio: float = 0.0
    every: bool = False
    least_each: float = 0.0
    peak: bool = False
    least_peak: float = 0.0
    timed: bool = True
    fastest: str = ""


def _both(heads: list[str]) -> tuple[str, ...]:
    return tuple(f"{head}_f32_{form}" for form in ("nchw", "nhwc") for head in heads)


PLANS = tuple(p.descriptor for p in problems("resnet50", memory_format="channels_last"))
RAW = tuple(replace(p, raw=True).descriptor for p in problems("resnet50", memory_format="contiguous"))

_STEP = problems("resnet50", batch=8, memory_format="channels_last")
BACKWARD = {
    direction: tuple(p.without_epilogue(direction).descriptor for p in _STEP)
    for direction in ("backward_input", "backward_weight")
}


def _gradients(direction: str, of: str) -> Section:
    return Section(
        "resnet50-" + direction.replace("_", "-"),
        f"Gradients of ResNet-50's {of}, batch 8",
        "Geometric mean at least 1.2 times torch in its faster layout, no layer below 0.9.",
        BACKWARD[direction],
        ("fastconv gradient",),
        ("torch channels-last", "torch contiguous"),
        least_ratio=1.2,
        least_each=0.9,
        peak=True,
        fastest="faster torch",
    )


SECTIONS = {
    section.name: section
    for section in [
        Section(
            "resnet50-plans",
            "ResNet-50's convolutions, batch 1, plans on channels-last",
            "Geometric mean at least level with oneDNN prepacked channels-last (torch.ops.mkldnn), every 3x3 at 85% of "
            "the measured FMA peak or better.",
            PLANS,
            ("fastconv plan",),
            ("oneDNN prepacked",),
            least_ratio=1.0,
            peak=True,
            least_peak=0.85,
        ),
        Section(
            "resnet50-nchw",
            "The same layers through `fastconv.conv2d`, plain NCHW arrays and raw weights",
            "Geometric mean at least 1.3 times torch eager NCHW.",
            RAW,
            ("fastconv conv2d",),
            ("torch eager",),
            least_ratio=1.3,
            peak=True,
        ),
        Section(
            "tiny",
            "Tiny problems: 8x8 pixels, 8 channels",
            "At least 3 times faster than torch per call.",
            tuple(word + "_raw" for word in _both(_TINY)),
            ("fastconv conv2d", "fastconv plan"),
            ("torch eager",),
            least_ratio=3.0,
            every=True,
        ),
        _gradients("backward_input", "inputs"),
        _gradients("backward_weight", "weights"),
        Section(
            "pool",
            "Pooling",
            "Geometric mean at least level with torch.",
            _both(_POOLS),
            ("fastconv pool",),
            ("torch pool",),
            least_ratio=1.0,
        ),
        Section(
            "accuracy",
            "Max error against float64, ResNet-50's convolutions",
            "No worse than 1.5 times torch's on the same inputs.",
            (*PLANS, *RAW),
            ("fastconv conv2d", "fastconv plan"),
            ("torch eager", "oneDNN prepacked"),
            timed=False,
        ),
    ]
}

"""The problems that `bench/gpu.py` checks and measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastconv import networks
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem

DIRECTIONS = ("forward", "backward_input", "backward_weight")
ODD = [
    "n2c17h31w29k33r3s3p1_bias_relu", "n1c3h37w41k20r7s7p3u2_bias", "n2c6h15w13k10r3s2p0.1.2.3u2.1d1.2g2_relu6",
    "n3c5h9w7k17r1s1_leakyrelu", "n1c64h7w7k64r3s3p2d2g64", "n2c40h13w11k40r5s5p2g5", "n1c130h9w11k200r3s3p1",
    "n33c3h5w5k8r3s3", "n2c64h14w14k64r3s3p1g16", "n2c24h33w17k24r5s5p2u2g24_bias_relu6", "n1c12h9w9k36r3s3p1g12",
    "n1c64h57w55k64r3s3p1u3d3_bias", "n2c8h11w10k72r2s5p1.2u3_bias", "n1c48h6w6k40r3s3p1_bias_relu_max2u2",
    "n2c16h17w15k24r3s3p1_relu_max3u2p1", "n1c16h13w13k20r3s3p1_bias_avg3u2p1ceil", "n1c8h12w10k9r3s3p1_lp2u2n2",
]  # fmt: skip
KINDS = ("f32", "tf32", "bf16", "f16")  # words of descriptors: what is multiplied
SECTIONS = {
    "ResNet-50": (("f32", "tf32", "bf16"), DIRECTIONS),
    "one image": (("f32", "bf16"), DIRECTIONS[:1]),
    "depthwise": (("f32", "bf16"), DIRECTIONS),
    "fused": (("f32", "tf32", "bf16"), DIRECTIONS[:1]),
}
GROUPED = ["c128h56w56k128r3s3p1g32", "c256h28w28k256r3s3p1g32", "c512h14w14k512r3s3p1g32"]
FUSED = ["c3h224w224k64r7s7p3u2_bias_relu_max3u2p1", "c64h224w224k64r3s3p1_bias_relu_max2u2",
         "c128h112w112k128r3s3p1_bias_relu_max2u2", "c512h28w28k512r3s3p1_bias_relu_max2u2"]  # fmt: skip


def kind_of(problem: ConvProblem) -> str:
    """Which of `LIMIT` holds for a problem."""
    short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}[problem.dtype]
    return "tf32" if problem.precision == "tf32" else short


def in_kind(problem: ConvProblem, kind: str, direction: str = "forward") -> ConvProblem:
    """A problem on the GPU, in a direction, with elements or a precision."""
    turned = problem if direction == "forward" else problem.without_epilogue(direction)
    words = {"f32": {}, "f64": {"dtype": "float64"}, "tf32": {"precision": "tf32"}, "bf16": {"dtype": "bfloat16"},
             "f16": {"dtype": "float16"}}[kind]  # fmt: skip
    return replace(turned, device="cuda", **words)


def to_check(few: bool = False) -> Iterator[ConvProblem]:
    """Odd problems in both memory formats and some layers of networks, in every direction and kind."""
    odd = ODD[::4] if few else ODD
    layers = [parse(f"{text}_{form}") for text in odd for form in ("nchw", "nhwc")]
    if not few:
        layers += [*networks.problems("resnet50", 2)[::6], *networks.problems("mobilenet_v2", 2)[::9]]
    for problem in layers:
        for kind in (*KINDS, "f64"):
            for direction in DIRECTIONS if problem.pool is None else DIRECTIONS[:1]:
                yield in_kind(problem, kind, direction)


def layers(section: str, batch: int) -> list[ConvProblem]:
    """The problems of a section, channels-last; one image is of ResNet-50."""
    if section in ("ResNet-50", "one image"):
        return networks.problems("resnet50", batch if section == "ResNet-50" else 1)
    if section == "depthwise":
        found = [p for p in networks.problems("mobilenet_v2", batch) if p.groups > 1]
        return found + [parse(f"n{batch}{text}_nhwc") for text in GROUPED]
    return [parse(f"n{batch}{text.replace('_', '_nhwc_', 1)}") for text in FUSED]


def to_measure(section: str, layers: list[ConvProblem]) -> Iterator[list[ConvProblem]]:
    """The layers of a section in each of its kinds and directions."""
    kinds, directions = SECTIONS[section]
    for kind in kinds:
        for direction in directions:
            yield [in_kind(problem, kind, direction) for problem in layers]

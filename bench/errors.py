"""How far results are from float64, by how many products each sums: fastconv's candidates beside PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from candidates import FORMATS, everything, in_format, operands, run
from torch_twin import tensor, twin

from fastconv import dispatch, nn
from fastconv.algorithms import Candidate
from fastconv.descriptor import parse
from fastconv.problem import ConvProblem, PoolProblem

# (descriptor, direction): sums of more and more products.
PROBLEMS = [
    *[(d, "forward") for d in (
        "n2c1h32w32k16r3s3p1", "n2c16h32w32k16r3s3p1", "n1c128h16w16k32r3s3p1", "n1c1024h8w8k32r3s3p1",
        "n1c11111h4w4k16r3s3p1", "n2c64h16w16k64r1s1", "n1c4096h8w8k32r1s1", "n1c100000h2w2k16r1s1",
        "n2c32h32w32k32r3s3p1g32",
    )],
    *[(d, "backward_input") for d in (
        "n2c16h32w32k1r3s3p1", "n2c16h32w32k16r3s3p1", "n1c32h16w16k128r3s3p1", "n1c32h8w8k1024r3s3p1",
        "n1c16h4w4k11111r3s3p1", "n1c32h8w8k4096r1s1",
    )],
    *[(d, "backward_weight") for d in (
        "n1c16h8w8k16r3s3p1", "n1c16h32w32k16r3s3p1", "n4c16h56w56k16r3s3p1", "n8c16h112w112k16r3s3p1",
        "n16c16h256w256k16r3s3p1", "n16c16h256w256k16r1s1", "n8c32h112w112k32r3s3p1g32",
    )],
    *[(d, "forward") for d in ("n1c16h57w57_avg3u1", "n2c16h56w56_avg56u56", "n2c4h512w512_avg512u512")],
]  # fmt: skip


_POSITIVE_FROM = 9000  # products, from which on numbers of one sign are tried too: such sums grow faster
_ONE_TILE_FROM = 50_000  # products, from which on one tile of each algorithm has to do

Error = tuple[float, float]  # largest and root mean square, relative to the root mean square of the exact result


@dataclass(frozen=True)
class Row:
    """Errors of one operation: fastconv's by memory format, its worst candidate's, and PyTorch's."""

    what: str
    products: int
    data: str
    ours: dict[str, Error]
    worst: Error
    pytorch: dict[str, Error]

    @property
    def ratio(self) -> float:
        """The larger of the ratios of fastconv's root mean square to PyTorch's in the same memory format."""
        return max(self.ours[f][1] / self.pytorch[f][1] for f in FORMATS)


def rows() -> Iterator[Row]:
    """All of them, sum by sum."""
    for descriptor, direction in PROBLEMS:
        problem = replace(parse(descriptor), direction=direction)
        both = isinstance(problem, PoolProblem) or length(problem) >= _POSITIVE_FROM
        yield from (_row(problem, descriptor, data) for data in (("normal", "positive") if both else ("normal",)))
    for pixels in (28, 256, 1024):
        yield from _statistics(pixels)


def length(problem: ConvProblem | PoolProblem) -> int:
    """Terms of the longest sum of a result."""
    if isinstance(problem, PoolProblem):
        return math.prod(problem.pool.kernel_size)
    p, taps = problem, math.prod(problem.kernel_size)
    if p.direction == "backward_weight":
        return p.batch * math.prod(p.conv_size)
    return taps * (p.in_channels if p.direction == "forward" else p.out_channels) // p.groups


def _row(problem: ConvProblem | PoolProblem, descriptor: str, data: str) -> Row:
    arrays = operands(problem)
    if data == "positive":
        arrays = {name: np.abs(array) for name, array in arrays.items()}
    exact = twin(replace(problem, dtype="float64"), {name: a.astype(np.float64) for name, a in arrays.items()})[0]
    ours, worst, pytorch = {}, (0.0, 0.0), {}
    for memory_format in FORMATS:
        p = replace(problem, memory_format=memory_format)
        given = {n: in_format(a, memory_format) if n in ("x", "grad") else a for n, a in arrays.items()}
        pytorch[memory_format] = error(twin(p, given)[0], exact)
        ours[memory_format] = error(run(p, dispatch.choose(p).candidate, given, 2)[0], exact)
        found = [error(run(p, candidate, given, 2)[0], exact) for candidate in _candidates(p)]
        worst = max([worst, *found], key=lambda pair: pair[1])
    return Row(f"{problem.operation} {descriptor}", length(problem), data, ours, worst, pytorch)


def _candidates(problem: ConvProblem | PoolProblem) -> list[Candidate]:
    found = [candidate for candidate in everything(problem) if candidate.algorithm != "reference"]
    return found if length(problem) < _ONE_TILE_FROM else list({c.algorithm: c for c in found}.values())


def _statistics(pixels: int) -> Iterator[Row]:
    """Mean and variance of batch normalisation, of numbers whose mean is ten times their deviation."""
    x = np.random.default_rng(0).standard_normal((2, 4, pixels, pixels), np.float32) + np.float32(10)
    exact = (x.mean((0, 2, 3), np.float64), x.astype(np.float64).var((0, 2, 3), ddof=1))
    ours: tuple[dict, dict] = ({}, {})
    pytorch: tuple[dict, dict] = ({}, {})
    for memory_format in FORMATS:
        layer, theirs = nn.BatchNorm2d(4, momentum=1.0), torch.nn.BatchNorm2d(4, momentum=1.0)
        layer(in_format(x, memory_format))
        theirs(tensor(in_format(x, memory_format)))
        for n, name in enumerate(("running_mean", "running_var")):
            ours[n][memory_format] = error(layer.state_dict()[name], exact[n])
            pytorch[n][memory_format] = error(theirs.state_dict()[name].numpy(), exact[n])
    for n, name in enumerate(("mean", "variance")):
        worst = max(ours[n].values(), key=lambda pair: pair[1])
        yield Row(f"batch norm, {name}", 2 * pixels * pixels, "10 + normal", ours[n], worst, pytorch[n])


def error(result: np.ndarray, expected: np.ndarray) -> Error:
    """Largest and root mean square of the error, relative to the root mean square of the result."""
    scale = math.sqrt(np.mean(expected**2))
    off = result.astype(np.float64) - expected
    return float(np.abs(off).max()) / scale, math.sqrt(np.mean(off**2)) / scale

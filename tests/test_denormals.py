"""Denormal numbers: IEEE 754 unless `set_flush_denormal` says otherwise, on every thread, and on none afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from crowds import LAYERS, run
from llvmlite import ir

import fastconv
from fastconv import algorithms, nn, optim
from fastconv.cpu import denormals
from fastconv.descriptor import parse
from fastconv.jit import jit

needs_flushing = pytest.mark.skipif(not denormals.BITS, reason="this CPU cannot flush denormal numbers")
STICKY = 63  # bits of the control word that say what has happened, such as an inexact result
SMALL, SMALLER = 1e-30, 1e-10  # their product is denormal in float32
PROBLEMS = [
    replace(parse(descriptor), memory_format=format, direction=direction)
    for descriptor in ("n2c16h24w24k16r3s3p1", "n2c16h24w24k16r3s3p1g16")
    for format in ("contiguous", "channels_last")
    for direction in ("forward", "backward_input", "backward_weight")
]


@partial(jit, signature="int64()")
def control_word():
    return denormals.control_word()


@partial(jit, signature="void(int64)")
def set_control_word(word):
    denormals.set_control_word(word)


@pytest.fixture
def flushing() -> Iterator[None]:
    assert fastconv.set_flush_denormal(True) is True
    yield
    fastconv.set_flush_denormal(False)


@pytest.fixture
def flushing_caller() -> Iterator[None]:
    """A thread that flushes by itself, as after ``torch.set_flush_denormal(True)``."""
    before = control_word()
    set_control_word(before | denormals.BITS)
    yield
    assert control_word() & denormals.BITS == denormals.BITS
    set_control_word(before)


def products(problem: Any, name: str, threads: int) -> np.ndarray:
    """A result of equal denormal products."""
    shapes = {
        "forward": (problem.in_shape, problem.weight_shape, problem.out_shape),
        "backward_input": (problem.out_shape, problem.weight_shape, problem.in_shape),
        "backward_weight": (problem.in_shape, problem.out_shape, problem.weight_shape),
    }[problem.direction]
    first, second, out = (np.full(s, v, np.float32) for s, v in zip(shapes, (SMALL, SMALLER, 7), strict=True))
    params = dict(algorithms.candidates(problem, name)[0].params)
    kernel = algorithms.module_of(problem, name).make(problem, params, threads)
    if problem.direction == "backward_weight":
        kernel.run(first, second, out)
    else:
        kernel.convolve(first, second, None, out)
    return out


def is_zero(array: np.ndarray) -> np.ndarray:
    """By the bits: what NumPy compares depends on this thread's control word."""
    return array.view(f"i{array.itemsize}") << 1 == 0


def cases() -> list:
    return [
        pytest.param(problem, name, id=f"{problem.descriptor}-{name}")
        for problem in PROBLEMS
        for name in algorithms.supporting(problem)
        if name != "reference"
    ]


@needs_flushing
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("problem", "name"), cases())
def test_products_are_zero_where_that_was_asked_for(problem: Any, name: str, threads: int, flushing: None) -> None:
    before = control_word() & ~STICKY
    assert is_zero(products(problem, name, threads)).all()
    assert control_word() & ~STICKY == before


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("problem", "name"), cases()[::3])
def test_products_are_denormal_otherwise(problem: Any, name: str, threads: int) -> None:
    found = products(problem, name, threads)
    assert ((found > 0) & (found < np.finfo(np.float32).tiny * 100)).all()


@needs_flushing
@pytest.mark.parametrize("threads", [1, 2])
def test_a_caller_that_flushes_changes_nothing(threads: int, flushing_caller: None) -> None:
    for mode in (False, True, False):
        fastconv.set_flush_denormal(mode)
        assert (is_zero(products(PROBLEMS[0], "direct", threads)) == mode).all()


def everything_small() -> dict[str, np.ndarray]:
    """Pooling, an activation, a mean of pixels and the step of an optimizer, all of denormal results."""
    tiny = float(np.finfo(np.float32).tiny)
    x = np.full((1, 2, 8, 8), tiny, np.float32)
    parameter = nn.Parameter(np.zeros(4, np.float32))
    parameter.grad = np.full(4, tiny, np.float32)
    optim.SGD([parameter], lr=0.5).step()
    return {
        "avg_pool2d": fastconv.avg_pool2d(x, 2, padding=1)[:, :, 0, 0], "leaky_relu": nn.LeakyReLU(0.5)(-x),
        "adaptive": nn.AdaptiveAvgPool2d(3)(x / 2), "sgd": parameter.value,
        "lp_pool2d": fastconv.lp_pool2d(x / 8, 1, 2),
    }  # fmt: skip


@needs_flushing
def test_other_kernels_flush_too(flushing: None) -> None:
    for mode in (True, False):
        fastconv.set_flush_denormal(mode)
        for name, result in everything_small().items():
            assert (is_zero(np.ascontiguousarray(result)) == mode).all(), name


@needs_flushing
@pytest.mark.parametrize("layer", LAYERS)
def test_threads_are_as_they_were(layer: str) -> None:
    """The threads of Numba, that inherit a flushing control word from the thread that starts them."""
    code = """
import numba, numpy as np, fastconv, test_denormals as t
from fastconv.cpu import denormals

@numba.njit(parallel=True)
def words(found):
    for thread in numba.prange(len(found)):
        found[thread] = denormals.control_word() & ~t.STICKY

def compute(flushed):
    fastconv.set_flush_denormal(flushed)
    assert (t.is_zero(t.products(t.PROBLEMS[0], "direct", 4)) == flushed).all()

found = np.zeros(4, np.int64)
t.set_control_word(t.control_word() | denormals.BITS)  # before there are other threads
compute(False)
words(found)
before = found.copy()
compute(True)
words(found)
assert (found == before).all(), (found, before)
t.set_control_word(t.control_word() & ~denormals.BITS)
compute(True)
compute(False)
"""
    assert run("-c", code, layer=layer, threads=4, PYTHONPATH=_paths()).returncode == 0


def _paths() -> str:
    return os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize("mode", [1, 0, None, "on", np.True_])
def test_a_mode_is_a_bool(mode: Any) -> None:
    with pytest.raises(TypeError, match="mode must be a bool, got"):
        fastconv.set_flush_denormal(mode)


def test_a_machine_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "BITS", 0)
    assert fastconv.set_flush_denormal(True) is False
    assert denormals.Mode.bits == 0
    assert fastconv.set_flush_denormal(False) is False


@pytest.mark.parametrize(
    ("machine", "triple", "instructions"),
    [
        ("x86_64", "x86_64-unknown-linux-gnu", ("stmxcsr", "ldmxcsr")),
        ("aarch64", "aarch64-unknown-linux-gnu", (r"mrs\tx\d+, FPCR", r"msr\tFPCR, x\d+")),
        ("arm64", "arm64-apple-darwin", (r"mrs\tx\d+, FPCR", r"msr\tFPCR, x\d+")),
        ("riscv64", "x86_64-unknown-linux-gnu", ()),
    ],
)
def test_the_instructions_of_each_machine(machine: str, triple: str, instructions: tuple[str, ...]) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    word = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(word, [word]), "exchange")
    builder = ir.IRBuilder(function.append_basic_block())
    before = denormals._read(builder, machine)
    denormals._write(builder, function.args[0], machine)
    builder.ret(before)
    target = llvm.Target.from_triple(triple).create_target_machine()
    assembly = target.emit_assembly(llvm.parse_assembly(str(module)))
    for instruction in instructions:
        assert re.search(instruction, assembly), assembly
    assert instructions or "mxcsr" not in assembly

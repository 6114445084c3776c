"""The benchmark for GPUs, with the simulator for one: its checks agree, and every line of its report can be made."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

from fastconv import algorithms
from fastconv.cuda.arrays import DeviceArray, as_device_array
from fastconv.descriptor import parse

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
gpu, gpu_cases, gpu_problems = (import_module(name) for name in ("gpu", "gpu_cases", "gpu_problems"))

TEXTS = [
    "n2c3h5w4k5r3s3p1_nhwc_bias_relu",
    "n1c4h5w6k4r3s2p0.1.2.3u2.1g2_nchw_bias",
    "n1c2h6w4k4r1s1_nhwc_relu6_max2u2",
]


class Event:
    """A CUDA event that knows no time."""

    def __init__(self, enable_timing: bool) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Graph:
    """Calls, as a CUDA graph of them."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def replay(self) -> None:
        for call in self.calls:
            call()


def described(tensor: Any, name: str) -> DeviceArray:
    """A tensor of the CPU as an array of the simulated GPU."""
    bits = tensor.view(torch.int16) if tensor.element_size() == 2 else tensor
    return replace(as_device_array(FakeCUDAArray(bits.numpy()), name, None, ("float32", "float64", "int16")),
                   dtype=str(tensor.dtype).removeprefix("torch."))  # fmt: skip


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("randn", "full"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _made=made, device=None, **rest: _made(*a, **rest))
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132, clock_rate=1_980_000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu, "captured", lambda calls: (Graph(calls()), None))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(gpu_cases, "as_device_array", described)
    monkeypatch.setattr(gpu_cases, "check_others", list)
    monkeypatch.setattr("fastconv.cuda.properties.lacking", lambda name, capability: None)


@pytest.mark.parametrize("kind", ["f32", "tf32", "bf16"])
@pytest.mark.parametrize("direction", gpu_problems.DIRECTIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_candidate_agrees_with_float64(text: str, direction: str, kind: str) -> None:
    layer = parse(text)
    if layer.pool is None or direction == "forward":
        case = gpu_cases.Case(gpu_problems.in_kind(layer, kind, direction))
        for name in algorithms.supporting(case.problem):
            params = algorithms.module_of(case.problem, name).space(case.problem)[-1]
            assert gpu_cases.error(case, name, params) < gpu_cases.LIMIT[kind], name


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_cases.Case(gpu_problems.in_kind(parse(TEXTS[0]), "f32"))
    monkeypatch.setattr(case, "call", lambda name, params: lambda: None)  # writes nothing
    assert not gpu_cases.error(case, "reference", {}) <= gpu_cases.LIMIT["f32"]


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = parse("n1c2h3w3k2r1s1_nhwc")
    monkeypatch.setattr(gpu_cases, "to_check", lambda few: [gpu_problems.in_kind(layer, "f32")])
    monkeypatch.setattr(gpu, "layers", lambda section, batch: [layer])
    monkeypatch.setattr(gpu, "latency", lambda: {"fastconv.plan": 1.0})
    monkeypatch.setattr(gpu, "SETS", 1)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "version", lambda package: "0")
    monkeypatch.setattr(gpu.driver, "registers", lambda kernel: len(kernel.name))
    report, figures = tmp_path / "gpu.md", tmp_path / "gpu.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--markdown", str(report), "--json", str(figures), "--sections", "fused"]
    )
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0
    assert "of cuDNN's speed" in report.read_text() and layer.descriptor in figures.read_text()
    again = tmp_path / "again.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--render", str(figures), "--markdown", str(again)])
    gpu.main()
    assert again.read_text() == report.read_text()


def test_the_tables_are_those_of_the_networks() -> None:
    assert len(gpu.layers("ResNet-50", 32)) == 20
    for section in gpu.SECTIONS:
        batch = 1 if section == "one image" else 32
        assert all(p.memory_format == "channels_last" and p.batch == batch for p in gpu.layers(section, 32))
    assert np.all([p.pool is not None for p in gpu.layers("fused", 32)])
    assert len({p.descriptor for p in gpu_problems.to_check()}) > 200

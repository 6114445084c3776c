"""``fastconv info``: the machine as fastconv sees it, with its measured limits."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict
from typing import Any

import numba
import typer

from fastconv._version import __version__
from fastconv.cli.output import Json, emit, user_errors
from fastconv.cpu.host import host
from fastconv.cpu.launch import image_launcher
from fastconv.tuning import peak, wisdom


def cache_path() -> str | None:
    """The directory where Numba keeps compiled kernels, or None if no such place can be written."""
    return image_launcher().serial.stats.cache_path


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, as the driver's own tool reports them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _facts() -> dict[str, Any]:
    threads = numba.get_num_threads()
    peaks = {dtype: peak.best_gflops(dtype, threads) for dtype in ("float32", "float64")}
    store = wisdom.path()
    return {
        "fastconv": __version__, "numba": numba.__version__, "cpu": asdict(host()), "threads": threads,
        # Numba chooses its threading layer when the first parallel region starts.
        "threading_layer": numba.threading_layer() if threads > 1 else None,
        "fma_gflops": peaks, "copy_bytes_per_second": peak.copy_bandwidth(threads), "gpus": _gpus(),
        "cache": cache_path(), "wisdom": None if store is None else str(store),
    }  # fmt: skip


@user_errors()
def info(json: Json = False) -> None:
    """Describe this machine: CPU, threads, measured FMA peak and bandwidth, GPU, paths."""
    facts = _facts()
    if json:
        emit(facts)
        return
    cpu = facts["cpu"]
    lines = {
        "fastconv": f"{facts['fastconv']} with numba {facts['numba']}",
        "CPU": f"{cpu['name']}, {8 * cpu['vector_bytes']}-bit vectors, {cpu['registers']} registers, "
        f"{'with' if cpu['fma'] else 'without'} FMA, L1 {cpu['l1'] >> 10} KiB, L2 {cpu['l2'] >> 10} KiB",
        "threads": f"{facts['threads']}, threading layer {facts['threading_layer'] or 'not needed'}",
        "FMA peak": ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in facts["fma_gflops"].items()),
        "memory": f"{facts['copy_bytes_per_second'] / 1e9:.1f} GB/s copied (read and written)",
        "GPU": ", ".join(facts["gpus"]) or "none",
        "kernel cache": facts["cache"] or "none: let NUMBA_CACHE_DIR name a folder that can be written",
        "wisdom": facts["wisdom"] or "no store: pip install fastconv[tune], or let FASTCONV_WISDOM name a file",
    }
    for name, text in lines.items():
        typer.echo(f"{name:13} {text}")

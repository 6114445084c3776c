"""What the kernels need to know of this CPU: vector width, registers and cache sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
from numba import config

# One fused multiply-add on the widest vector in use anywhere; how LLVM lowers it tells the host's width.
_PROBE = """
define <16 x float> @probe(<16 x float> %a, <16 x float> %b, <16 x float> %c) {
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %r
}
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


@dataclass(frozen=True)
class Host:
    """Vector and cache facts of the CPU that Numba generates code for.

    Attributes
    ----------
    name : str
        LLVM's name of the CPU.
    vector_bytes : int
        Width of a vector register in bytes: 64 (AVX-512), 32 (AVX2) or 16 (SSE, NEON).
    registers : int
        Number of vector registers.
    fma : bool
        Whether a fused multiply-add is one instruction.
    l1, l2 : int
        Data cache sizes of one core, in bytes.
    """

    name: str
    vector_bytes: int
    registers: int
    fma: bool
    l1: int
    l2: int

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes in one vector register."""
        return self.vector_bytes // itemsize


@cache
def host() -> Host:
    """Describe the host, honouring ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES``."""
    name = config.CPU_NAME or llvm.get_host_cpu_name()
    assembly = _probe_assembly(name)
    if "zmm" in assembly:
        width, registers = 64, 32
    elif "ymm" in assembly:
        width, registers = 32, 16
    else:
        width, registers = 16, 16 if "xmm" in assembly else 32
    fma = "fmadd" in assembly or "fmla" in assembly
    return Host(name, width, registers, fma, _cache_size(1, 32 << 10), _cache_size(2, 512 << 10))


def _probe_assembly(name: str) -> str:
    if config.CPU_FEATURES is not None:
        features = config.CPU_FEATURES
    elif config.CPU_NAME is None:
        features = llvm.get_host_cpu_features().flatten()
    else:
        features = ""  # those that the name implies
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(cpu=name, features=features, opt=2)
    return machine.emit_assembly(llvm.parse_assembly(_PROBE))


def _cache_size(level: int, default: int) -> int:
    """Size in bytes of the data cache of a level, as Linux reports it, else `default`."""
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, size = (entry / "type").read_text().strip(), (entry / "size").read_text().strip()
            if int((entry / "level").read_text()) == level and kind in ("Data", "Unified"):
                return int(size.rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return default

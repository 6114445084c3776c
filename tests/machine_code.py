"""What the compiler made of a kernel for the GPU: its machine code, disassembled and counted. Nothing needs a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# "@!PT" marks instructions that never run, with which the assembler separates others.
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?!@!PT)(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"\.(L_x_\d+):")
_BRANCH = re.compile(r"\sBRA\b.*`\(\.(L_x_\d+)\)")
_PARAMETER = re.compile(r"Ordinal\s*:\s*0x([0-9a-f]+)\s+Offset\s*:\s*0x[0-9a-f]+\s+Size\s*:\s*0x([0-9a-f]+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


class Registers(NamedTuple):
    """Registers of a thread, and bytes of its memory for what did not fit into them or has no known index."""

    count: int
    stack: int


class Loop(NamedTuple):
    """Instructions of a loop, and how many of them are those in question."""

    instructions: int
    hits: int


def tool(name: str) -> str | None:
    """Where one of NVIDIA's binary utilities is: on the path, or in the packages of this environment."""
    folders = Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin")
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)


def missing() -> str | None:
    """Why nothing can be disassembled here, or None."""
    absent = [name for name in ("nvdisasm", "cuobjdump") if tool(name) is None]
    return f"needs {' and '.join(absent)}" if absent else None


def _output(name: str, options: list[str], cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.run(
            [str(tool(name)), *options, str(path)], capture_output=True, text=True, check=True, timeout=100
        ).stdout


def disassemble(cubin: bytes) -> str:
    """The text of nvdisasm, only instructions and labels."""
    return _output("nvdisasm", ["--print-code"], cubin)


def registers(cubin: bytes) -> Registers:
    """What one thread of the kernel takes; a stack of 0 bytes means that nothing spilled."""
    match = _USAGE.search(_output("cuobjdump", ["--dump-resource-usage"], cubin))
    assert match is not None
    return Registers(*map(int, match.groups()))


def parameters(cubin: bytes) -> list[int]:
    """Bytes of each parameter of the kernel, in order."""
    found = _PARAMETER.findall(_output("cuobjdump", ["--dump-elf"], cubin))
    return [int(size, 16) for _, size in sorted((int(ordinal, 16), size) for ordinal, size in found)]


def _opcodes(lines: list[str]) -> Iterator[str]:
    return (match.group(1) for match in map(_INSTRUCTION.match, lines) if match)


def opcodes(text: str) -> Counter[str]:
    """How often each instruction occurs, by its full name, such as LDG.E.128."""
    return Counter(_opcodes(text.splitlines()))


def main_loop(text: str, prefix: str) -> Loop:
    """The loop with most instructions whose names begin with `prefix`; of several, as loops nest, the smallest."""
    lines = text.splitlines()
    labels = {match.group(1): i for i, line in enumerate(lines) if (match := _LABEL.match(line.strip()))}
    loops = [Loop(0, 0)]
    for i, line in enumerate(lines):
        branch = _BRANCH.search(line)
        if branch and labels[branch.group(1)] < i:
            body = list(_opcodes(lines[labels[branch.group(1)] : i + 1]))
            loops.append(Loop(len(body), sum(name.startswith(prefix) for name in body)))
    return max(loops, key=lambda loop: (loop.hits, -loop.instructions))

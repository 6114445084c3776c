"""Processes that make very many calls, or calls without memory.

    python -m hostile.limits growth same 100000
    python -m hostile.limits growth different 100000
    python -m hostile.limits scarce
    python -m hostile.limits first

Prints JSON. Growth: MiB of resident memory after each tenth of the calls. Scarce: how many calls of each kind ended in
a right answer and in a MemoryError, and what was wrong. `run` starts it.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import grad, nn, optim
from fastconv.cpu.launch import image_launcher
from hostile import process

_ROOMS = [0, *(1 << n for n in range(14, 27))]  # bytes that a call may take more than what is in use


def resident() -> float:
    """MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20


def mixed(height: int, width: int, batch: int) -> list[Callable[[], Any]]:
    """A call of each kind, of a small image."""
    x = np.ones((batch, 4, height, width), np.float32)
    weight = np.ones((4, 4, 3, 3), np.float32)
    columns = np.ones((batch, 36, height * width), np.float32)
    norm, relu = nn.BatchNorm2d(4), nn.ReLU()
    return [
        lambda: fastconv.conv2d(x, weight, padding=1),
        lambda: grad.conv2d_input(x.shape, weight, x, padding=1),
        lambda: grad.conv2d_weight(x, weight.shape, x, padding=1),
        lambda: fastconv.conv_transpose2d(x, weight, padding=1),
        lambda: fastconv.max_pool2d(x, 2, return_indices=True),
        lambda: fastconv.avg_pool2d(x, 2),
        lambda: grad.avg_pool2d(x[:, :, 1:, 1:], x.shape, 2, 1),
        lambda: fastconv.im2col(x, 3, padding=1),
        lambda: fastconv.col2im(columns, (height, width), 3, padding=1),
        lambda: norm(x),
        lambda: relu(x),
        lambda: grad.conv2d_bias(x),
    ]


def growth(different: bool, calls: int) -> list[float]:
    """Memory after each tenth of the calls: of 12 kinds, of 50 shapes in turn, or of a shape that never comes again."""
    found, made = [resident()], 0
    while made < calls:
        number = made // 12 * 5381 % 97**2 if different else made // 12 % 50  # small and large images in turn
        for call in mixed(3 + number % 97, 3 + number // 97, 1):
            call()
        made += 12
        if made >= calls * len(found) / 10:
            found.append(resident())
    return found


class Case:
    """Something to do with little memory.

    `act` returns results; `state` gives the bytes that must be the same after a MemoryError.
    """

    def __init__(self, act: Callable[[], Any], state: Callable[[], bytes]) -> None:
        self.act, self.state = act, state


def cases() -> dict[str, Callable[[], Case]]:
    """What is done under the limit; each is made anew, with nothing prepared, for each limit."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 64, 64), np.float32)  # 512 KiB
    weight = rng.standard_normal((32, 32, 3, 3), np.float32)

    def call(function: Callable[..., Any], *arguments: Any, shape: tuple[int, ...] | None = None, **rest: Any) -> Any:
        def make() -> Case:
            if shape is None:
                return Case(lambda: function(*arguments, **rest), bytes)
            out = np.full(shape, 7, np.float32)
            return Case(lambda: function(*arguments, **rest, out=out), out.tobytes)

        return make

    pool = fastconv.Pool("max", 2)
    return {
        "conv2d": call(fastconv.conv2d, x, weight, None, 1, 1),
        "conv2d, out": call(fastconv.conv2d, x, weight, None, 1, 1, shape=x.shape),
        "conv2d with pooling, out": call(fastconv.conv2d, x, weight, None, 1, 1, pool=pool, shape=(1, 32, 32, 32)),
        "conv_transpose2d, out": call(fastconv.conv_transpose2d, x, weight, None, 1, 1, shape=x.shape),
        "grad.conv2d_input, out": call(grad.conv2d_input, x.shape, weight, x, 1, 1, shape=x.shape),
        "grad.conv2d_input, stride 2, out": call(
            grad.conv2d_input, (1, 32, 128, 128), weight, x, 2, 1, shape=(1, 32, 128, 128)
        ),
        "grad.conv2d_weight, out": call(grad.conv2d_weight, x, weight.shape, x, 1, 1, shape=weight.shape),
        "max_pool2d, indices, out": call(fastconv.max_pool2d, x, 2, return_indices=True, shape=(1, 32, 32, 32)),
        "avg_pool2d": call(fastconv.avg_pool2d, x, 2),
        "im2col": call(fastconv.im2col, x, 3),
        "plan": call(lambda: fastconv.plan(x.shape, weight, padding=1)(x)),
        "a training step": training,
    }


def training() -> Case:
    """Forward, backward and step of a network; its parameters and the optimizer's state must not be half updated."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, rng=rng), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 32 * 32, 16, rng=rng),
    )  # fmt: skip
    optimizer, x = optim.Adam(net.parameters()), rng.standard_normal((1, 32, 32, 32), np.float32)

    def state() -> bytes:
        own = [parameter.value.tobytes() for parameter in net.parameters()]
        kept = optimizer.state_dict()["state"].values()
        own += [np.asarray(value).tobytes() for one in kept for value in one.values()]
        return b"".join(own)

    def act() -> Any:
        optimizer.zero_grad()  # of a step that failed
        output = net(x)
        net.backward(np.ones_like(output))
        optimizer.step()
        return output

    return Case(act, state)


def first() -> dict[str, Any]:
    """The first call on several threads without room for their stacks, and with it."""
    x, weight = np.ones((1, 32, 64, 64), np.float32), np.ones((32, 32, 3, 3), np.float32)
    with fastconv.threads(1):
        right = fastconv.conv2d(x, weight)
    launcher = image_launcher()  # without memory, LLVM ends the process: nothing is to be compiled then
    _ = launcher.parallel, launcher.worker.address
    room(8 << 20)
    try:
        fastconv.conv2d(x, weight)
        failed = ""
    except MemoryError as error:
        failed = str(error)
    room(None)
    return {"failed": failed, "right": _same(fastconv.conv2d(x, weight), right)}


def room(size: int | None) -> None:
    """Let the process have so many bytes more than it has; None lifts the limit."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (most if size is None else used + size, most))


def scarce() -> dict[str, Any]:
    """Every case with less and less memory: a right answer or MemoryError, and right again with memory."""
    found: dict[str, Any] = {}
    for name, make in cases().items():
        right = make().act()
        ends = found[name] = {"right": 0, "MemoryError": 0, "wrong": []}
        for size in _ROOMS:
            fastconv.set_mode("heuristic")  # forgets what was prepared, workspaces too
            case = make()
            before, failed = case.state(), False
            room(size)
            try:
                answer = case.act()
            except MemoryError:
                failed = True
            except Exception as error:
                room(None)
                ends["wrong"].append(f"{size} bytes: {error!r:.300}")
                continue
            finally:
                room(None)
            if failed:
                ends["MemoryError"] += 1
                if case.state() != before:
                    ends["wrong"].append(f"{size} bytes: something was half done")
                answer = case.act()
            else:
                ends["right"] += 1
            if not _same(answer, right):
                ends["wrong"].append(f"{size} bytes: another answer")
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    return bool(np.array_equal(a, b))


def run(*arguments: str) -> Any:
    """What such a process prints."""
    # Arrays from 4 KiB on come from the system and go back to it, so that a limit meets them all.
    tunables = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    done = process("limits", *arguments, **(tunables if arguments[0] == "scarce" else {}))
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    faulthandler.enable()
    what, *rest = sys.argv[1:]
    if what == "growth":
        print(json.dumps(growth(rest[0] == "different", int(rest[1]))))
    else:
        print(json.dumps({"scarce": scarce, "first": first}[what]()))


if __name__ == "__main__":
    main()

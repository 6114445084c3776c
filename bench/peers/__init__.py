"""The list of peers. A new one is a maker function in a module here and one line below.

A maker ``maker(problem, arrays, threads) -> Ready`` runs in the peer's own process. `arrays` are those of
`exact.inputs`, in the problem's memory format. One for a whole training step is ``maker(threads) -> Ready``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

PEERS = {
    "fastconv plan": "peers.own:plan",
    "fastconv plan, untuned": "peers.own:untuned",
    "fastconv conv2d": "peers.own:conv2d",
    "fastconv gradient": "peers.own:gradient",
    "fastconv pool": "peers.own:pool",
    "fastconv training": "peers.own:training",
    "FMA peak": "peers.own:peak",
    "copy": "peers.own:copy",
    "torch channels-last": "peers.pytorch:channels_last",
    "torch contiguous": "peers.pytorch:contiguous",
    "oneDNN prepacked": "peers.pytorch:prepacked",
    "torch training, channels-last": "peers.pytorch:training_channels_last",
    "torch training, contiguous": "peers.pytorch:training_contiguous",
    "onnxruntime": "peers.ort:session",
    "openvino": "peers.ov:compiled",
    "jax": "peers.xla:jitted",
}


class Unsupported(Exception):
    """Raised by a maker: this peer has no such operation, so it is left out of the comparison."""


@dataclass(frozen=True)
class Ready:
    """A peer prepared for one problem.

    Attributes
    ----------
    call : callable
        Computes the problem once, and returns when it is done.
    result : callable
        The result as a NumPy array, (N, C, H, W); of training, the losses of some steps.
    note : str
        What it chose to run, if it says.
    sample : callable, optional
        Gives seconds per call instead of `call` being timed.
    """

    call: Callable[[], Any]
    result: Callable[[], np.ndarray]
    note: str = ""
    sample: Callable[[], list[float]] | None = None


def load(peer: str) -> Callable[..., Ready]:
    """The maker of a peer.

    Raises
    ------
    ValueError
        If the name is unknown; lists those that are.
    ImportError
        If what it measures is not installed.
    """
    if peer not in PEERS:
        raise ValueError(f"peer must be one of {', '.join(PEERS)}, got {peer!r}")
    module, function = PEERS[peer].split(":")
    return getattr(import_module(module), function)

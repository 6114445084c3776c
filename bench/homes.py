"""fastconv where nothing can be kept: a disk that is read-only or full, and a user without a home.

    python bench/homes.py SCENARIO

prints, as JSON, what `bench/trust_store.py` puts in its table and the tests look at. The disk is so in a mount
namespace of its own, for which Linux and `unshare` are needed, and that users may have such namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastconv

_ROOT = Path(fastconv.__file__).parents[1]
_READ_ONLY = "mount --make-rprivate / && mount -o remount,bind,ro / && "
_FULL = "mount -t tmpfs -o size=64k tmpfs $HOME && { cat /dev/zero > $HOME/filler; } 2>&- ; "
_NO_USER = "import pwd; pwd.getpwuid = lambda uid: {}[uid]"
_CALLS = """
import json, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import numpy as np
    import fastconv
    from fastconv import dispatch
    x, weight = np.ones((1, 4, 5, 5), np.float32), np.ones((4, 4, 1, 1), np.float32)
    wrong = sum(int((fastconv.conv2d(x, weight) != 4).any()) for _ in range(3))
    results = [fastconv.tune(f"n{n}c4h5w5k4r1s1_raw", budget=0.02, threads=1)[0] for n in (1, 2)]
    chosen = [dispatch.choose(result.problem, threads=1).source for result in results]
    wrong += int((fastconv.conv2d(x, weight) != 4).any())
    fastconv.set_mode("measure")
    wrong += int((fastconv.conv2d(x[..., :3], weight) != 4).any())
texts = [str(one.message) for one in seen]
print(json.dumps({"wrong": wrong, "tuned": chosen, "cache": sum("compiled kernels" in one for one in texts),
    "store": sum("wisdom store" in one for one in texts), "warnings": len(texts), "texts": texts}))
"""


def read_only(folder: Path) -> dict[str, Any]:
    """A disk that cannot be written, with the home directory."""
    return calls({"HOME": str(folder)})


def no_home(_: Path) -> dict[str, Any]:
    """The same, with a user that is in no list and has no home."""
    return calls({}, code=_NO_USER + _CALLS)


def named(_: Path) -> dict[str, Any]:
    """The same, with a wisdom file and a folder for Numba that are named, and are none."""
    return calls({"FASTCONV_WISDOM": "/dev/null/wisdom", "NUMBA_CACHE_DIR": "/dev/null/numba", "HOME": "/dev/null"})


def full(folder: Path) -> dict[str, Any]:
    """Home on a disk that is full, everything else on one that is read-only."""
    return calls({"HOME": str(folder)}, _READ_ONLY + _FULL)


def calls(variables: dict[str, str], mounts: str = _READ_ONLY, code: str = _CALLS) -> dict[str, Any]:
    """What a process finds that makes calls and tunes."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounts + 'exec "$@"', "sh", sys.executable, "-c", code],
        env=kept | {"PYTHONPATH": str(_ROOT)} | variables, cwd="/", capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        return {"wrong": 1, "error": done.stderr[-2000:]}
    found = json.loads(done.stdout)
    as_expected = found["tuned"] == ["wisdom"] * 2 and [found[one] for one in ("cache", "store")] == [1, 1]
    found["wrong"] += not as_expected or found["warnings"] != 2
    return found


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "read-only": read_only, "no home": no_home, "named": named, "full": full,
}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(SCENARIOS[sys.argv[1]](Path(folder))))


if __name__ == "__main__":
    main()

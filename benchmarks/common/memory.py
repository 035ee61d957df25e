"""Peak memory of one run on a CPU, in a separate process.

    python -m benchmarks.common.memory benchmarks.common.memory attention '{"stage": "layer", "name": "symground", …}'

The named function returns two callables: one to call first (imports, threads, compilation), and the run. The result is
the high-water mark of the resident set during the run minus the resident set before it. `ru_maxrss` is used only where
Linux offers nothing better, because a child inherits it from the process that started it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[], Any]


#: Makes glibc map pieces of 128 KiB or more one by one, and return them to the system when they are freed.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def peak_in_subprocess(module: str, function: str, *, held: bool = False, **arguments: Any) -> dict[str, int]:
    """{"peak_bytes", "result_bytes"} of the run that ``module.function(**arguments)`` prepares.

    With ``held``, freed memory that the allocator keeps does not count. This is what a formula can predict.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.common.memory", module, function, json.dumps(arguments)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **(MAPPED if held else {})},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def _before() -> int:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # the baseline has no freed memory that the allocator keeps
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        return _status("VmRSS")
    except (OSError, AttributeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(run: Run) -> tuple[Any, int]:
    """(what the run returns, bytes of the resident set's high-water mark in the run above the set before it)"""
    before = _before()
    result = run()
    return result, _peak() - before


class Anonymous:
    """The process's largest anonymous memory, resident or swapped, within the block, minus that before it.

    The resident set also counts pages of files; if memory is short, the system drops these and swaps other pages. This
    measure does not change then. It is read every millisecond.
    """

    def __enter__(self) -> Anonymous:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._before = self._most = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        return self._most - self._before

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self._most = max(self._most, _anonymous())


def _anonymous() -> int:
    return _status("RssAnon") + _status("VmSwap")


def attention(stage: str, name: str, shape: dict[str, Any]) -> tuple[Run, Run]:
    """One peer of `peers/attention.py`: (a run to do first, the measured run)."""
    from benchmarks.common.inputs import Inputs, Shape
    from benchmarks.peers.attention import find

    peer, full = find(stage, name), Shape(**shape)
    run = peer.prepare(Inputs(full))
    # A compiled peer compiles for the measured shape. Others first run a small shape, which leaves little memory.
    return (run if peer.compiles else peer.prepare(Inputs(Shape(1, full.H, 64, full.D, full.dtype)))), run


def of_model(peers: Any, name: str, model: Any) -> dict[str, int]:
    """Peak and result of one peer of a whole model; ``peers`` is its module, with PEERS and `in_memory`."""
    from benchmarks.common.measure import gpu_memory

    if model.device == "cpu":
        return peak_in_subprocess(peers.__name__, "in_memory", name=name, model=model.row)
    run = peers.PEERS[name](model)
    run()
    peak, result = gpu_memory(run)
    return {"peak_bytes": peak, "result_bytes": result}


def main() -> None:
    from benchmarks.common.measure import result_bytes

    first, run = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(**json.loads(sys.argv[3]))
    first()
    result, peak = peak_of(run)
    print(json.dumps({"peak_bytes": peak, "result_bytes": result_bytes(result)}))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

"""Measured configurations, on request: SYMGROUND_AUTOTUNE=1. Without it, nothing here runs.

The first call for each kernel, head size and shape (lengths by powers of two) then measures the candidates and saves
the fastest in a JSON file (SYMGROUND_CACHE, else ~/.cache/symground), from which later processes read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.errors import TritonError
from triton.testing import do_bench

from symground.kernels.common.configs import Config

_known: dict[str, Config] = {}


def candidates(shipped: Config) -> Iterator[Config]:
    """The shipped configuration first, then those that differ from it by one step."""
    yield shipped
    for BM in (32, 64, 128):
        for BN in (32, 64, 128):
            for warps in (4, 8):
                for stages in (1, 2, 3, 4):
                    config = Config(BM, BN, warps, stages)
                    if config != shipped:
                        yield config


def best(kernel: str, architecture: str, key: tuple[Any, ...], shipped: Config, run: Callable[[Config], Any]) -> Config:
    """The fastest candidate for this key, from memory, from the file, or by measuring."""
    name = "/".join(map(str, (kernel, architecture, torch.cuda.get_device_name(), triton.__version__, *key)))
    if name not in _known:
        _known.update({key: Config(*value) for key, value in _read().items()})
    if name not in _known:
        _known[name] = min(candidates(shipped), key=lambda config: _time(run, config))
        _write({**_read(), name: list(_known[name])})
    return _known[name]


def _time(run: Callable[[Config], Any], config: Config) -> float:
    try:
        return float(do_bench(lambda: run(config), warmup=5, rep=20))
    except (TritonError, RuntimeError):
        return float("inf")  # it does not fit this device


def _path() -> Path:
    return Path(os.environ.get("SYMGROUND_CACHE", Path.home() / ".cache" / "symground")) / "tuning.json"


def _read() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found


def _write(found: dict[str, Any]) -> None:
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(found, indent=1, sort_keys=True))
    temporary.replace(path)

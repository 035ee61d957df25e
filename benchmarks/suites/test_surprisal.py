"""Surprisal of candidates, and the training loss, beside their peers: N 8192 (the loss on a CPU: 2048), D 768, V 50257,
K 100.

python -m pytest benchmarks/suites/test_surprisal.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common.measure import gpu_memory
from benchmarks.common.memory import peak_in_subprocess
from benchmarks.conftest import MISSING
from benchmarks.peers import surprisal as surprisal_peers
from benchmarks.peers.surprisal import PEERS, STAGES, Inputs, Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ("float32", "bfloat16") if DEVICE == "cuda" else ("float32",)


def cases() -> Iterator[Any]:
    for dtype in DTYPES:
        for stage in STAGES:
            names, missing = surprisal_peers.available(stage, dtype, DEVICE)
            MISSING.update(missing)
            shape = Shape(2048 if stage == "loss" and DEVICE == "cpu" else 8192, dtype=dtype)
            yield from (pytest.param(stage, name, shape, id=f"{stage}-{dtype}-{name}") for name in names)


def prepared(stage: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    x = Inputs(shape, DEVICE)
    return {name: PEERS[name](x, stage) for name in surprisal_peers.available(stage, shape.dtype, DEVICE)[0]}


def memory(stage: str, name: str, shape: Shape) -> dict[str, int]:
    if DEVICE == "cpu":
        return peak_in_subprocess("benchmarks.peers.surprisal", "in_memory", stage=stage, name=name, shape=shape.row)
    run = PEERS[name](Inputs(shape, DEVICE), stage)
    run()
    peak, result = gpu_memory(run)
    return {"peak_bytes": peak, "result_bytes": result}


@pytest.mark.parametrize(("stage", "name", "shape"), cases())
def test_surprisal(benchmark: Any, in_turns: Callable[..., None], stage: str, name: str, shape: Shape) -> None:
    in_turns(f"{stage}, {shape}", name, partial(prepared, stage, shape), 5 if stage == "surprisal" else 3, DEVICE)
    benchmark.extra_info |= {"stage": stage, "peer": name, **shape.row, **memory(stage, name, shape)}

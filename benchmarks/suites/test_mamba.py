"""Mamba-2: a training step beside transformers' (4 layers of width 256, B4 T512), SSD alone, and a layer's saliency.

python -m pytest benchmarks/suites/test_mamba.py --benchmark-only --benchmark-json=FILE
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
from benchmarks.peers.mamba import STAGES, Shape, missing, names, prepared

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Saliency is measured on a layer of the study's width, 768, at T 1024.
SHAPES = {"mamba2 step": Shape(), "ssd": Shape(), "ssd saliency": Shape(B=2, T=1024, H=24, N=128)}


MISSING.update(missing(DEVICE))


def cases() -> Iterator[Any]:
    for stage in STAGES:
        yield from (pytest.param(stage, name, SHAPES[stage], id=f"{stage}-{name}") for name in names(stage, DEVICE))


def memory(stage: str, name: str, shape: Shape) -> dict[str, int]:
    if DEVICE == "cpu":
        return peak_in_subprocess("benchmarks.peers.mamba", "in_memory", stage=stage, name=name, shape=shape.row)
    run = prepared(stage, shape, DEVICE)[name]
    run()
    peak, result = gpu_memory(run)
    return {"peak_bytes": peak, "result_bytes": result}


@pytest.mark.parametrize(("stage", "name", "shape"), cases())
def test_mamba(benchmark: Any, in_turns: Callable[..., None], stage: str, name: str, shape: Shape) -> None:
    in_turns(f"{stage}, {shape}", name, partial(prepared, stage, shape, DEVICE), 7, DEVICE)
    benchmark.extra_info |= {"stage": stage, "peer": name, **shape.row, **memory(stage, name, shape)}

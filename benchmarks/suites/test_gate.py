"""Gating heads beside the formula in PyTorch, eager and compiled: B8 T1024 H12 D64, gates 0, 1 and between.

python -m pytest benchmarks/suites/test_gate.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.peers.gate import PEERS, Inputs, Shape, names

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [Shape(), Shape(filled=True), Shape(M=12), Shape(mixed=False), Shape(filled=True, mixed=False)]


def cases() -> Iterator[Any]:
    for shape in SHAPES:
        yield from (pytest.param(shape, name, id=f"{shape}-{name}") for name in names(shape))


def prepared(shape: Shape) -> dict[str, Callable[[], Any]]:
    inputs = Inputs(shape, DEVICE)
    return {name: PEERS[name](inputs) for name in names(shape)}


@pytest.mark.parametrize(("shape", "name"), cases())
def test_gate(benchmark: Any, in_turns: Callable[..., None], shape: Shape, name: str) -> None:
    in_turns(f"gate, {shape}", name, partial(prepared, shape), 9 if shape.M else 101, DEVICE)
    benchmark.extra_info |= {"stage": "gate", "peer": name, **shape.row}

"""A step of fitting the tuned lens to all depths beside one forward pass over the same rows.

python -m pytest benchmarks/suites/test_lens.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.peers.lens import FORWARD, SHAPES, STAGE, STEP, runs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", [FORWARD, STEP])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]} B{shape[1]} T{shape[2]} V{shape[3]}")
def test_lens(benchmark: Any, in_turns: Callable[..., None], shape: tuple[Any, ...], name: str) -> None:
    in_turns(f"lens, {shape}", name, partial(runs, *shape, DEVICE), 7, DEVICE)
    row = dict(zip(("model", "B", "T", "vocabulary", "share"), shape, strict=True))
    benchmark.extra_info |= {"stage": STAGE, "peer": name, "device": DEVICE, **row}

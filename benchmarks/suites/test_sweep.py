"""The effect of all 144 heads of a 12-layer GPT-2 over 256 probes, beside one hooked forward pass per head. It is slow.

python -m pytest benchmarks/suites/test_sweep.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.conftest import MISSING
from benchmarks.peers import sweep as sweep_peers
from benchmarks.peers.sweep import PEERS, Sweep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES, _missing = sweep_peers.available()
MISSING.update(_missing)


def prepared(sweep: Sweep) -> dict[str, Callable[[], Any]]:
    return {name: PEERS[name](sweep) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_sweep(benchmark: Any, in_turns: Callable[..., None], name: str) -> None:
    sweep = Sweep(device=DEVICE)
    in_turns("sweep", name, partial(prepared, sweep), 3, DEVICE)
    benchmark.extra_info |= {"stage": "sweep", "peer": name, **sweep.row, "pairs": sweep_peers.pairs(name, sweep)}

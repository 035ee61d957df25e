"""The grid of 100 × 100 nouns × 10 contexts beside its peers, and memory against the number of contexts.

python -m pytest benchmarks/suites/test_score.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common.memory import peak_in_subprocess
from benchmarks.conftest import MISSING
from benchmarks.peers import score as score_peers
from benchmarks.peers.score import PEERS, STREAMED, Grid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES, _missing = score_peers.available()
MISSING.update(_missing)


def prepared(grid: Grid) -> dict[str, Callable[[], Any]]:
    return {name: PEERS[name](grid) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_score(benchmark: Any, in_turns: Callable[..., None], name: str) -> None:
    grid = Grid(device=DEVICE)
    in_turns("score", name, partial(prepared, grid), 5, DEVICE)
    benchmark.extra_info |= {"stage": "score", "peer": name, **grid.row, "pairs": score_peers.scored(name, grid)}
    if DEVICE == "cpu":
        benchmark.extra_info |= peak_in_subprocess("benchmarks.peers.score", "in_memory", name=name, grid=grid.row)


@pytest.mark.skipif(DEVICE != "cpu", reason="measured by the resident set")
@pytest.mark.parametrize("contexts", [10, 40, 160, 640])
def test_memory_of_streaming(benchmark: Any, in_turns: Callable[..., None], contexts: int) -> None:
    grid = Grid(contexts=contexts)
    in_turns(f"streaming {contexts}", STREAMED, lambda: {STREAMED: PEERS[STREAMED](grid)}, 1, DEVICE)
    memory = peak_in_subprocess("benchmarks.peers.score", "in_memory", name=STREAMED, grid=grid.row)
    benchmark.extra_info |= {"stage": "streaming", "peer": STREAMED, **grid.row, "pairs": grid.pairs, **memory}

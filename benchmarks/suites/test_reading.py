"""A whole model's attention read, beside its peers: 12-layer GPT-2, random weights, B2 T1024, float32.

python -m pytest benchmarks/suites/test_reading.py --benchmark-only --benchmark-json=FILE

Before anything is timed, the peers' numbers are compared with ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common.memory import of_model
from benchmarks.conftest import MISSING
from benchmarks.peers import reading as reading_peers
from benchmarks.peers.reading import PEERS, READ, STAGE, check_same
from benchmarks.peers.trace import Model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES, _missing = reading_peers.available()
MISSING.update(_missing)


def prepared(model: Model) -> dict[str, Callable[[], Any]]:
    runs = {name: PEERS[name](model) for name in NAMES}
    if READ in runs:
        check_same(runs)
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_reading(benchmark: Any, in_turns: Callable[..., None], pytestconfig: Any, name: str) -> None:
    layers, T = pytestconfig.getoption("--layers"), pytestconfig.getoption("--length")
    model = Model(device=DEVICE, layers=layers, T=T)
    in_turns(f"{STAGE}, {layers} layers, T{T}", name, partial(prepared, model), 5, DEVICE)
    benchmark.extra_info |= {"stage": STAGE, "peer": name, **model.row, **of_model(reading_peers, name, model)}

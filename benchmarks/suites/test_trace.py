"""A whole-model trace beside its peers: 12-layer GPT-2, random weights, B2 T1024, float32, and on a GPU bfloat16 too.

python -m pytest benchmarks/suites/test_trace.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common.memory import of_model
from benchmarks.conftest import MISSING
from benchmarks.peers import trace as trace_peers
from benchmarks.peers.trace import PEERS, Model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ("float32", "bfloat16") if DEVICE == "cuda" else ("float32",)
NAMES, _missing = trace_peers.available()
MISSING.update(_missing)


def prepared(model: Model) -> dict[str, Callable[[], Any]]:
    return {name: PEERS[name](model) for name in NAMES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_trace(benchmark: Any, in_turns: Callable[..., None], pytestconfig: Any, dtype: str, name: str) -> None:
    layers, T = pytestconfig.getoption("--layers"), pytestconfig.getoption("--length")
    model = Model(dtype=dtype, device=DEVICE, layers=layers, T=T)
    in_turns(f"trace, {layers} layers, T{T} {dtype}", name, partial(prepared, model), 5, DEVICE)
    benchmark.extra_info |= {"stage": "trace", "peer": name, **model.row, **of_model(trace_peers, name, model)}

"""One layer's attention and saliency beside its peers, in one process; 4096 tokens, H12 D64, causal, T 128 to 4096.

    python -m pytest benchmarks/suites/test_attention.py --benchmark-only --benchmark-json=FILE

Compiled peers are measured at T 1024, and memory at T 1024 and 4096; `--complete` measures both at every length.
`-k "T1024-float32"` selects one shape. The file lists what the machine cannot run under "missing".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common.inputs import Inputs, Shape, constant_tokens
from benchmarks.common.measure import gpu_memory
from benchmarks.common.memory import peak_in_subprocess
from benchmarks.conftest import MISSING
from benchmarks.peers.attention import STAGES, Peer, available

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
#: On a CPU, attention's forward and backward pass are PyTorch's own, so they are not compared.
COMPARED = STAGES if DEVICE == "cuda" else ("layer", "saliency", "flow", "rows", "weights", "options")
SHAPES = [constant_tokens(T) for T in LENGTHS]
if DEVICE == "cuda":
    SHAPES += [
        *(constant_tokens(T, "bfloat16") for T in LENGTHS),
        *(Shape(8, 12, T, 64, "bfloat16") for T in (1024, 4096)),
    ]
pytestmark = pytest.mark.benchmark


def cases() -> Iterator[Any]:
    for shape in SHAPES:
        for stage in COMPARED:
            if stage == "options" and shape.T != 1024:
                continue
            peers, missing = available((stage,), shape, DEVICE)
            MISSING.update({f"{name}, {shape.dtype}": reason for name, reason in missing.items()})
            for peer in peers:
                yield pytest.param(shape, peer, id=f"{stage}-B{shape.B}-T{shape.T}-{shape.dtype}-{peer.name}")


def asked(config: Any, shape: Shape, peer: Peer) -> bool:
    return not peer.compiles or config.getoption("--complete") or shape.T == 1024


def prepared(config: Any, shape: Shape, stage: str) -> dict[str, Callable[[], Any]]:
    x = Inputs(shape, DEVICE)
    return {p.name: p.prepare(x) for p in available((stage,), shape, DEVICE)[0] if asked(config, shape, p)}


def memory(shape: Shape, peer: Peer) -> dict[str, int]:
    if DEVICE == "cpu":
        return peak_in_subprocess(
            "benchmarks.common.memory", "attention", stage=peer.stage, name=peer.name, shape=shape.row
        )
    run = peer.prepare(Inputs(shape, DEVICE))
    run()
    peak, result = gpu_memory(run)
    return {"peak_bytes": peak, "result_bytes": result}


@pytest.mark.parametrize(("shape", "peer"), cases())
def test_attention(benchmark: Any, in_turns: Callable[..., None], request: Any, shape: Shape, peer: Peer) -> None:
    if not asked(request.config, shape, peer):
        pytest.skip("compiled at T 1024 only: --complete compiles at every length")
    rounds = 7 if shape.T == 1024 else 3
    runs = partial(prepared, request.config, shape, peer.stage)
    in_turns(f"{peer.stage}, {shape}", peer.name, runs, rounds, DEVICE)
    benchmark.extra_info |= {"stage": peer.stage, "peer": peer.name, **shape.row}
    if DEVICE == "cuda" or request.config.getoption("--complete") or shape.T in (1024, 4096):
        benchmark.extra_info |= memory(shape, peer)

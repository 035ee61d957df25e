"""Tile sizes, warps and pipeline stages of every kernel, per architecture and head size.

An explicit table: nothing is tuned at first use. The entries compile without local-memory access in their loops
(`benchmarks/kernel_table.py` prints registers and shared memory of each and fails where that stops being true).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

KERNELS = (
    "attention_forward", "delta", "dq", "dq_flow", "dkdv", "attention_saliency", "attention_flow",
    "attention_saliency_rows",
)  # fmt: skip


class Config(NamedTuple):
    """BM queries × BN keys a tile."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._asdict()


#: The interpreter's tiles: small, so that small inputs have many, and of two sizes, so that a mix-up shows.
INTERPRETER = Config(32, 16, 4, 1)

#: (architecture, bytes of an element) → kernel → {largest BLOCK_D: configuration}.
TABLE: dict[tuple[str, int], dict[str, dict[int, Config]]] = {}


@functools.cache
def architecture_of(device: torch.device) -> str:
    """ "sm_80", "sm_90" or "sm_100": the nearest shipped one; "interpreter" for a CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


def shipped(kernel: str, architecture: str, block_d: int, element_size: int) -> Config:
    """The table's entry for a head of at most ``block_d``."""
    if architecture == "interpreter":
        return INTERPRETER
    by_size = TABLE[architecture, element_size][kernel]
    return by_size[min(size for size in by_size if size >= block_d)]

"""Tile sizes, warps and pipeline stages of every kernel, per architecture and head size.

An explicit table: nothing is tuned at first use. Causal, the entries compile without local-memory access in their loops
(`benchmarks/kernel_table.py` prints registers and shared memory of each and fails where that stops being true).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

KERNELS = (
    "attention_forward", "delta", "dq", "dq_flow", "dkdv", "attention_saliency", "attention_flow",
    "attention_saliency_rows", "ssd_saliency", "ssd_flow", "ssd_forward", "ssd_dx", "ssd_dbdc",
    "vocabulary_lse", "logits_gradient", "shared_candidates", "own_candidates",
)  # fmt: skip


class Config(NamedTuple):
    """BM queries × BN keys a tile; rows × words, for a vocabulary."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._asdict()


#: The interpreter's tiles: small, so that small inputs have many, and of two sizes, so that a mix-up shows.
INTERPRETER = Config(32, 16, 4, 1)

#: Kernels of which one tile serves everywhere: a pass over rows, bound by memory (no BN), or a small product.
FIXED = {
    "delta": Config(32, 32, 4, 1),
    "shared_candidates": Config(32, 32, 4, 2),
    "own_candidates": Config(32, 32, 4, 1),
}

#: Kernels that take rows of any length, a piece at a time: what fits one of CUDA's architectures fits all of them.
VOCABULARY = {
    ("cuda", 2): Config(128, 128, 8, 3),
    ("cuda", 4): Config(128, 64, 8, 2),
    ("gfx942", 2): Config(128, 128, 8, 2),
    ("gfx942", 4): Config(64, 64, 8, 2),
}

#: SSD's, whose tiles take the columns of their operands in parts. BM of ssd_forward is the length of a chunk, which the
#: backward pass takes too; BN is the part of the state that a program holds.
SSD: dict[tuple[str, int], dict[str, Config]] = {
    ("cuda", 2): {
        "ssd_saliency": Config(64, 64, 8, 1), "ssd_flow": Config(64, 32, 4, 1), "ssd_forward": Config(64, 64, 8, 1),
        "ssd_dx": Config(64, 64, 8, 1), "ssd_dbdc": Config(64, 32, 8, 1),
    },
    ("cuda", 4): {
        "ssd_saliency": Config(64, 32, 8, 1), "ssd_flow": Config(32, 16, 4, 1), "ssd_forward": Config(32, 32, 4, 1),
        "ssd_dx": Config(32, 16, 4, 1), "ssd_dbdc": Config(32, 16, 4, 1),
    },
    ("sm_86", 2): {
        "ssd_saliency": Config(64, 64, 8, 1), "ssd_flow": Config(64, 32, 4, 1), "ssd_forward": Config(32, 64, 4, 1),
        "ssd_dx": Config(32, 64, 4, 1), "ssd_dbdc": Config(32, 32, 4, 1),
    },
    ("gfx942", 2): {
        "ssd_saliency": Config(64, 64, 4, 1), "ssd_flow": Config(32, 32, 4, 1), "ssd_forward": Config(64, 32, 4, 1),
        "ssd_dx": Config(64, 32, 4, 1), "ssd_dbdc": Config(64, 32, 4, 1),
    },
    ("gfx942", 4): {
        "ssd_saliency": Config(32, 32, 4, 1), "ssd_flow": Config(16, 16, 4, 1), "ssd_forward": Config(32, 32, 4, 1),
        "ssd_dx": Config(32, 32, 4, 1), "ssd_dbdc": Config(32, 32, 4, 1),
    },
}  # fmt: skip

#: (architecture, bytes of an element) → kernel → {largest BLOCK_D: configuration}. float32's three-part products take
#: many registers: heads beyond 64 have small tiles there, those beyond 128 larger ones again, being taken in chunks.
TABLE: dict[tuple[str, int], dict[str, dict[int, Config]]] = {
    ("sm_80", 2): {
        "attention_forward": {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 2)},
        "dq": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 2)},
        "dq_flow": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 1)},
        "dkdv": {64: Config(64, 128, 8, 3), 128: Config(32, 64, 4, 2), 256: Config(64, 64, 8, 2)},
        "attention_saliency": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(64, 64, 8, 2)},
        "attention_flow": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 32, 4, 2)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
    },
    ("sm_80", 4): {
        "attention_forward": {64: Config(128, 32, 8, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dq_flow": {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dkdv": {
            32: Config(16, 32, 4, 1),
            64: Config(32, 32, 4, 2),
            128: Config(16, 16, 4, 1),
            256: Config(16, 16, 8, 1),
        },
        "attention_saliency": {64: Config(64, 32, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(128, 32, 8, 1)},
        "attention_flow": {64: Config(64, 32, 4, 2), 128: Config(32, 16, 4, 1), 256: Config(32, 64, 8, 1)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
    },
    # Chips with 99 KiB of shared memory a program: 3090, A10, 4090, L4, 5090.
    ("sm_86", 2): {
        "attention_forward": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        "dq": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        "dq_flow": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        "dkdv": {64: Config(64, 128, 8, 2), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        "attention_saliency": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        "attention_flow": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(64, 32, 4, 2)},
        "attention_saliency_rows": {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
    },
    ("sm_86", 4): {
        "attention_forward": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 32, 8, 1)},
        "dq_flow": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 32, 4, 1)},
        "dkdv": {
            32: Config(32, 64, 4, 2),
            64: Config(32, 32, 4, 1),
            128: Config(16, 16, 4, 1),
            256: Config(16, 16, 8, 1),
        },
        "attention_saliency": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        "attention_flow": {64: Config(64, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        "attention_saliency_rows": {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 64, 8, 1)},
    },
    ("sm_90", 2): {
        "attention_forward": {64: Config(128, 128, 8, 3), 128: Config(128, 128, 8, 3), 256: Config(128, 64, 8, 2)},
        "dq": {64: Config(128, 128, 8, 2), 128: Config(128, 128, 8, 2), 256: Config(64, 64, 4, 2)},
        "dq_flow": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(32, 32, 4, 2)},
        "dkdv": {64: Config(64, 128, 8, 3), 128: Config(32, 128, 8, 2), 256: Config(32, 32, 4, 1)},
        "attention_saliency": {64: Config(128, 128, 8, 2), 128: Config(128, 64, 8, 2), 256: Config(64, 64, 8, 1)},
        "attention_flow": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 4, 2)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
    },
    ("sm_90", 4): {
        "attention_forward": {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(128, 64, 8, 3), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dq_flow": {64: Config(64, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        "dkdv": {
            32: Config(32, 128, 8, 1),
            64: Config(32, 32, 4, 2),
            128: Config(16, 16, 4, 1),
            256: Config(16, 16, 8, 1),
        },
        "attention_saliency": {64: Config(128, 64, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(64, 32, 8, 1)},
        "attention_flow": {64: Config(128, 64, 8, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 64, 8, 1)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
    },
    ("sm_100", 2): {
        "attention_forward": {64: Config(128, 128, 8, 3), 128: Config(128, 128, 8, 3), 256: Config(128, 32, 8, 2)},
        "dq": {64: Config(128, 128, 8, 2), 128: Config(128, 128, 8, 2), 256: Config(64, 64, 4, 2)},
        "dq_flow": {
            32: Config(64, 64, 8, 2),
            64: Config(64, 64, 8, 2),
            128: Config(64, 64, 8, 2),
            256: Config(64, 64, 8, 2),
        },
        "dkdv": {64: Config(64, 128, 8, 3), 128: Config(64, 128, 8, 3), 256: Config(32, 64, 4, 2)},
        "attention_saliency": {64: Config(128, 128, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(128, 64, 8, 2)},
        "attention_flow": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 4, 2)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
    },
    ("sm_100", 4): {
        "attention_forward": {64: Config(128, 64, 8, 3), 128: Config(32, 32, 4, 2), 256: Config(64, 32, 8, 1)},
        "dq": {64: Config(64, 64, 8, 2), 128: Config(16, 16, 4, 1), 256: Config(64, 16, 8, 1)},
        "dq_flow": {64: Config(64, 64, 8, 1), 128: Config(16, 16, 4, 1), 256: Config(64, 16, 8, 1)},
        "dkdv": {
            32: Config(16, 32, 4, 1),
            64: Config(32, 32, 4, 2),
            128: Config(16, 16, 4, 1),
            256: Config(16, 16, 8, 1),
        },
        "attention_saliency": {64: Config(128, 64, 8, 2), 128: Config(64, 32, 4, 1), 256: Config(32, 64, 8, 1)},
        "attention_flow": {64: Config(64, 64, 8, 2), 128: Config(32, 16, 4, 1), 256: Config(32, 64, 8, 1)},
        "attention_saliency_rows": {64: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
    },
    ("gfx942", 2): {
        "attention_forward": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "dq": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "dq_flow": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "dkdv": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "attention_saliency": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "attention_flow": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        "attention_saliency_rows": {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
    },
    ("gfx942", 4): {
        "attention_forward": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "dq": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "dq_flow": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "dkdv": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "attention_saliency": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "attention_flow": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "attention_saliency_rows": {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
    },
}


@functools.cache
def architecture_of(device: torch.device) -> str:
    """The shipped architecture that a device is nearest to, or the interpreter for a CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    if capability in ((8, 6), (8, 9)) or capability[0] == 12:
        return "sm_86"
    return {8: "sm_80", 9: "sm_90"}.get(capability[0], "sm_100")


def shipped(kernel: str, architecture: str, block_d: int, element_size: int) -> Config:
    """The table's entry for a head of at most ``block_d``."""
    if architecture == "interpreter":
        return INTERPRETER
    if kernel in FIXED:
        return FIXED[kernel]
    family = "gfx942" if architecture == "gfx942" else "cuda"
    if kernel in ("vocabulary_lse", "logits_gradient"):
        return VOCABULARY[family, element_size]
    of_ssd = SSD.get((architecture, element_size), SSD[family, element_size])
    if kernel in of_ssd:
        return of_ssd[kernel]
    by_size = TABLE[architecture, element_size][kernel]
    return by_size[min(size for size in by_size if size >= block_d)]

"""Tile sizes, warps and pipeline stages: the lookup in the kernels' tables, which are in the kernels' files.

The tables are explicit: nothing is tuned at first use. With only a causal mask, the entries compile without
local-memory access in their loops (`python -m benchmarks kernels` prints each entry's registers and shared memory, and
checks this).

On sm_86, whose multiprocessors have 100 KiB, half-precision attention has the most stages, up to 3, with which two
programs fit there; where one stage admits only one program, it has 2 or 3 if they keep it out of local memory.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

# The tables are checked with multiply-adds fused. Triton reads this when it compiles a kernel; a version that changes
# its default warns where it is not set.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


class Config(NamedTuple):
    """BM queries × BN keys in a tile; rows × words for a vocabulary."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"BM": self.BM, "BN": self.BN, "num_warps": self.num_warps, "num_stages": self.num_stages}


#: A kernel's table: (architecture, bytes of an element) → a configuration, or {largest BLOCK_D: configuration}. "cuda"
#: is for CUDA architectures without an entry. A configuration in place of a table is for all architectures. Where the
#: rule of `shipped` for lighter ones touches local memory, there are entries of these.
Tiles: TypeAlias = Config | Mapping[tuple[str, int], Config | Mapping[int, Config]]

#: The kernels whose tile of keys loops over queries.
OVER_QUERIES = ("dkdv",)
#: Follows an architecture's name in a table, for the entries that leave registers for what a call asks for beside.
LIGHTER = ", lighter"
#: The widest heads for which the tables have entries, and by the bytes of an element what wider ones have.
WIDEST = 256
WIDE = {2: Config(32, 32, 4, 1), 4: Config(16, 16, 4, 1)}
#: Architectures whose shared memory is too small for such tiles in the backward pass.
WITHOUT_WIDE = ("sm_86",)
#: Scores of a tile per thread, from which on a lighter configuration differs.
MANY = 16

#: The interpreter's tiles: small, so that small inputs have several, and not square, so that mixed-up sizes show.
INTERPRETER = Config(32, 16, 4, 1)


@functools.cache
def architecture_of(device: torch.device) -> str:
    """The shipped architecture nearest to a device's, or the interpreter for a CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    if capability in ((8, 6), (8, 9)) or capability[0] == 12:
        return "sm_86"
    return {8: "sm_80", 9: "sm_90"}.get(capability[0], "sm_100")


def tables() -> dict[str, Tiles]:
    """The tables of all kernels by the kernels' names, from every file beside this folder."""
    found: dict[str, Tiles] = {}
    for file in sorted(Path(__file__).parents[1].glob("*/*.py")):
        module = importlib.import_module(f"symground.kernels.{file.parent.name}.{file.stem}")
        found |= getattr(module, "TILES", {})
    return found


def shipped(
    kernel: str, tables: Mapping[str, Tiles], architecture: str, size: int, element_size: int, lighter: bool = False
) -> Config:
    """The table's entry for heads of this size, or if ``lighter`` one that leaves registers for what it does not count.

    The lighter one is the table's under ``LIGHTER``, if it has one there. Else, where a thread has many of a tile's
    scores, it has twice as many threads, or if these are 8 warps already, half as much of what the kernel loops over.
    """
    if architecture == "interpreter":
        return INTERPRETER
    tiles = tables[kernel]
    if isinstance(tiles, Config):
        return tiles
    found = tiles.get((architecture, element_size)) or tiles["cuda", element_size]
    if not isinstance(found, Config):
        if size > WIDEST:
            return WIDE[element_size]
        size = min(most for most in found if most >= size)
        found = found[size]
    special = tiles.get((architecture + LIGHTER, element_size))
    if lighter and special is not None and not isinstance(special, Config) and size in special:
        return special[size]
    of_thread = found.BM * found.BN // (found.num_warps * 32)
    if not lighter or of_thread < MANY:
        return found
    if found.num_warps < 8:
        return found._replace(num_warps=8)
    looped = "BM" if kernel in OVER_QUERIES else "BN"
    return found._replace(**{looped: max(16, getattr(found, looped) // 2)})

"""What every launcher needs: rows in the layout that kernels take, and the configuration to launch with.

The tables of configurations are in the kernels' files, `TILES`. They are explicit: nothing is tuned at first use. With
only a causal mask, the entries compile without local-memory access in their loops (`python -m benchmarks kernels`
prints each entry's registers and shared memory, and checks this).
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor

#: Bytes of a row per step of a product that reads its rows in chunks.
CHUNK_BYTES = 128
#: The widest float32 rows of which two tiles, each in its TF32 parts, fit the registers.
WHOLE = 128


class Config(NamedTuple):
    """BM queries × BN keys in a tile; rows × words for a vocabulary."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    @property
    def kwargs(self) -> dict[str, Any]:
        return self._asdict()


#: A kernel's table: (architecture, bytes of an element) → a configuration, or {largest BLOCK_D: configuration}. "cuda"
#: is for CUDA architectures without an entry. A configuration in place of a table is for all architectures.
Tiles: TypeAlias = Config | Mapping[tuple[str, int], Config | Mapping[int, Config]]

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


def shipped(kernel: str, tables: Mapping[str, Tiles], architecture: str, block_d: int, element_size: int) -> Config:
    """The table's entry for a head of at most ``block_d``."""
    if architecture == "interpreter":
        return INTERPRETER
    tiles = tables[kernel]
    if isinstance(tiles, Config):
        return tiles
    found = tiles.get((architecture, element_size)) or tiles["cuda", element_size]
    return found if isinstance(found, Config) else found[min(size for size in found if size >= block_d)]


def rows_adjacent(x: Tensor) -> Tensor:
    """[B,H,T,D] with contiguous rows, for loads of 16 bytes; copied only if they are not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def block_of(size: int) -> int:
    """The width of a tile for heads of this size: a power of two, as Triton requires, and at least a dot's minimum."""
    return max(16, int(triton.next_power_of_2(size)))


def chunk_of(x: Tensor) -> int:
    """Columns per step of a product that reads the rows of ``x`` in chunks."""
    return min(block_of(x.shape[-1]), CHUNK_BYTES // x.element_size())


def too_wide(x: Tensor) -> bool:
    """Whether the rows of ``x`` are read in chunks even in a product of tiles that the kernel has loaded."""
    return x.shape[-1] > WHOLE and precision_of(x) == "tf32x3"


def precision_of(x: Tensor) -> str:
    """How a dot multiplies the dtype of ``x``: float32 as three TF32 products, for float32's accuracy on tensor cores.

    AMD's matrix cores multiply float32 directly.
    """
    return "tf32x3" if x.dtype == torch.float32 and not architecture_of(x.device).startswith("gfx") else "ieee"


def tunes() -> bool:
    """Whether configurations are measured at their first use (`tuning.py`)."""
    return os.environ.get("SYMGROUND_AUTOTUNE") == "1"


def config_of(
    kernel: str, tables: Mapping[str, Tiles], x: Tensor, key: tuple[Any, ...], run: Callable[[Config], Any]
) -> Config:
    """The shipped configuration for this device and row length, or a measured one if tuning is switched on.

    ``tables`` are those in the kernel's file.
    """
    architecture = architecture_of(x.device)
    best = shipped(kernel, tables, architecture, block_of(x.shape[-1]), x.element_size())
    if tunes() and x.is_cuda and not torch.cuda.is_current_stream_capturing():
        from symground.kernels.common import tuning

        return tuning.best(kernel, architecture, (x.shape[-1], str(x.dtype), *key), best, run)
    return best


@functools.cache
def processors(device: torch.device) -> int:
    """A lower bound of the number of programs that a device runs at the same time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

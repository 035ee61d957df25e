"""Parts of every launcher: rows in the layout that kernels take, and the configuration to launch with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from symground.kernels.common.configs import Config, Tiles, architecture_of, shipped

#: Bytes of a row per step of a product that reads its rows in chunks.
CHUNK_BYTES = 128
#: The widest float32 rows of which two tiles, each in its TF32 parts, fit the registers.
WHOLE = 128


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

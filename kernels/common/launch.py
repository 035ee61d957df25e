"""What every launcher needs: rows as kernels take them, and the configuration to launch with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from symground.kernels.common import tuning
from symground.kernels.common.configs import Config, Tiles, architecture_of, shipped

#: Bytes of a row that a product takes at a time where it takes a row in chunks.
CHUNK_BYTES = 128
#: The widest float32 rows of which two tiles, each in its TF32 parts, fit the registers whole.
WHOLE = 128


def rows_adjacent(x: Tensor) -> Tensor:
    """[B,H,T,D] with a row's numbers side by side, as loads of 16 bytes want them; a copy only where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def block_of(size: int) -> int:
    """The tile's width for a head of this size: a power of two, as tiles must be, and no less than a dot takes."""
    return max(16, int(triton.next_power_of_2(size)))


def chunk_of(x: Tensor) -> int:
    """Columns of the rows of ``x`` that a product takes at a time where it takes a row in chunks."""
    return min(block_of(x.shape[-1]), CHUNK_BYTES // x.element_size())


def too_wide(x: Tensor) -> bool:
    """Whether even a product of tiles that a kernel holds anyway has to take the rows of ``x`` in chunks."""
    return x.shape[-1] > WHOLE and precision_of(x) == "tf32x3"


def precision_of(x: Tensor) -> str:
    """How a dot multiplies what ``x`` holds: float32 in three TF32 products, float32's accuracy on the tensor cores.

    AMD's matrix cores multiply float32 as it is.
    """
    return "tf32x3" if x.dtype == torch.float32 and not architecture_of(x.device).startswith("gfx") else "ieee"


def config_of(
    kernel: str, tables: Mapping[str, Tiles], x: Tensor, key: tuple[Any, ...], run: Callable[[Config], Any]
) -> Config:
    """The shipped configuration for this device and row length, or a measured one where tuning is switched on.

    ``tables`` are those of the kernel's file.
    """
    architecture = architecture_of(x.device)
    best = shipped(kernel, tables, architecture, block_of(x.shape[-1]), x.element_size())
    if tuning.enabled() and x.is_cuda and not torch.cuda.is_current_stream_capturing():
        return tuning.best(kernel, architecture, (x.shape[-1], str(x.dtype), *key), best, run)
    return best


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs a device runs at the same time, at least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

"""What every launcher needs: the arguments in the kernels' words, and the configuration to launch with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from symground.kernels import tuning
from symground.kernels.configs import Config, architecture_of, shipped

#: Bytes of a row that a product takes at a time where it takes a row in chunks.
CHUNK_BYTES = 128
#: The widest float32 rows of which two tiles, each in its TF32 parts, fit the registers whole.
WHOLE = 128


@dataclass(frozen=True)
class Call:
    """One call of an attention op: q [B,H,T,D], k and v [B,Hk,S,D], gate [B,H], key_range [B,2]."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None
    causal: bool
    scale: float
    key_range: Tensor | None
    window: int | None

    B: int = field(init=False)
    H: int = field(init=False)
    T: int = field(init=False)
    S: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = (*self.q.shape[:3], self.k.shape[2])
        for name, size in zip("BHTS", sizes, strict=True):
            object.__setattr__(self, name, size)
        for name in ("gate", "key_range"):  # both small, and read with the strides of a contiguous tensor
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else value.contiguous())
        for name in "qkv":
            object.__setattr__(self, name, rows_adjacent(getattr(self, name)))
        if self.window is not None and self.window >= self.k.shape[2]:
            object.__setattr__(self, "window", None)  # it leaves no key out, and its sums could pass 2³¹

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.H // self.k.shape[1]

    @property
    def form(self) -> dict[str, bool]:
        """What a kernel is compiled for."""
        return {
            "CAUSAL": self.causal,
            "WINDOW": self.window is not None,
            "HAS_RANGE": self.key_range is not None,
            "HAS_GATE": self.gate is not None,
        }

    @property
    def head(self) -> dict[str, Any]:
        size = self.q.shape[3]
        return {
            "D": size,
            "BLOCK_D": block_of(size),
            "CHUNK": chunk_of(self.q) if too_wide(self.q) else block_of(size),
            "PRECISION": precision_of(self.q),
        }

    @property
    def tuning_key(self) -> tuple[Any, ...]:
        """What the best configuration may depend on, lengths by powers of two."""
        lengths = tuple(triton.next_power_of_2(n) for n in (self.B * self.H, self.T, self.S))
        return (*lengths, self.group, *self.form.values())


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


def config_of(kernel: str, x: Tensor, key: tuple[Any, ...], run: Callable[[Config], Any]) -> Config:
    """The shipped configuration for this device and row length, or a measured one where tuning is switched on."""
    architecture = architecture_of(x.device)
    best = shipped(kernel, architecture, block_of(x.shape[-1]), x.element_size())
    if tuning.enabled() and x.is_cuda and not torch.cuda.is_current_stream_capturing():
        return tuning.best(kernel, architecture, (x.shape[-1], str(x.dtype), *key), best, run)
    return best


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs a device runs at the same time, at least."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

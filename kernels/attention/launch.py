"""The arguments of an attention op as its kernels take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import triton
from torch import Tensor

from symground.kernels.common.launch import block_of, chunk_of, precision_of, rows_adjacent, too_wide


@dataclass(frozen=True)
class Call:
    """One call of an attention op: q [B,H,T,D], k and v [B,Hk,S,D], gate [B,H], key_range [B,2]."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    scale: float
    key_range: Tensor | None
    window: int | None
    gate: Tensor | None

    B: int = field(init=False)
    H: int = field(init=False)
    T: int = field(init=False)
    S: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = (*self.q.shape[:3], self.k.shape[2])
        for name, size in zip("BHTS", sizes, strict=True):
            object.__setattr__(self, name, size)
        for name in ("gate", "key_range"):  # both are small, and read as contiguous tensors
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else value.contiguous())
        for name in "qkv":
            object.__setattr__(self, name, rows_adjacent(getattr(self, name)))
        if self.window is not None and self.window >= self.k.shape[2]:
            object.__setattr__(self, "window", None)  # it excludes no key, and its sums could exceed 2³¹

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.H // self.k.shape[1]

    @property
    def masks(self) -> dict[str, bool]:
        """Which masks there are, as compile-time arguments of a kernel."""
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
        """The properties on which the best configuration may depend, lengths by powers of two."""
        lengths = tuple(triton.next_power_of_2(n) for n in (self.B * self.H, self.T, self.S))
        return (*lengths, self.group, *self.masks.values())

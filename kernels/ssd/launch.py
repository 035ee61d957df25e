"""The arguments of an SSD op as its kernels take them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from symground.kernels.common.launch import block_of, chunk_of, power_of_2, precision_of, rows_adjacent
from symground.kernels.common.prefix_sums import prefix_sums


@dataclass(frozen=True)
class Call:
    """One call: x [B,T,H,P], dt [B,T,H], A [H], b and c [B,T,G,N], key_range [B,2] or None."""

    x: Tensor
    dt: Tensor
    A: Tensor
    b: Tensor
    c: Tensor
    key_range: Tensor | None

    def __post_init__(self) -> None:
        for name in "bc":  # one dtype for all operands of products
            object.__setattr__(self, name, rows_adjacent(getattr(self, name).to(self.x.dtype)))
        object.__setattr__(self, "x", rows_adjacent(self.x))
        if self.key_range is not None:
            object.__setattr__(self, "key_range", self.key_range.contiguous())

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, T, H, P, G, N."""
        (batch, length, heads, size), (groups, state) = self.x.shape, self.b.shape[2:]
        return batch, length, heads, size, groups, state

    @property
    def group(self) -> int:
        """Heads that share one B and C."""
        return self.x.shape[2] // self.b.shape[2]

    @property
    def tuning_key(self) -> tuple[Any, ...]:
        batch, length, heads, size, groups, state = self.sizes
        return (batch * heads, power_of_2(length), size, groups, state, self.key_range is not None)

    @cached_property
    def _steps(self) -> Tensor:
        """dt [B,H,T] in float64, 0 outside the valid positions, where dt is not read."""
        dt = self.dt.double().transpose(1, 2)
        if self.key_range is None:
            return dt
        t = torch.arange(dt.shape[2], device=dt.device)
        outside = (t < self.key_range[:, :1]) | (t >= self.key_range[:, 1:])
        return dt.masked_fill(outside[:, None], 0.0)

    @cached_property
    def decays(self) -> Tensor:
        """[B,H,4,T] for `mixing` in tiles.py: Σ dt·A and Σ dt·A - log dt, base 2, each as a sum of two float32."""
        total = prefix_sums(self._steps * self.A.double()[:, None]) / math.log(2)
        less = total - self._steps.log2()  # +inf where dt is 0
        parts = []
        for exact in (total, less):
            high = exact.float()
            parts += [high, (exact - high.double()).float().masked_fill(high.isinf(), 0.0)]
        return torch.stack(parts, 2).contiguous()

    def columns(self, chunk: int) -> Columns:
        """The decay as the chunked kernels take it."""
        length = self.x.shape[1]
        dt = pad(self._steps, (0, -length % chunk)).unflatten(2, (-1, chunk))  # [B,H,chunks,Q]
        local = prefix_sums(dt * self.A.double()[:, None, None])
        high = local.float()
        low = (local - high.double()).float()
        upto, after, whole = local.exp(), (local[..., -1:] - local).exp(), local[..., -1].exp()

        def flat(x: Tensor) -> Tensor:
            return x.float().flatten(2).contiguous()

        at_end = whole.float().contiguous()
        return Columns(flat(high), flat(low), flat(dt), flat(upto), flat(after), flat(after * dt), at_end)

    @property
    def in_chunks(self) -> dict[str, Any]:
        """For the saliency kernel, which reads rows in chunks: heads of size N for q and k, P for v and dO."""
        return {**self._head, "CHUNK": chunk_of(self.b), "CHUNK_V": chunk_of(self.x)}

    @property
    def in_rows(self) -> dict[str, Any]:
        """For the flow kernel, which reads rows whole; in float32 in chunks, since heads of both sizes do not fit."""
        found = dict(self._head)
        for suffix, z in (("", self.b), ("_V", self.x)):
            block = block_of(z.shape[3])
            found[f"BLOCK_D{suffix[1:]}"] = block
            found[f"CHUNK{suffix}"] = block if z.element_size() == 2 else chunk_of(z)
        return found

    @property
    def _head(self) -> dict[str, Any]:
        return {"D": self.b.shape[3], "DV": self.x.shape[3], "PRECISION": precision_of(self.x)}


@dataclass(frozen=True)
class Columns:
    """[B,H,T'] float32, with T' the length padded to whole chunks; the sums are within a chunk."""

    high: Tensor
    """The float32 value of Σ dt·A; the next field is its rounding error."""
    low: Tensor
    dt: Tensor
    upto: Tensor
    """exp of the decay from the chunk's start."""
    after: Tensor
    """exp of the decay to the chunk's end."""
    writes: Tensor
    """``after`` times dt."""
    whole: Tensor
    """[B,H,chunks] exp of the decay over a chunk."""


def heads_first(x: Tensor) -> Tensor:
    """[B,T,H,P] → [B,H,T,P], a view."""
    return x.transpose(1, 2)

"""The record of how queries see keys, which every attention op passes whole from its public function to its kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.tensors import accumulation_dtype, padding
from symground.ops.gate.reference import gate_heads

MAX_HEAD_SIZE = 256


class Mixing(NamedTuple):
    """How a query sees the keys; :func:`symground.ops.attention` documents the fields."""

    causal: bool = True
    scale: float | None = None
    key_range: Tensor | None = None
    window: int | None = None
    gate: Tensor | None = None

    def resolved(self, q: Tensor) -> Mixing:
        """The record as implementations read it: the scale is a number, the gate is [B,H] in the accumulation dtype."""
        gate = None if self.gate is None else self.gate.to(accumulation_dtype(q)).expand(q.shape[:2])
        return self._replace(scale=self.scale_of(q), gate=gate)

    @property
    def only_causal(self) -> bool:
        """Whether nothing is set but ``causal`` and ``scale``; what further fields may say counts here unasked."""
        return all(field is None for field in self[2:])

    def scale_of(self, q: Tensor) -> float:
        return float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def of(self, examples: slice) -> Mixing:
        """The resolved record of some of the examples."""
        key_range = None if self.key_range is None else self.key_range[examples]
        return self._replace(key_range=key_range, gate=None if self.gate is None else self.gate[examples])

    def gated(self, x: Tensor) -> Tensor:
        """[B,H,T,D] multiplied by each head's gate; a gate of 0 gives 0 without reading x."""
        if self.gate is None:
            return x
        return gate_heads(x.transpose(1, 2), self.gate.to(accumulation_dtype(x)), None).transpose(1, 2)

    def without_padding(self, x: Tensor) -> Tensor:
        """Keys or values [B,Hk,S,D], with padding set to 0: 0 · NaN would be NaN there."""
        if self.key_range is None:
            return x
        return x.masked_fill(padding(self.key_range, x.shape[2])[:, None, :, None], 0.0)

    def valid(self, q: Tensor, k: Tensor) -> Tensor:
        """[B or 1, 1, T, S] bool: True where query i sees key j."""
        return valid_keys(q.shape[2], k.shape[2], self.causal, self.key_range, self.window, q.device)


def check_attention(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Mixing:
    """The checks common to every attention op. Returns the checked record; raises ValueError naming the argument."""
    check.has_shape("q", q, "B,H,T,D", (None,) * 4)
    check.is_floating("q", q)
    batch, heads, _, size = q.shape
    check.has_shape("k", k, "B,Hk,S,D", (batch, None, None, size))
    check.has_shape("v", v, "B,Hk,S,D", tuple(k.shape))
    check.matches("k", k, "q", q)
    check.matches("v", v, "q", q)
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"k: expected Hk to divide H = {heads}, got Hk = {k.shape[1]}")
    if not 1 <= size <= MAX_HEAD_SIZE:
        raise ValueError(f"q: expected a head size D from 1 to {MAX_HEAD_SIZE}, got {size}")
    causal, scale, window = check.flag("causal", mixing.causal), mixing.scale, mixing.window
    if scale is not None:
        scale = check.number("scale", scale)
        if abs(scale) > torch.finfo(accumulation_dtype(q)).max:
            raise ValueError(
                f"scale: expected a number that is finite in {accumulation_dtype(q)}, or None; got {scale}"
            )
    if window is not None:
        # A window of LONGEST includes all keys; a larger one would overflow when subtracted from a position.
        window = min(check.integer("window", window, 1), check.LONGEST)
        if not causal:
            raise ValueError("window: needs causal=True, got causal=False")
    key_range = check.key_range(mixing.key_range, batch, k.shape[2], "q", q)
    check.gate(mixing.gate, batch, heads, q)
    return mixing._replace(causal=causal, scale=scale, key_range=key_range, window=window)


def check_saliency(q: Tensor, grad_out: Tensor, lse: Tensor) -> None:
    """The checks of the further arguments of every op that reads a gradient."""
    check.has_shape("grad_out", grad_out, "B,H,T,D", tuple(q.shape))
    check.matches("grad_out", grad_out, "q", q)
    check.has_shape("lse", lse, "B,H,T", tuple(q.shape[:3]))
    check.is_floating("lse", lse)
    check.matches("lse", lse, "q", q, dtype=False)


def per_head(gate: Tensor) -> Tensor:
    """A gate [H] or [B,H] shaped to multiply [B,H,T,D] or [B,H,T,S]."""
    return gate[..., :, None, None]


def valid_keys(
    queries: int, keys: int, causal: bool, key_range: Tensor | None, window: int | None, device: torch.device
) -> Tensor:
    """[B or 1, 1, T, S] bool: True where query i sees key j.

    Causal is aligned bottom-right, j <= i + S - T; ``window`` keeps the last of those keys; ``key_range`` [B,2] is each
    example's first and one-past-last valid key.
    """
    last = torch.arange(queries, device=device)[:, None] + (keys - queries)  # [T,1]
    j = torch.arange(keys, device=device)[None, :]  # [1,S]
    valid = (j <= last) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    if window is not None:
        valid = valid & (j > last - window)
    if key_range is not None:
        valid = valid & (j >= key_range[:, :1, None]) & (j < key_range[:, 1:, None])  # [B,T,S]
        return valid[:, None]
    return valid[None, None]


def key_range_of(mask: Tensor) -> Tensor:
    """[B,S] mask of the valid keys → [B,2] first and one-past-last valid key of each example.

    Raises:
        ValueError: the valid keys of an example are not contiguous.
    """
    valid = mask.bool()
    first = valid.int().argmax(-1)  # the first True; 0 if there is none
    last = first + valid.sum(-1)
    positions = torch.arange(valid.shape[1], device=valid.device)
    contiguous = (positions >= first[:, None]) & (positions < last[:, None])
    check.values(
        (contiguous == valid).all(-1),
        "attention_mask: expected the valid tokens of each example to be contiguous (padding at the ends only)",
        mask,
    )
    return torch.stack((first, last), -1)

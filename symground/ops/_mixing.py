"""What the attention ops share: their common checks, the valid keys of each query, and the attention matrix.

Reference code: everything here materialises [B,H,T,S] and is meant to be read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._functions import product
from symground.ops._precision import accumulation_dtype
from symground.ops.heads import gate_heads_reference
from symground.ops.mask import valid_keys

MAX_HEAD_SIZE = 256


class Mixing(NamedTuple):
    """How a query sees the keys, in the words of :func:`symground.ops.attention`, which documents each."""

    causal: bool
    scale: float | None
    key_range: Tensor | None
    window: int | None
    gate: Tensor | None

    def form(self, q: Tensor) -> tuple[Tensor | None, bool, float, Tensor | None, int | None]:
        """(gate [B,H], causal, scale, key_range, window), as the schemas of registered ops take them."""
        gate = None if self.gate is None else self.gate.to(accumulation_dtype(q)).expand(q.shape[:2])
        return gate, self.causal, self.scale_of(q), self.key_range, self.window

    def gated(self, x: Tensor) -> Tensor:
        """[B,H,T,D] with each head's gate on it; gate 0 gives 0 without reading x."""
        if self.gate is None:
            return x
        return gate_heads_reference(x.transpose(1, 2), self.gate.to(accumulation_dtype(x)), None).transpose(1, 2)

    def scale_of(self, q: Tensor) -> float:
        return float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def readable(self, x: Tensor) -> Tensor:
        """Keys or values [B,Hk,S,D] with 0 where no query may read: 0 · NaN there would be NaN."""
        if self.key_range is None:
            return x
        j = torch.arange(x.shape[2], device=x.device)
        outside = (j < self.key_range[:, :1]) | (j >= self.key_range[:, 1:])  # [B,S]
        return x.masked_fill(outside[:, None, :, None], 0.0)

    def valid(self, q: Tensor, k: Tensor) -> Tensor:
        """[B or 1, 1, T, S] bool: True where query i sees key j."""
        return valid_keys(q.shape[2], k.shape[2], self.causal, self.key_range, self.window, q.device)


def check_attention(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Mixing:
    """The checks common to every attention op; raises ValueError naming the argument. Returns what they read."""
    causal, scale, key_range, window, gate = mixing
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
    causal = check.flag("causal", causal)
    if scale is not None:
        scale = check.number("scale", scale)
        if abs(scale) > torch.finfo(accumulation_dtype(q)).max:
            raise ValueError(
                f"scale: expected a number that is finite in {accumulation_dtype(q)}, or None; got {scale}"
            )
    if window is not None:
        # The last LONGEST keys are all keys, and positions less a window beyond any length would wrap.
        window = min(check.integer("window", window, 1), check.LONGEST)
        if not causal:
            raise ValueError(f"window: expected an integer of at least 1, with causal=True; got {window}, causal=False")
    key_range = check.key_range(key_range, batch, k.shape[2], "q", q)
    check.gate(gate, batch, heads, q)
    return Mixing(causal, scale, key_range, window, gate)


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B,H,T,S] scaled products, in at least float32, the key heads repeated over their query heads."""
    dtype = accumulation_dtype(q)
    return product(q.to(dtype), repeat_heads(k, q.shape[1]).to(dtype).mT) * scale


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[B,Hk,S,D] → [B,H,S,D]; query head h uses key head h // (H / Hk)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def per_head(gate: Tensor) -> Tensor:
    """A gate [H] or [B,H] shaped to multiply [B,H,T,D] or [B,H,T,S]."""
    return gate[..., :, None, None]


def signed_saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing) -> Tensor:
    """S_h = A_h ∘ (dO_h V_hᵀ), times the head's gate: [B,H,T,S], signed."""
    k, v = mixing.readable(k), mixing.readable(v)
    s = scores(q, k, mixing.scale_of(q)).masked_fill(~mixing.valid(q, k), float("-inf"))
    empty = lse.isneginf()[..., None]  # rows without a valid key: exp(-inf + inf) would be NaN
    a = torch.exp(s - lse[..., None].masked_fill(empty, 0.0))
    saliency = a * product(grad_out.to(a.dtype), repeat_heads(v, q.shape[1]).to(a.dtype).mT)
    return saliency if mixing.gate is None else saliency * per_head(mixing.gate).to(a.dtype)


def check_saliency(q: Tensor, grad_out: Tensor, lse: Tensor) -> None:
    check.has_shape("grad_out", grad_out, "B,H,T,D", tuple(q.shape))
    check.matches("grad_out", grad_out, "q", q)
    check.has_shape("lse", lse, "B,H,T", tuple(q.shape[:3]))
    check.is_floating("lse", lse)
    check.matches("lse", lse, "q", q, dtype=False)


def members(groups: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[B,T] group ids → [B,count,T], 1 where the position is in the group."""
    return (groups[:, None] == torch.arange(count, device=groups.device)[:, None]).to(dtype)


def group_sums(
    saliency: Tensor, query_groups: Tensor, key_groups: Tensor, num_query: int, num_key: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of |saliency| [B,H,T,S] over groups: F [B,H,Gq,Gk], row_total [B,H,Gq], matrix_total [B,H].

    A position of group -1 is in no group, and counts in the totals.
    """
    s = saliency.abs()
    in_query, in_key = members(query_groups, num_query, s.dtype), members(key_groups, num_key, s.dtype)
    rows = product(in_query[:, None], s)  # [B,H,Gq,S]
    return product(rows, in_key.mT[:, None]), rows.sum(-1), s.sum((-1, -2))


def with_flow_probe(
    a: Tensor, flow_probe: Tensor | None, query_groups: Tensor | None, key_groups: Tensor | None
) -> Tensor:
    """The mixing matrix [B,H,T,S] as it is, its flow the gradient of the probe, where there is one."""
    if flow_probe is None:
        return a
    tapped: Tensor = _FlowTap.apply(a, flow_probe, query_groups, key_groups)
    return tapped


class _FlowTap(torch.autograd.Function):
    """Identity on A; in backward, gives the probe the group sums of |A ∘ ∂L/∂A|, which no linear expression does."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, flow_probe: Tensor, query_groups: Tensor, key_groups: Tensor) -> Tensor:
        ctx.save_for_backward(a, query_groups, key_groups)
        ctx.groups, ctx.dtype = flow_probe.shape[2:], flow_probe.dtype
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        a, query_groups, key_groups = ctx.saved_tensors
        flow, _, _ = group_sums(a * grad, query_groups, key_groups, *ctx.groups)
        return grad, flow.to(ctx.dtype), None, None

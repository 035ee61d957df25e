"""The specification of the attention ops, in plain PyTorch. It materialises [B,H,T,S]."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing, per_head
from symground.ops.common import needs
from symground.ops.common.derivatives import product
from symground.ops.common.flow import FlowSums, Groups, group_sums
from symground.ops.common.probes import GradientProbes
from symground.ops.common.tensors import accumulation_dtype

refuses = needs.nothing


def attention(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing, probes: GradientProbes) -> tuple[Tensor, Tensor]:
    k, v = mixing.without_padding(k), mixing.without_padding(v)
    valid, s = mixing.valid(q, k), scores(q, k, mixing)
    lse = s.detach().masked_fill(~valid, float("-inf")).logsumexp(-1)
    if mixing.sink is not None:
        lse = torch.logaddexp(lse, mixing.sink.detach().to(lse.dtype)[:, None])
    # Masked with the lowest finite number, so that a row with no valid key has gradient 0; -inf would give NaN.
    a = mixing.softmax(s.masked_fill(~valid, torch.finfo(s.dtype).min)) * valid
    out = product(probes.on(a), _repeat_heads(v, q.shape[1]).to(a.dtype)).to(q.dtype)
    return mixing.gated(out), lse


def attention_saliency(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, signed: bool
) -> Tensor:
    total = _signed_saliency(q, k, v, grad_out, lse, mixing).sum(1)
    return (total if signed else total.abs()).to(lse.dtype)


def attention_saliency_rows(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor
) -> Tensor:
    saliency = _signed_saliency(q, k, v, grad_out, lse, mixing)
    return saliency.take_along_dim(rows[:, None, :, None], dim=2).to(lse.dtype)


def attention_flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    return group_sums(_signed_saliency(q, k, v, grad_out, lse, mixing).to(lse.dtype), groups)


def _signed_saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing) -> Tensor:
    """S_h = gate_h · A_h ∘ (dO_h V_hᵀ): [B,H,T,S], signed."""
    k, v = mixing.without_padding(k), mixing.without_padding(v)
    s = scores(q, k, mixing).masked_fill(~mixing.valid(q, k), float("-inf"))
    empty = lse.isneginf()[..., None]  # rows without a valid key: exp(-inf + inf) would be NaN
    a = torch.exp(s - lse[..., None].masked_fill(empty, 0.0))
    saliency = a * product(grad_out.to(a.dtype), _repeat_heads(v, q.shape[1]).to(a.dtype).mT)
    return saliency if mixing.gate is None else saliency * per_head(mixing.gate).to(a.dtype)


def scores(q: Tensor, k: Tensor, mixing: Mixing) -> Tensor:
    """[B,H,T,S] logits in at least float32, without the mask; each key head is repeated for its query heads."""
    dtype = accumulation_dtype(q)
    products = product(q.to(dtype), _repeat_heads(k, q.shape[1]).to(dtype).mT)
    keys = torch.arange(k.shape[2], device=q.device)
    at = torch.arange(q.shape[2], device=q.device) + (k.shape[2] - q.shape[2])
    return mixing._replace(scale=mixing.scale_of(q)).logits(products, at[:, None], keys)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[B,Hk,S,D] → [B,H,S,D]; query head h uses key head h // (H / Hk)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)

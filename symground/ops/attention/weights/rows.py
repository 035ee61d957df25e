"""Rows of attention weights and their gradient. The result has all keys of a row, so no more is gained by tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.attention.tiles import normalize_
from symground.ops.common.flow import members
from symground.ops.common.tensors import accumulation_dtype


class Gradients(NamedTuple):
    """The gradients of queries, keys, sink and slopes; None for those of the record that were not requested."""

    q: Tensor
    k: Tensor
    sink: Tensor | None
    slopes: Tensor | None


class _Chosen(NamedTuple):
    """The rows of the chosen queries; G = H / Hk heads share a key head."""

    p: Tensor  # [B,H,R,S]
    level: Tensor  # [B,H,R] LSE
    q: Tensor  # [B,Hk,G·R,D]
    k: Tensor  # [B,Hk,S,D]
    away: Tensor  # [B,1,R,S] j - (i + S - T)


def read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> Tensor:
    """A of the queries ``rows`` [B,R]: [B,H,R,S]."""
    return _chosen(q, k, lse, mixing, rows).p


def backward(
    q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor, grad: Tensor, of_sink: bool, of_slopes: bool
) -> Gradients:
    """The gradients from the gradient [B,H,R,S] of the rows."""
    x, scale = _chosen(q, k, lse, mixing, rows), mixing.scale_of(q)
    ds, dsink = through_softmax(grad.to(x.p.dtype) * x.p, x.p, x.level, mixing.sink if of_sink else None)
    dslopes = (ds * x.away).sum((0, 2, 3)) if of_slopes else None
    if mixing.softcap is not None:
        ds *= 1 - torch.tanh((x.q @ x.k.mT).view(x.p.shape) * (scale / mixing.softcap)).square()
    folded = ds.reshape(*x.q.shape[:3], x.k.shape[2])
    of_rows = (folded @ x.k).mul_(scale).view(*x.p.shape[:3], q.shape[3])
    # A product, since a query may be chosen twice, and sums by index have no fixed order on a GPU.
    dq = members(rows, q.shape[2], of_rows.dtype)[:, None] @ of_rows
    return Gradients(dq, (folded.mT @ x.q).mul_(scale), dsink, dslopes)


def through_softmax(s: Tensor, p: Tensor, level: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """∂L/∂(scores) = A ∘ (dA − Σ_j A dA) from ``s`` = A ∘ dA [E,H,R,C], in its place, and the gradient of a sink [H].

    ``level`` [E,H,R] is LSE.
    """
    of_row = s.sum(-1)
    s.addcmul_(p, of_row[..., None], value=-1)
    if sink is None:
        return s, None
    return s, -((sink.to(s.dtype)[:, None] - level).exp_() * of_row).sum((0, 2))


def _chosen(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> _Chosen:
    dtype, keys = accumulation_dtype(lse), k.shape[2]
    level = lse.take_along_dim(rows[:, None], 2).to(dtype)
    level = level.masked_fill(level.isneginf(), 0.0)  # rows without a key: -inf + inf would be NaN
    k = mixing.without_padding(k).to(dtype)
    q = q.take_along_dim(rows[:, None, :, None], 2).to(dtype)
    (batch, heads, count, size), key_heads = q.shape, k.shape[1]
    q = q.reshape(batch, key_heads, heads // key_heads * count, size)
    at, j = rows + (keys - lse.shape[2]), torch.arange(keys, device=q.device)
    s = mixing.logits((q @ k.mT).view(batch, heads, count, keys), at[:, None, :, None], j)
    p = s.sub_(level[..., None]).exp_().masked_fill_(~mixing.valid_of(at, keys)[:, None], 0.0)
    normalize_(p, level, None if mixing.sink is None else mixing.sink[:, None].to(dtype))
    return _Chosen(p, level.nan_to_num(0.0), q, k, (j - at[..., None])[:, None])

"""The signed saliency of single rows for each head, as the gradient of a probe.

One row of the mixing matrix is cheap, so it is recomputed beside the kernel. The probe acts on this row only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.common.tensors import prefix_sums
from symground.ops.ssd.scan import Scan


class RowProbe(NamedTuple):
    """A probe of zeros: the mixer multiplies row p of each head's matrix by 1 + probe."""

    probe: Tensor
    """[B,H,S]; its gradient is the signed S_h[p, j]."""
    position: Tensor
    """[B] p, an index of the queries."""


def attention_row(row: RowProbe, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Tensor:
    """Zeros [B,H,T,Dv], at p the sum Σ_j A[p,j] · probe[j] · v[j], through which the gradient reaches the probe.

    q [B,H,T,D]; k [B,Hk,S,D]; v [B,Hk,S,Dv]; ``mixing`` resolved, as of :func:`symground.ops.attention`.
    """
    batch, queries = len(q), q.shape[2]
    each, key_heads = torch.arange(batch, device=q.device), k.shape[1]
    with torch.no_grad():
        seen = mixing.valid(q, k).expand(batch, 1, -1, -1)
        at_p = q[each, :, row.position].unflatten(1, (key_heads, -1))  # [B,Hk,H/Hk,D]; k and v are not copied
        scores = torch.einsum("bkgd,bksd->bkgs", at_p.float(), k.float()).flatten(1, 2)[:, :, None]  # [B,H,1,S]
        at = (row.position + k.shape[2] - queries)[:, None, None, None]
        scores = mixing.logits(scores, at, torch.arange(k.shape[2], device=k.device))[:, :, 0].masked_fill(
            ~seen[each, :, row.position], float("-inf")
        )
        weights = mixing.softmax(scores).nan_to_num(0.0)  # a row that sees no key is 0
    probed = (weights * row.probe).to(v.dtype).unflatten(1, (key_heads, -1))
    mixed = torch.einsum("bkgs,bksd->bkgd", probed, v.detach()).flatten(1, 2)  # [B,H,D]
    return _at(row, mixed, 2, queries)


def ssd_row(
    row: RowProbe, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None
) -> Tensor:  # fmt: skip
    """Zeros [B,T,H,P], as in `attention_row`, with Mamba-2's M[p,j] = (C_p · B_j) · exp(Σ_{j<s<=p} dt_s A) · dt_j.

    The shapes are those of :func:`symground.ops.ssd`.
    """
    batch, length, heads, _ = x.shape
    dtype = x.dtype
    each = torch.arange(batch, device=x.device)
    with torch.no_grad():
        x, dt, A, B, C, _ = Scan(x, dt, A, B, C, key_range).without_padding()
        b, c = (z.repeat_interleave(heads // z.shape[2], 2) for z in (B, C))  # [B,T,H,N]
        total = prefix_sums(dt * A, 1)  # [B,T,H]
        past = torch.arange(length, device=x.device) <= row.position[:, None]  # [B,T]
        decay = (total[each, row.position][:, None] - total).masked_fill(~past[..., None], float("-inf")).exp()
        weights = torch.einsum("bhn,bthn->bth", c[each, row.position], b) * decay * dt
    mixed = torch.einsum("bht,bthp->bhp", weights.transpose(1, 2) * row.probe, x)
    return _at(row, mixed.to(dtype), 1, length)


def _at(row: RowProbe, mixed: Tensor, axis: int, length: int) -> Tensor:
    """Place [B,H,D] at each example's position along a new axis."""
    at = torch.arange(length, device=mixed.device) == row.position[:, None]  # [B,T]
    placed = at.to(mixed.dtype)[:, None, :, None] * mixed[:, :, None]  # [B,H,T,D]
    return placed if axis == 2 else placed.transpose(1, 2)

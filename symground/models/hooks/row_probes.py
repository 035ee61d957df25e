"""The signed saliency of chosen rows for each head, as the gradient of a probe.

A few rows of the mixing matrix are cheap, so they are recomputed beside the kernel. The probe acts on these rows only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.common.tensors import prefix_sums
from symground.ops.ssd.scan import Scan


class RowProbe(NamedTuple):
    """A probe of zeros: the mixer multiplies the rows p_r of each head's matrix by 1 + probe."""

    probe: Tensor
    """[B,H,R,S]; its gradient is the signed S_h[p_r, j]."""
    positions: Tensor
    """[B,R] different indices of the queries; -1 is no row, whose gradient is 0."""


def attention_row(row: RowProbe, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Tensor:
    """Zeros [B,H,T,Dv], at each p_r the sum Σ_j A[p_r,j] · probe[r,j] · v[j], by which the gradient reaches the probe.

    q [B,H,T,D]; k [B,Hk,S,D]; v [B,Hk,S,Dv]; ``mixing`` resolved, as of :func:`symground.ops.attention`.
    """
    queries, keys, key_heads = q.shape[2], k.shape[2], k.shape[1]
    at = row.positions.clamp(min=0)  # [B,R]
    of_diagonal = at + keys - queries
    with torch.no_grad():
        of_rows = q.take_along_dim(at[:, None, :, None], 2).unflatten(1, (key_heads, -1))  # k and v are not copied
        scores = torch.einsum("bkgrd,bksd->bkgrs", of_rows.float(), k.float()).flatten(1, 2)  # [B,H,R,S]
        scores = mixing.logits(scores, of_diagonal[:, None, :, None], torch.arange(keys, device=k.device))
        scores = scores.masked_fill(~mixing.valid_of(of_diagonal, keys)[:, None], float("-inf"))
        weights = mixing.softmax(scores).nan_to_num(0.0)  # a row that sees no key is 0
    probed = (weights * row.probe).to(v.dtype).unflatten(1, (key_heads, -1))
    mixed = torch.einsum("bkgrs,bksd->bkgrd", probed, v.detach()).flatten(1, 2)  # [B,H,R,D]
    return _placed(row, queries, mixed.dtype)[:, None] @ mixed


def ssd_row(
    row: RowProbe, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None
) -> Tensor:  # fmt: skip
    """Zeros [B,T,H,P], as in `attention_row`, with Mamba-2's M[p,j] = (C_p · B_j) · exp(Σ_{j<s<=p} dt_s A) · dt_j.

    The shapes are those of :func:`symground.ops.ssd`.
    """
    length, heads = x.shape[1:3]
    at, dtype = row.positions.clamp(min=0), x.dtype  # [B,R]
    with torch.no_grad():
        x, dt, A, B, C, _ = Scan(x, dt, A, B, C, key_range).without_padding()
        b, c = (z.repeat_interleave(heads // z.shape[2], 2) for z in (B, C))  # [B,T,H,N]
        total = prefix_sums(dt * A, 1)  # [B,T,H]
        past = torch.arange(length, device=x.device) <= at[..., None]  # [B,R,T]
        decay = total.take_along_dim(at[..., None], 1)[:, :, None] - total[:, None]  # [B,R,T,H]
        decay = decay.masked_fill(~past[..., None], float("-inf")).exp()
        of_rows = c.take_along_dim(at[..., None, None], 1)  # [B,R,H,N]
        weights = torch.einsum("brhn,bthn->brth", of_rows, b) * decay * dt[:, None]
    mixed = torch.einsum("bhrt,bthp->brhp", weights.permute(0, 3, 1, 2) * row.probe, x).to(dtype)
    return torch.einsum("btr,brhp->bthp", _placed(row, length, dtype), mixed)


def _placed(row: RowProbe, length: int, dtype: torch.dtype) -> Tensor:
    """[B,T,R]: 1 where position t is that of row r."""
    return (torch.arange(length, device=row.positions.device)[:, None] == row.positions[:, None]).to(dtype)

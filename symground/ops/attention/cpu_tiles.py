"""Saliency and flow on a CPU in plain PyTorch, by tiles of queries, each against all keys it sees, all heads at once.

No tensor of size B·H·T·S is materialised: a tile has two or three [examples, H, TILE, S] products, which are
freed before the next tile. If the C++ extension is built, it does the same one head at a time (`cpu_extension.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.autograd import Gradients
from symground.ops.attention.cpu_plan import ROW, groups, one_range
from symground.ops.attention.mixing import Mixing, per_head
from symground.ops.common.flow import FlowSums, Groups, Heads, TileSums
from symground.ops.common.tensors import padding

TILE = 64  # queries


class QueryTile(NamedTuple):
    """A tile of queries and the keys they see, in the dtype of lse.

    E examples, H heads, R queries, C keys; G = H / Hk heads share a key head.
    """

    examples: slice
    heads: Heads
    key_heads: Heads
    rows: slice
    columns: slice
    p: Tensor  # [E,H,R,C] attention, 0 where the query does not see the key
    dp: Tensor  # [E,H,R,C] ⟨dO, V⟩, times the gate
    q: Tensor  # [E,Hk,G·R,D]
    k: Tensor  # [E,Hk,C,D]
    grad_out: Tensor  # [E,Hk,G·R,D], times the gate
    first: bool  # the first heads of these examples

    def fold(self, x: Tensor) -> Tensor:
        """[E,H,R,C] → [E,Hk,G·R,C]"""
        return x.view(*self.q.shape[:3], x.shape[3])

    def sum_heads(self, s: Tensor, total: Tensor) -> None:
        """Add Σ_h ``s`` [E,H,R,C] to ``total`` [B,T,S]. The first heads are assigned, since ``total`` is still 0."""
        at = total[self.examples, self.rows, self.columns]
        if self.first:
            torch.sum(s, 1, out=at)
        else:
            at += s.sum(1)


def normalize_(p: Tensor, lse: Tensor, from_forward: bool = False) -> Tensor:
    """Divide p = exp(s - lse) [...,C] by its row sums, in place, where these differ from 1 only by the rounding of lse.

    A large lse is rounded by more than the error allowed in p. If lse is not the log-sum-exp of these keys, p stays
    unchanged, unless lse is known to come from the forward pass.
    """
    total = p.sum(-1)
    if from_forward:
        rounded = total > 0
    else:
        level = lse.abs().add_(1).mul_(32 * torch.finfo(lse.dtype).eps).clamp_(max=0.5)  # -inf is not rounded
        rounded = (total - 1).abs_() <= level
    return p.div_(torch.where(rounded, total, 1.0)[..., None])


def query_tiles(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, wanted: Tensor | None = None,
    from_forward: bool = False,
) -> Iterator[QueryTile]:  # fmt: skip
    """The tiles in which some query sees some key. With ``wanted`` [B,T] bool, only those with a True query.

    ``from_forward``: ``lse`` comes from the forward pass, not from a caller.
    """
    causal, window, gate = mixing.causal, mixing.window, mixing.gate
    heads, queries, size, keys = *q.shape[1:], k.shape[2]
    offset = keys - queries  # causal is aligned bottom-right
    # Groups whose key ranges differ are copied, so only short examples may share one.
    tall = min(queries, TILE) if one_range(mixing.key_range) else queries
    max_examples = ROW // max(1, heads * tall * keys)
    for group in groups(q, k, mixing, max_examples):
        examples, heads_, key_heads, low, high, bounds, begins = group
        k_, v_ = group.without_padding(k), group.without_padding(v)  # keys [low, high)
        for start in range(0, queries, TILE):
            stop = min(start + TILE, queries)
            rows = slice(start, stop)
            if wanted is not None and not bool(wanted[examples, rows].any()):
                continue
            first = max(low, start + offset - window + 1) if window is not None else low
            last = min(high, stop + offset) if causal else high
            if first >= last:
                continue
            columns = slice(first, last)
            q_row, grad = (x[examples, heads_, rows].to(lse.dtype) for x in (q, grad_out))
            shape = (*q_row.shape[:3], last - first)
            folded = (*k_.shape[:2], -1, size)
            if gate is not None:
                grad = grad * per_head(gate[examples, heads_]).to(lse.dtype)
            q_row, grad = q_row.reshape(folded), grad.reshape(folded)
            k_row, v_row = (x[:, :, first - low : last - low].to(lse.dtype) for x in (k_, v_))
            p = (q_row @ k_row.mT).view(shape)
            p = p.mul_(mixing.scale_of(q)).sub_(lse[examples, heads_, rows, None]).exp_()
            i = torch.arange(start, stop)[:, None] + offset
            j = torch.arange(first, last)
            if causal and last > start + offset + 1:
                p.masked_fill_(j > i, 0.0)
            if window is not None and first < stop + offset - window:
                p.masked_fill_(j <= i - window, 0.0)
            if bounds is not None:
                p.masked_fill_(padding(bounds, last, first)[:, None, None], 0.0)
            normalize_(p, lse[examples, heads_, rows], from_forward)
            dp = (grad @ v_row.mT).view(shape)
            yield QueryTile(examples, heads_, key_heads, rows, columns, p, dp, q_row, k_row, grad, begins)


def saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing) -> Tensor:
    """Σ_h S_h [B,T,S], signed."""
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for tile in query_tiles(q, k, v, grad_out, lse, mixing):
        tile.sum_heads(tile.dp.mul_(tile.p), total)
    return total


def flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    """Sums of |S|. Without ``matrix_total``, queries in no group are skipped and matrix_total must not be used."""
    tiles = TileSums(lse, groups)
    wanted = None if matrix_total else groups.given[0] >= 0
    for tile in query_tiles(q, k, v, grad_out, lse, mixing, wanted):
        tiles.add((tile.examples, tile.heads), tile.rows, tile.columns, tile.dp.mul_(tile.p).abs_())
    return tiles.sums


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, saliency: bool, groups: Groups
) -> Gradients:
    """The gradients of q, k and v, with saliency if ``saliency`` and flow if there are groups, in one pass."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype) for x in (q, k, v))
    scale = mixing.scale_of(q)
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    tiles = None if groups.query is None else TileSums(lse, groups)
    for tile in query_tiles(q, k, v, grad_out, lse, mixing, from_forward=True):
        examples, heads, key_heads, rows, columns, p, s = tile[:7]
        s.mul_(p)
        if total is not None:
            tile.sum_heads(s, total)
        if tiles is not None:
            tiles.add((examples, heads), rows, columns, s.abs())
        dv[examples, key_heads, columns] += tile.fold(p).mT @ tile.grad_out
        # ∂L/∂(q·k·scale) = P ∘ (dP − Σ_j P dP), and s is P ∘ dP.
        ds = tile.fold(s.addcmul_(p, s.sum(-1, keepdim=True), value=-1))
        dq[examples, heads, rows] = (ds @ tile.k).mul_(scale).view(*p.shape[:3], -1)
        dk[examples, key_heads, columns] += (ds.mT @ tile.q).mul_(scale)
    return Gradients(dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), total, None if tiles is None else tiles.sums.flow)

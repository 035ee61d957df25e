"""Saliency and flow on a CPU in plain PyTorch, by rows of tiles: a tile of queries against its keys, heads at once.

Nothing of size B·H·T·S exists: a row of tiles holds two or three [examples, H, TILE, S] products, used up before the
next. The C++ extension does the same one head at a time (`_extension.py`); this is what runs where it is not built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops._cpu_plan import ROW, Heads, groups, one_range
from symground.ops._mixing import members, per_head

TILE = 64  # queries


class Row(NamedTuple):
    """A row of tiles: E examples, H heads, R queries, C keys, in the dtype of lse; G = H / Hk share a key head."""

    examples: slice
    heads: Heads
    key_heads: Heads
    rows: slice
    columns: slice
    p: Tensor  # [E,H,R,C] attention, 0 at pairs that do not see each other
    dp: Tensor  # [E,H,R,C] ⟨dO, V⟩, times the gate
    q: Tensor  # [E,Hk,G·R,D]
    k: Tensor  # [E,Hk,C,D]
    grad_out: Tensor  # [E,Hk,G·R,D], times the gate
    first: bool  # no heads of these examples came before

    def fold(self, x: Tensor) -> Tensor:
        """[E,H,R,C] → [E,Hk,G·R,C]"""
        return x.view(*self.q.shape[:3], x.shape[3])

    def sum_heads(self, s: Tensor, total: Tensor) -> None:
        """Add Σ_h ``s`` [E,H,R,C] to ``total`` [B,T,S], 0 before the first heads, which need no sum in between."""
        at = total[self.examples, self.rows, self.columns]
        if self.first:
            torch.sum(s, 1, out=at)
        else:
            at += s.sum(1)


def normalize_(p: Tensor, lse: Tensor, own: bool = False) -> Tensor:
    """Divide exp(s - lse) [...,C] of whole rows by its sum, in place, where that is 1 but for the rounding of lse.

    A large lse is rounded by more than p may be wrong. One that is not that of these keys leaves p as it is, unless it
    is the ``own`` one of the forward pass.
    """
    total = p.sum(-1)
    if own:
        rounded = total > 0
    else:
        level = lse.abs().add_(1).mul_(32 * torch.finfo(lse.dtype).eps).clamp_(max=0.5)  # -inf has no rounding
        rounded = (total - 1).abs_() <= level
    return p.div_(torch.where(rounded, total, 1.0)[..., None])


def rows_of_tiles(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
    wanted: Tensor | None = None, own: bool = False,
) -> Iterator[Row]:  # fmt: skip
    """The rows in which some query sees some key. ``wanted`` [B,T] bool leaves out those where no query is True.

    ``own``: ``lse`` is that of the forward pass, not handed over by a caller.
    """
    heads, queries, size, keys = *q.shape[1:], k.shape[2]
    offset = keys - queries  # causal is aligned bottom-right
    # Groups of different ranges are copied: only short examples may share one.
    tall = min(queries, TILE) if one_range(key_range) else queries
    together = ROW // max(1, heads * tall * keys)
    for group in groups(q, k, key_range, gate, together):
        examples, heads_, key_heads, low, high, bounds, begins = group
        k_, v_ = group.readable(k), group.readable(v)  # keys [low, high)
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
            p = p.mul_(scale).sub_(lse[examples, heads_, rows, None]).exp_()
            i = torch.arange(start, stop)[:, None] + offset
            j = torch.arange(first, last)
            if causal and last > start + offset + 1:
                p.masked_fill_(j > i, 0.0)
            if window is not None and first < stop + offset - window:
                p.masked_fill_(j <= i - window, 0.0)
            if bounds is not None:
                p.masked_fill_(group.outside(first, last)[:, None, None], 0.0)
            normalize_(p, lse[examples, heads_, rows], own)
            dp = (grad @ v_row.mT).view(shape)
            yield Row(examples, heads_, key_heads, rows, columns, p, dp, q_row, k_row, grad, begins)


def saliency(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
) -> Tensor:  # fmt: skip
    """Σ_h S_h [B,T,S], signed."""
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for row in rows_of_tiles(q, k, v, grad_out, lse, gate, causal, scale, key_range, window):
        row.sum_heads(row.dp.mul_(row.p), total)
    return total


def flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
    query_groups: Tensor, key_groups: Tensor, num_query_groups: int, num_key_groups: int, matrix: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """F [B,H,Gq,Gk], row_total [B,H,Gq], matrix_total [B,H].

    Without ``matrix`` the queries in no group are left out, and matrix_total is not to be used.
    """
    sums = GroupSums(lse, query_groups, key_groups, num_query_groups, num_key_groups)
    wanted = None if matrix else query_groups >= 0
    for row in rows_of_tiles(q, k, v, grad_out, lse, gate, causal, scale, key_range, window, wanted):
        sums.add((row.examples, row.heads), row.rows, row.columns, row.dp.mul_(row.p).abs_())
    return sums.flow, sums.row_total, sums.matrix_total


class GroupSums:
    """Sums of |S| over groups of queries and keys, row of tiles by row of tiles.

    Attributes:
        flow, row_total, matrix_total: [B,H,Gq,Gk], [B,H,Gq], [B,H], of the rows added so far.
    """

    def __init__(
        self, lse: Tensor, query_groups: Tensor, key_groups: Tensor, num_query_groups: int, num_key_groups: int
    ) -> None:
        heads = lse.shape[:2]
        self.flow = lse.new_zeros(*heads, num_query_groups, num_key_groups)
        self.row_total, self.matrix_total = lse.new_zeros(*heads, num_query_groups), lse.new_zeros(heads)
        self._query_groups, self._key_groups = query_groups, key_groups

    def add(self, at: tuple[slice, Heads], rows: slice, columns: slice, s: Tensor) -> None:
        """``s`` [E,H,R,C] is |S| of some examples and heads, queries and keys."""
        in_query = members(self._query_groups[at[0], rows], self.flow.shape[2], s.dtype)[:, None]
        in_key = members(self._key_groups[at[0], columns], self.flow.shape[3], s.dtype)[:, None]
        self.flow[at] += in_query @ (s @ in_key.mT)  # [E,1,Gq,R] @ ([E,H,R,C] @ [E,1,C,Gk])
        of_row = s.sum(-1, keepdim=True)  # [E,H,R,1]
        self.row_total[at] += (in_query @ of_row)[..., 0]
        self.matrix_total[at] += of_row.sum((-1, -2))


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None, saliency: bool,
    query_groups: Tensor | None, key_groups: Tensor | None, num_query_groups: int, num_key_groups: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of q, k and v, and on the way Σ_h S_h [B,T,S] where ``saliency``, flow [B,H,Gq,Gk] where groups."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype) for x in (q, k, v))
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    sums = None
    if query_groups is not None and key_groups is not None:
        sums = GroupSums(lse, query_groups, key_groups, num_query_groups, num_key_groups)
    for row in rows_of_tiles(q, k, v, grad_out, lse, gate, causal, scale, key_range, window, own=True):
        examples, heads, key_heads, rows, columns, p, s = row[:7]
        s.mul_(p)
        if total is not None:
            row.sum_heads(s, total)
        if sums is not None:
            sums.add((examples, heads), rows, columns, s.abs())
        dv[examples, key_heads, columns] += row.fold(p).mT @ row.grad_out
        # ∂L/∂(q·k·scale) = P ∘ (dP − Σ_j P dP), and the saliency holds P ∘ dP.
        ds = row.fold(s.addcmul_(p, s.sum(-1, keepdim=True), value=-1))
        dq[examples, heads, rows] = (ds @ row.k).mul_(scale).view(*p.shape[:3], -1)
        dk[examples, key_heads, columns] += (ds.mT @ row.q).mul_(scale)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), total, None if sums is None else sums.flow

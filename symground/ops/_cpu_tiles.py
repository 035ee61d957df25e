"""Saliency on a CPU in plain PyTorch, by rows of tiles: a tile of queries against its keys, all heads at once.

Nothing of size B·H·T·S exists: a row of tiles holds two or three [examples, H, TILE, S] products, used up before the
next. The C++ extension does the same one head at a time (`_extension.py`); this is what runs where it is not built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops._cpu_plan import ROW, groups, one_range
from symground.ops._mixing import per_head

TILE = 64  # queries


class Row(NamedTuple):
    """A row of tiles, E examples, R queries, C keys, in the dtype of lse; G = H / Hk query heads share a key head."""

    examples: slice
    rows: slice
    columns: slice
    p: Tensor  # [E,H,R,C] attention, 0 at pairs that do not see each other
    dp: Tensor  # [E,H,R,C] ⟨dO, V⟩, times the gate
    q: Tensor  # [E,Hk,G·R,D]
    k: Tensor  # [E,Hk,C,D]
    grad_out: Tensor  # [E,Hk,G·R,D], times the gate

    def fold(self, x: Tensor) -> Tensor:
        """[E,H,R,C] → [E,Hk,G·R,C]"""
        return x.view(*self.q.shape[:3], x.shape[3])


def rows_of_tiles(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
    wanted: Tensor | None = None,
) -> Iterator[Row]:  # fmt: skip
    """The rows in which some query sees some key. ``wanted`` [B,T] bool leaves out those where no query is True."""
    batch, heads, queries, size = q.shape
    key_heads, keys = k.shape[1:3]
    offset = keys - queries  # causal is aligned bottom-right
    # Groups of different ranges are copied: only short examples may share one.
    tall = min(queries, TILE) if one_range(key_range) else queries
    together = ROW // max(1, heads * tall * keys)
    for group in groups(batch, keys, key_range, together):
        examples, low, high, bounds = group
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
            folded = (group.size, key_heads, -1, size)
            shape = (group.size, heads, stop - start, last - first)
            q_row, grad = (x[examples, :, rows].to(lse.dtype) for x in (q, grad_out))
            if gate is not None:
                g = per_head(gate[examples]).to(lse.dtype)
                grad = torch.where(g == 0, 0.0, grad * g)
            q_row, grad = q_row.reshape(folded), grad.reshape(folded)
            k_row, v_row = (x[:, :, first - low : last - low].to(lse.dtype) for x in (k_, v_))
            p = (q_row @ k_row.mT).view(shape)
            p = p.mul_(scale).sub_(lse[examples, :, rows, None]).exp_()
            i = torch.arange(start, stop)[:, None] + offset
            j = torch.arange(first, last)
            if causal and last > start + offset + 1:
                p.masked_fill_(j > i, 0.0)
            if window is not None and first < stop + offset - window:
                p.masked_fill_(j <= i - window, 0.0)
            if bounds is not None:
                p.masked_fill_(group.outside(first, last)[:, None, None], 0.0)
            yield Row(examples, rows, columns, p, (grad @ v_row.mT).view(shape), q_row, k_row, grad)


def saliency(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
) -> Tensor:  # fmt: skip
    """Σ_h S_h [B,T,S], signed."""
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for row in rows_of_tiles(q, k, v, grad_out, lse, gate, causal, scale, key_range, window):
        torch.sum(row.dp.mul_(row.p), 1, out=total[row.examples, row.rows, row.columns])
    return total


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None, total: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v; adds Σ_h S_h to ``total`` [B,T,S] on the way, where there is one."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype) for x in (q, k, v))
    for row in rows_of_tiles(q, k, v, grad_out, lse, gate, causal, scale, key_range, window):
        examples, rows, columns, p, s = row[:5]
        s.mul_(p)
        if total is not None:
            torch.sum(s, 1, out=total[examples, rows, columns])
        dv[examples, :, columns] += row.fold(p).mT @ row.grad_out
        # ∂L/∂(q·k·scale) = P ∘ (dP − Σ_j P dP), and the saliency holds P ∘ dP.
        ds = row.fold(s.addcmul_(p, s.sum(-1, keepdim=True), value=-1))
        dq[examples, :, rows] = (ds @ row.k).mul_(scale).view(dq[examples, :, rows].shape)
        dk[examples, :, columns] += (ds.mT @ row.q).mul_(scale)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

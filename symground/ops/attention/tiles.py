"""Attention, saliency and flow in plain PyTorch, by tiles of queries, each against all keys it sees, all heads at once.

No tensor of size B·H·T·S is materialised: a tile has two or three [examples, H, TILE, S] products, which are
freed before the next tile. It runs on any device (`torch.py`). On a CPU (``reads``) the work follows the values of key
ranges and gates (`plan.py`); if the C++ extension is built, it does the same one head at a time (`cpu_extension.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.autograd import Gradients
from symground.ops.attention.mixing import Mixing, per_head
from symground.ops.attention.plan import ROW, Group, groups, one_range, unread
from symground.ops.common.flow import FlowSums, Groups, Heads, TileSums
from symground.ops.common.tensors import accumulation_dtype, padding

TILE = 64  # queries


class Scores(NamedTuple):
    """The logits of a tile of queries and the keys they see: E examples, H heads, R queries, C keys."""

    group: Group
    rows: slice
    columns: slice
    s: Tensor  # [E,H,R,C]; those of keys that a query does not see are among them
    q: Tensor  # [E,Hk,G·R,D]; G = H / Hk heads share a key head
    k: Tensor  # [E,Hk,C,D]
    v: Tensor | None  # [E,Hk,C,Dv]
    upto: int  # the position of the first query among the keys
    causal: bool
    window: int | None
    seen: Tensor | None  # [E or 1,R,C] where ids say which keys a query sees, but for padding; else None
    bend: Tensor | None  # [E,H,R,C] the derivative of the softcap; None without one
    sink: Tensor | None  # [H,1], of these heads

    def hide_(self, x: Tensor, value: float) -> Tensor:
        """``x`` [E,H,R,C] with ``value`` where the query does not see the key, in place."""
        first, last, count = self.columns.start, self.columns.stop, x.shape[2]
        i = torch.arange(self.upto, self.upto + count, device=x.device)[:, None]
        j = torch.arange(first, last, device=x.device)
        if self.seen is not None:
            x.masked_fill_(~self.seen[:, None], value)
        else:
            if self.causal and last > self.upto + 1:
                x.masked_fill_(j > i, value)
            if self.window is not None and first < self.upto + count - self.window:
                x.masked_fill_(j <= i - self.window, value)
        if self.group.bounds is not None:
            x.masked_fill_(padding(self.group.bounds, last, first)[:, None, None], value)
        return x


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
    grad_out: Tensor  # [E,Hk,G·R,Dv], times the gate
    first: bool  # the first heads of these examples
    bend: Tensor | None  # [E,H,R,C] the derivative of the softcap; None without one
    upto: int  # the position of the first query among the keys

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


def normalize_(p: Tensor, lse: Tensor, sink: Tensor | None, from_forward: bool = False) -> Tensor:
    """Divide p = exp(s - lse) [...,C] by its row sums, in place, where these differ from 1 only by the rounding of lse.

    A large lse is rounded by more than the error allowed in p. If lse is not the log-sum-exp of these keys (and of the
    ``sink``, which broadcasts to it), p stays unchanged, unless lse is known to come from the forward pass.
    """
    total = p.sum(-1)
    if sink is not None:
        total += (sink - lse).exp_()
    if from_forward:
        rounded = total > 0
    else:
        level = lse.abs().add_(1).mul_(32 * torch.finfo(lse.dtype).eps).clamp_(max=0.5)  # -inf is not rounded
        rounded = (total - 1).abs_() <= level
    return p.div_(torch.where(rounded, total, 1.0)[..., None])


def scores(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    mixing: Mixing,
    dtype: torch.dtype,
    reads: bool,
    wanted: Tensor | None = None,
) -> Iterator[Scores]:
    """The tiles in which some query may see some key. With ``wanted`` [B,T] bool, only those with a True query."""
    causal, window, softcap = mixing.causal, mixing.window, mixing.softcap
    heads, queries, size, keys = *q.shape[1:], k.shape[2]
    offset = keys - queries  # causal is aligned bottom-right
    tall = min(queries, TILE)
    if reads:
        # Groups whose key ranges differ are copied, so only short examples may share one.
        at_once = tall if one_range(mixing.key_range) and not mixing.by_ids else queries
        plan = groups(q, k, mixing, ROW // max(1, heads * at_once * keys))
    else:
        plan = unread(q, k, mixing, tall)
    for group in plan:
        here, low, high = mixing.of(group.examples, group.heads), group.low, group.high
        sink, slopes = (None if x is None else x[:, None].to(dtype) for x in (here.sink, here.slopes))
        k_ = group.without_padding(k)  # keys [low, high)
        v_ = None if v is None else group.without_padding(v)
        for start in range(0, queries, TILE):
            stop = min(start + TILE, queries)
            rows = slice(start, stop)
            if reads and wanted is not None and not bool(wanted[group.examples, rows].any()):
                continue
            seen = None
            if mixing.by_ids:
                first, last, seen = _by_ids(here, group, start + offset, stop + offset, reads, q.device)
            else:
                first = max(low, start + offset - window + 1) if window is not None else low
                last = min(high, stop + offset) if causal else high
            if first >= last:
                continue
            q_row = group.of_queries(q, rows).to(dtype)
            shape = (*q_row.shape[:3], last - first)
            q_row = q_row.reshape(*k_.shape[:2], -1, size)
            at = slice(first - low, last - low)
            k_row, v_row = k_[:, :, at].to(dtype), None if v_ is None else v_[:, :, at].to(dtype)
            s = (q_row @ k_row.mT).view(shape).mul_(mixing.scale_of(q))
            bend = None
            if softcap is not None:
                s = s.div_(softcap).tanh_()
                bend = 1 - s.square()
                s.mul_(softcap)
            if slopes is not None:
                s += slopes[..., None] * distance(start + offset, slice(first, last), s)
            columns, upto = slice(first, last), start + offset
            yield Scores(group, rows, columns, s, q_row, k_row, v_row, upto, causal, window, seen, bend, sink)


def distance(upto: int, columns: slice, like: Tensor) -> Tensor:
    """[R,C] positions of keys less those of queries, which begin at ``upto``, for ``like`` [E,H,R,C]."""
    i = torch.arange(upto, upto + like.shape[2], device=like.device, dtype=like.dtype)
    return torch.arange(columns.start, columns.stop, device=like.device, dtype=like.dtype) - i[:, None]


def _by_ids(
    here: Mixing, group: Group, start: int, stop: int, reads: bool, device: torch.device
) -> tuple[int, int, Tensor]:
    """The keys that any query at positions [start, stop) may see, and which query sees which of them [E,R,C] bool.

    ``here`` is the record of the group.
    """
    first, last = group.low, group.high
    at, j = (torch.arange(*ends, device=device) for ends in ((start, stop), (first, last)))
    seen = here.sees(at[None], j)
    if reads:
        columns = seen.any(0).any(0).nonzero()
        if not len(columns):
            return first, first, seen
        near, far = int(columns[0]), int(columns[-1]) + 1
        seen = seen[..., near:far]
        first, last = first + near, first + far
    return first, last, seen


def query_tiles(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, reads: bool,
    wanted: Tensor | None = None, from_forward: bool = False,
) -> Iterator[QueryTile]:  # fmt: skip
    """The tiles of `scores`, with the attention and its gradient.

    ``from_forward``: ``lse`` comes from the forward pass, not from a caller.
    """
    gate = mixing.gate
    for tile in scores(q, k, v, mixing, lse.dtype, reads, wanted):
        group, rows = tile.group, tile.rows
        level = group.of_queries(lse, rows, float("inf"))  # closed heads have no attention
        grad = group.of_queries(grad_out, rows).to(lse.dtype)
        if gate is not None:
            grad = grad * per_head(gate[group.examples, group.heads]).to(lse.dtype)
        grad = grad.reshape(*tile.q.shape[:3], -1)
        p = tile.hide_(tile.s.sub_(level[..., None]).exp_(), 0.0)
        normalize_(p, level, tile.sink, from_forward)
        assert tile.v is not None
        dp = (grad @ tile.v.mT).view(p.shape)
        yield QueryTile(
            group.examples, group.heads, group.key_heads, rows, tile.columns, p, dp, tile.q, tile.k, grad, group.first,
            tile.bend, tile.upto,
        )  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing, reads: bool) -> tuple[Tensor, Tensor]:
    """out, gated, and lse. It also computes the heads whose gate is 0, since their lse is asked for."""
    dtype = accumulation_dtype(q)
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=dtype, device=q.device)
    if mixing.sink is not None:
        lse[:] = mixing.sink[:, None]  # of queries that see no key
    for tile in scores(q, k, v, mixing._replace(gate=None), dtype, reads):
        at = (tile.group.examples, tile.group.heads, tile.rows)
        s = tile.hide_(tile.s, float("-inf"))
        top = s.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)  # not -inf, which would give NaN
        if tile.sink is not None:
            top = torch.maximum(top, tile.sink[..., None])
        p = s.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        if tile.sink is not None:
            total += (tile.sink[..., None] - top).exp_()
        lse[at] = (top + total.log())[..., 0]
        p.div_(total.masked_fill_(total == 0, 1.0))
        assert tile.v is not None
        out[at] = (p.view(*tile.q.shape[:3], -1) @ tile.v).view(*p.shape[:3], -1).to(q.dtype)
    return mixing.gated(out).contiguous(), lse


def saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, reads: bool) -> Tensor:
    """Σ_h S_h [B,T,S], signed."""
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for tile in query_tiles(q, k, v, grad_out, lse, mixing, reads):
        tile.sum_heads(tile.dp.mul_(tile.p), total)
    return total


def flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool,
    reads: bool,
) -> FlowSums:  # fmt: skip
    """Sums of |S|. Without ``matrix_total``, queries in no group may be skipped and matrix_total must not be used."""
    tiles = TileSums(lse, groups)
    wanted = None if matrix_total else groups.given[0] >= 0
    for tile in query_tiles(q, k, v, grad_out, lse, mixing, reads, wanted):
        tiles.add((tile.examples, tile.heads), tile.rows, tile.columns, tile.dp.mul_(tile.p).abs_())
    return tiles.sums


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, of_slopes: bool,
    saliency: bool, groups: Groups, reads: bool,
) -> Gradients:  # fmt: skip
    """The gradients of q, k and v and, of what is asked for, of slopes, saliency and flow, in one pass."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v))
    dslopes = lse.new_zeros(q.shape[1]) if of_slopes else None
    scale = mixing.scale_of(q)
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    tiles = None if groups.query is None else TileSums(lse, groups)
    for tile in query_tiles(q, k, v, grad_out, lse, mixing, reads, from_forward=True):
        examples, heads, key_heads, rows, columns, p, s = tile[:7]
        s.mul_(p)
        if total is not None:
            tile.sum_heads(s, total)
        if tiles is not None:
            tiles.add((examples, heads), rows, columns, s.abs())
        dv[examples, key_heads, columns] += tile.fold(p).mT @ tile.grad_out
        # ∂L/∂(q·k·scale) = P ∘ (dP − Σ_j P dP), and s is P ∘ dP.
        s.addcmul_(p, s.sum(-1, keepdim=True), value=-1)
        if dslopes is not None:
            dslopes[heads] += torch.einsum("ehrc,rc->h", s, distance(tile.upto, columns, s))
        if tile.bend is not None:
            s.mul_(tile.bend)
        ds = tile.fold(s)
        dq[examples, heads, rows] = (ds @ tile.k).mul_(scale).view(*p.shape[:3], -1)
        dk[examples, key_heads, columns] += (ds.mT @ tile.q).mul_(scale)
    flow = None if tiles is None else tiles.sums.flow
    return Gradients(dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), total, flow, dslopes)


def of_rows(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor, reads: bool
) -> Tensor:
    """S of the chosen queries only, signed: [B,H,R,S]."""
    (batch, heads, queries, _), keys, count = q.shape, k.shape[2], rows.shape[1]
    at = rows.long()[:, None, :]  # [B,1,R]
    last = at[:, 0, :, None] + (keys - queries)  # [B,R,1]
    of_row = lse.take_along_dim(at, 2)[..., None]
    of_row = of_row.masked_fill(of_row.isneginf(), 0.0)  # rows without a key: -inf + inf would be NaN
    chosen_q, chosen_grad = (x.take_along_dim(at[..., None], 2).to(lse.dtype) for x in (q, grad_out))  # [B,H,R,D]
    chosen_grad = mixing.gated(chosen_grad)
    out = lse.new_zeros(batch, heads, count, keys)
    if reads:
        several = batch if one_range(mixing.key_range) else ROW // max(1, heads * count * keys)
        plan = groups(q, k, mixing, several)
    else:
        plan = unread(q, k, mixing, count)
    for group in plan:
        here = mixing.of(group.examples, group.heads)

        def product(x: Tensor, y: Tensor, group: Group = group) -> Tensor:
            x, y = group.of_queries(x), group.without_padding(y).to(lse.dtype)  # [·,Hk,C,D]
            folded = x.reshape(*y.shape[:2], -1, x.shape[3])  # [·,Hk,H/Hk·R,D]
            return (folded @ y.mT).view(*x.shape[:3], y.shape[2])

        level = group.of_queries(of_row, closed=float("inf"))  # closed heads have no attention
        j, upto = torch.arange(group.low, group.high, device=q.device), last[group.examples]  # [E,R,1]
        s = here.logits(product(chosen_q, k), upto[:, None], j)
        unseen = ~here.sees(upto[..., 0], j)
        if group.bounds is not None:
            unseen |= padding(group.bounds, group.high, group.low)[:, None]
        normalize_(
            s.sub_(level).exp_().masked_fill_(unseen[:, None], 0.0), level[..., 0],
            None if here.sink is None else here.sink[:, None].to(s.dtype),
        )  # fmt: skip
        out[group.examples, group.heads, :, group.low : group.high] = s.mul_(product(chosen_grad, v))
    return out

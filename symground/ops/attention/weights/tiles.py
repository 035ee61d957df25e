"""What is read off attention weights in plain PyTorch, by tiles of queries, each against all keys it sees."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from symground.ops.attention import tiles
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights.autograd import Backend
from symground.ops.attention.weights.record import Asked, Read, Upstream
from symground.ops.attention.weights.reference import pooled
from symground.ops.attention.weights.rows import Gradients, through_softmax
from symground.ops.common.tensors import accumulation_dtype


class _Tile(NamedTuple):
    """A tile of queries: E examples, H heads, R queries, C keys."""

    of: tiles.Scores
    at: tuple[slice, slice, slice]  # its examples, heads and queries
    s: Tensor  # [E,H,R,C] scores, -inf where the query does not see the key
    p: Tensor  # [E,H,R,C] attention weights
    level: Tensor  # [E,H,R] LSE


def _tiles(
    q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, reads: bool, asked: Asked | None = None
) -> Iterator[_Tile]:
    """The tiles in which some query sees some key; of queries in no group only if more than groups is ``asked``."""
    wanted = None
    if asked is not None and asked.query is not None and not (asked.summary or asked.block):
        wanted = asked.query >= 0
    for tile in tiles.scores(q, k, None, mixing, lse.dtype, reads, wanted):
        heads = tile.group.heads
        assert isinstance(heads, slice)  # all, since there is no gate
        at = tile.group.examples, heads, tile.rows
        s = tile.hide_(tile.s, float("-inf"))
        level = lse[at].masked_fill(lse[at].isneginf(), 0.0)  # rows without a key: -inf + inf would be NaN
        p = tiles.normalize_((s - level[..., None]).exp_(), level, tile.sink)
        p = tile.hide_(p, 0.0)  # and their LSE may be anything
        yield _Tile(tile, at, s, p, level.nan_to_num_(0.0))


def read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked, reads: bool) -> Read:
    """What is asked for, without rows. ``lse`` may have any floating dtype, and the results have it too."""
    exact = lse.to(accumulation_dtype(lse))
    found = Read.nothing(q, k, exact, asked)
    for tile in _tiles(q, k, exact, mixing, reads, asked):
        _add(tile, found, asked)
    return found.to(lse.dtype)


def _add(tile: _Tile, found: Read, asked: Asked) -> None:
    (examples, heads, queries), columns, s, p = tile.at, tile.of.columns, tile.s, tile.p
    if asked.grouped:
        received = asked.in_query(p, examples, queries) @ p  # [E,H,Gq,C]
        if found.mass is not None:
            found.mass[examples, heads] += received @ asked.in_key(p, examples, columns).mT
        if found.received is not None:
            found.received[examples, heads, :, columns] += received
    if found.pooled is not None:
        _pool(found.pooled[examples, heads], p, queries.start, columns.start, asked)
    if asked.summary:
        entropy, weight, key, score, distance = found[3:8]
        assert entropy is not None and weight is not None and key is not None  # noqa: PT018
        assert score is not None and distance is not None  # noqa: PT018
        score[tile.at], first = s.max(-1)
        key[tile.at] = (first + columns.start).masked_fill_(score[tile.at].isneginf(), -1)
        weight[tile.at] = p.take_along_dim(first[..., None], -1)[..., 0]
        distance[tile.at] = (p * -tiles.distance(tile.of.upto, columns, p)).sum(-1)
        entropy[tile.at] = torch.special.entr(p).sum(-1)


def _pool(total: Tensor, p: Tensor, row: int, column: int, asked: Asked) -> None:
    """Add p [E,H,R,C], which begins at (row, column) of the matrix, to the blocks ``total``."""
    block = asked.block
    blocks = pooled(pad(p, (column % block, 0, row % block, 0)), block, asked.largest)
    first, left = row // block, column // block
    of_these = total[:, :, first : first + blocks.shape[2], left : left + blocks.shape[3]]
    torch.maximum(of_these, blocks, out=of_these) if asked.largest else of_these.add_(blocks)


def topk(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, count: int, reads: bool) -> tuple[Tensor, Tensor]:
    """The largest weights of each row and their keys, [B,H,T,count]."""
    exact = lse.to(accumulation_dtype(lse))
    weights = exact.new_zeros(*q.shape[:3], count)
    keys = torch.full(weights.shape, -1, dtype=torch.int64, device=q.device)
    for tile in _tiles(q, k, exact, mixing, reads):
        order = _largest(tile.s, min(count, tile.s.shape[3]), reads)
        found = slice(0, order.shape[-1])
        weights[tile.at][..., found] = tile.p.take_along_dim(order, -1)
        unseen = tile.s.take_along_dim(order, -1).isneginf()
        keys[tile.at][..., found] = (order + tile.of.columns.start).masked_fill_(unseen, -1)
    return weights.to(lse.dtype), keys


def _largest(s: Tensor, count: int, reads: bool) -> Tensor:
    """The indices of the ``count`` largest numbers of each row, largest first; of equal ones, the smaller index first.

    Sorting whole rows takes several times as long as a selection, whose choice among equal numbers is any.
    """
    if reads and count:
        values, found = s.topk(count)
        if bool(((s >= values[..., -1:]).sum(-1) == count).all()):  # no choice
            found = found.sort(-1).values
            return found.gather(-1, s.gather(-1, found).sort(dim=-1, descending=True, stable=True).indices)
    return s.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def backward(
    q: Tensor, k: Tensor, lse: Tensor, upstream: Upstream, mixing: Mixing, asked: Asked, of_sink: bool, of_slopes: bool,
    reads: bool,
) -> Gradients:  # fmt: skip
    """The gradients of all but rows, with ∂L/∂A made of ``upstream`` tile by tile."""
    exact = lse.to(accumulation_dtype(lse))
    dq, dk = (torch.zeros(x.shape, dtype=exact.dtype, device=x.device) for x in (q, k))
    dsink, dslopes = (exact.new_zeros(q.shape[1]) if wanted else None for wanted in (of_sink, of_slopes))
    scale = mixing.scale_of(q)
    asked = asked._replace(summary=upstream.grad_entropy is not None, block=0)
    for tile in _tiles(q, k, exact, mixing, reads, asked):
        (examples, heads, _), of, p = tile.at, tile.of, tile.p
        s = _of_weights(tile, upstream, asked).mul_(p)
        s, of_sink_here = through_softmax(s, p, tile.level, mixing.sink if dsink is not None else None)
        if dsink is not None and of_sink_here is not None:
            dsink[heads] += of_sink_here
        if dslopes is not None:
            dslopes[heads] += torch.einsum("ehrc,rc->h", s, tiles.distance(of.upto, of.columns, s))
        if of.bend is not None:
            s.mul_(of.bend)
        ds = s.view(*of.q.shape[:3], -1)
        dq[tile.at] = (ds @ of.k).mul_(scale).view(*p.shape[:3], -1)
        dk[examples, of.group.key_heads, of.columns] += (ds.mT @ of.q).mul_(scale)
    return Gradients(dq, dk, dsink, dslopes)


def _of_weights(tile: _Tile, upstream: Upstream, asked: Asked) -> Tensor:
    """∂L/∂A [E,H,R,C] of a tile, without that of rows."""
    (examples, heads, queries), columns, p = tile.at, tile.of.columns, tile.p
    found = None
    if upstream.grad_mass is not None:  # [E,H,Gq,Gk] @ [E,1,Gk,C]
        found = upstream.grad_mass[examples, heads].to(p.dtype) @ asked.in_key(p, examples, columns)
    if upstream.grad_received is not None:
        received = upstream.grad_received[examples, heads, :, columns].to(p.dtype)
        found = received if found is None else found + received
    if found is not None:
        found = asked.in_query(p, examples, queries).mT @ found
    if upstream.grad_entropy is not None:
        # ∂(-Σ A log A)/∂A = -(log A + 1); where A is 0, so is A times this.
        logs = p.log().masked_fill_(p == 0, 0.0).add_(1).mul_(-upstream.grad_entropy[tile.at].to(p.dtype)[..., None])
        found = logs if found is None else found + logs
    assert found is not None  # else there is nothing to go back from
    return found


def backend(reads: bool) -> Backend:
    """The functions of an implementation; with ``reads`` the work follows the values of key ranges and groups."""
    return Backend(partial(read, reads=reads), partial(backward, reads=reads), partial(topk, reads=reads))

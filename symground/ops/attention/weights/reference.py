"""The specification of what is read off attention weights, in plain PyTorch. It materialises [B,H,T,S]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from symground.ops.attention.mixing import Mixing
from symground.ops.attention.reference import scores
from symground.ops.attention.weights.record import Asked, Read
from symground.ops.common import needs
from symground.ops.common.derivatives import product

refuses = needs.nothing


def attention_read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
    found = Read.nothing(q, k, lse, asked)
    s, valid, level = _scores(q, k, lse, mixing)
    a = (s - level).exp()  # [B,H,T,S]
    if asked.rows is not None:
        found = found._replace(rows=a.take_along_dim(asked.rows[:, None, :, None], 2))
    if asked.grouped:
        received = product(asked.in_query(a), a)
        if asked.key is not None:
            found = found._replace(mass=product(received, asked.in_key(a).mT))
        if asked.received:
            found = found._replace(received=received)
    if asked.summary:
        entropy = -(a * (s - level).masked_fill(~valid, 0.0)).sum(-1)
        weight, key, score = found.weight, found.key, found.score
        if s.shape[3]:
            score, key = s.detach().max(-1)  # of equal ones, the first
            weight = (score - level.detach()[..., 0]).exp()
            key = key.masked_fill(~valid.any(-1), -1)
        i = torch.arange(s.shape[2], device=s.device)[:, None] + (s.shape[3] - s.shape[2])
        distance = (a.detach() * (i - torch.arange(s.shape[3], device=s.device))).sum(-1)
        found = found._replace(entropy=entropy, weight=weight, key=key, score=score, distance=distance)
    if asked.block:
        found = found._replace(pooled=pooled(a.detach(), asked.block, asked.largest))
    return found.to(lse.dtype)


attention_rows = attention_mass = attention_received = attention_summary = attention_pooled = attention_read


def attention_topk(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, count: int) -> tuple[Tensor, Tensor]:
    s, valid, level = _scores(q.detach(), k.detach(), lse, mixing)
    order = s.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    weights = (s - level).exp().take_along_dim(order, -1)
    return weights.to(lse.dtype), order.masked_fill(~valid.expand_as(s).take_along_dim(order, -1), -1)


def pooled(a: Tensor, block: int, largest: bool) -> Tensor:
    """[...,T,S] of at least 0 → sums or maxima over blocks of the last two dimensions, the last ones cut off."""
    rows, columns = a.shape[-2:]
    high, wide = (-(-n // block) for n in (rows, columns))
    blocks = pad(a, (0, wide * block - columns, 0, high * block - rows))
    blocks = blocks.unflatten(-1, (wide, block)).unflatten(-3, (high, block))
    found: Tensor = blocks.amax((-3, -1)) if largest else blocks.sum((-3, -1))
    return found


def _scores(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B,H,T,S], -inf where a query does not see a key; which it sees; and LSE [B,H,T,1], 0 where it sees none.

    The LSE has the values given, and the derivatives of the log-sum-exp of the scores.
    """
    s, valid = scores(q, mixing.without_padding(k), mixing), mixing.valid(q, k)
    s = s.masked_fill(~valid, float("-inf"))
    level = lse.detach().to(s.dtype).masked_fill(~valid.any(-1), 0.0)
    total = (s - level[..., None]).exp().sum(-1)  # 1, but its derivatives are not 0
    if mixing.sink is not None:
        total = total + (mixing.sink.to(s.dtype)[:, None] - level).exp().masked_fill(~valid.any(-1), 0.0)
    return s, valid, (level + (total - total.detach()).log1p())[..., None]

"""The records of what is read off attention weights A: what is asked for, what is found, and the gradients of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.common.flow import members


class Asked(NamedTuple):
    """What is asked for."""

    rows: Tensor | None = None
    """[B,R] int64, the queries whose rows of A are returned."""
    query: Tensor | None = None
    """[B,T] int64 groups of the queries of mass and received; None is one group of all."""
    key: Tensor | None = None
    """[B,S] int64 groups of the keys; asks for mass."""
    num_query: int = 1
    num_key: int = 0
    received: bool = False
    summary: bool = False
    block: int = 0
    """The side of the blocks that are pooled; 0 pools none."""
    largest: bool = False
    """Pool by the maximum in place of the sum."""

    @property
    def results(self) -> tuple[bool, ...]:
        """Which fields of `Read` are asked for."""
        return self.rows is not None, self.key is not None, self.received, *(self.summary,) * 5, self.block > 0

    @property
    def grouped(self) -> bool:
        """Whether sums over groups of queries are asked for."""
        return self.received or self.key is not None

    def in_query(self, like: Tensor, examples: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        """[E or 1,1,Gq,R], 1 where a query is in the group, in the dtype of ``like`` [...,R,S]."""
        if self.query is None:
            return like.new_ones(1, 1, 1, like.shape[-2])
        return members(self.query[examples, rows], self.num_query, like.dtype)[:, None]

    def in_key(self, like: Tensor, examples: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """[E,1,Gk,C], likewise for the keys of mass."""
        assert self.key is not None
        return members(self.key[examples, columns], self.num_key, like.dtype)[:, None]


class Read(NamedTuple):
    """What is found; None if it was not asked for. All in the dtype of the log-sum-exp but ``key``, which is int64.

    No gradient flows through those after ``entropy``.
    """

    rows: Tensor | None = None  # [B,H,R,S]
    mass: Tensor | None = None  # [B,H,Gq,Gk]
    received: Tensor | None = None  # [B,H,Gq,S]
    entropy: Tensor | None = None  # [B,H,T]
    weight: Tensor | None = None  # [B,H,T]
    key: Tensor | None = None  # [B,H,T]
    score: Tensor | None = None  # [B,H,T]
    distance: Tensor | None = None  # [B,H,T]
    pooled: Tensor | None = None  # [B,H,⌈T/block⌉,⌈S/block⌉]

    @classmethod
    def nothing(cls, q: Tensor, k: Tensor, lse: Tensor, asked: Asked) -> Read:
        """What there is to find where no query sees a key."""
        (heads, queries), keys = (q.shape[:2], q.shape[2]), k.shape[2]
        found = cls()
        if asked.rows is not None:
            found = found._replace(rows=lse.new_zeros(*heads, asked.rows.shape[1], keys))
        if asked.key is not None:
            found = found._replace(mass=lse.new_zeros(*heads, asked.num_query, asked.num_key))
        if asked.received:
            found = found._replace(received=lse.new_zeros(*heads, asked.num_query, keys))
        if asked.summary:
            entropy, weight, distance = (lse.new_zeros(*heads, queries) for _ in range(3))
            score = lse.new_full((*heads, queries), float("-inf"))
            key = torch.full((*heads, queries), -1, dtype=torch.int64, device=lse.device)
            found = found._replace(entropy=entropy, weight=weight, key=key, score=score, distance=distance)
        if asked.block:
            found = found._replace(pooled=lse.new_zeros(*heads, *(-(-n // asked.block) for n in (queries, keys))))
        return found

    def to(self, dtype: torch.dtype) -> Read:
        """The same in ``dtype``, but for ``key``."""
        return Read(*(x if x is None or x.dtype == torch.int64 else x.to(dtype) for x in self))


class Upstream(NamedTuple):
    """The gradients of what is found, None for those without one."""

    grad_rows: Tensor | None = None
    grad_mass: Tensor | None = None
    grad_received: Tensor | None = None
    grad_entropy: Tensor | None = None

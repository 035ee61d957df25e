"""Groups of positions, and sums of |S| over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.derivatives import product


class Groups(NamedTuple):
    """Groups of query and key positions; -1 is in no group. `NO_GROUPS` requests no flow."""

    query: Tensor | None  # [B,T] int64
    key: Tensor | None  # [B,S] int64
    num_query: int
    num_key: int

    @property
    def given(self) -> tuple[Tensor, Tensor]:
        """The ids; only for groups that request flow."""
        assert self.query is not None
        assert self.key is not None
        return self.query, self.key


NO_GROUPS = Groups(None, None, 0, 0)


def check_groups(
    query: Tensor | None, key: Tensor | None, num_query: int | None, num_key: int | None, sizes: tuple[int, int, int],
    like_name: str, like: Tensor,
) -> Groups:  # fmt: skip
    """Check ids of a mixer of ``sizes`` (B, T, S). A number of groups of None is taken from the largest id."""
    batch, queries, keys = sizes
    query, num_query = check.groups("query_groups", query, batch, queries, num_query, like_name, like)
    key, num_key = check.groups("key_groups", key, batch, keys, num_key, like_name, like)
    return Groups(query, key, num_query, num_key)


class FlowSums(NamedTuple):
    """Sums of |S| over groups of positions."""

    flow: Tensor  # [B,H,Gq,Gk]
    row_total: Tensor  # [B,H,Gq], over all keys
    matrix_total: Tensor  # [B,H], over all queries and keys

    @classmethod
    def zeros(cls, like: Tensor, heads: Sequence[int], groups: Groups) -> FlowSums:
        """Sums of nothing, in the dtype of ``like``; ``heads`` is (B, H)."""
        counts = groups.num_query, groups.num_key
        return cls(like.new_zeros(*heads, *counts), like.new_zeros(*heads, counts[0]), like.new_zeros(*heads))


def members(groups: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[B,T] group ids → [B,count,T], 1 where the position is in the group."""
    return (groups[:, None] == torch.arange(count, device=groups.device)[:, None]).to(dtype)


def group_sums(saliency: Tensor, groups: Groups) -> FlowSums:
    """Sums of |saliency| [B,H,T,S] over groups. A position of group -1 is in no group, but counts in the totals."""
    s = saliency.abs()
    query, key = groups.given
    in_query, in_key = members(query, groups.num_query, s.dtype), members(key, groups.num_key, s.dtype)
    rows = product(in_query[:, None], s)  # [B,H,Gq,S]
    return FlowSums(product(rows, in_key.mT[:, None]), rows.sum(-1), s.sum((-1, -2)))


#: Heads of a tensor: a slice if they are neighbours, which gives views; else their indices, which gives copies.
Heads: TypeAlias = slice | Tensor


class TileSums:
    """Sums of |S| over groups of queries and keys, tile by tile.

    Attributes:
        sums: the sums over the tiles added so far.
    """

    def __init__(self, like: Tensor, groups: Groups) -> None:
        """``like`` [B,H,...] has the precision of the sums."""
        self.sums = FlowSums.zeros(like, like.shape[:2], groups)
        self._query, self._key = groups.given

    def add(self, at: tuple[slice, Heads], rows: slice, columns: slice, s: Tensor) -> None:
        """``s`` [E,H,R,C] is |S| for some examples and heads, queries and keys."""
        flow, row_total, matrix_total = self.sums
        in_query = members(self._query[at[0], rows], flow.shape[2], s.dtype)[:, None]
        in_key = members(self._key[at[0], columns], flow.shape[3], s.dtype)[:, None]
        flow[at] += in_query @ (s @ in_key.mT)  # [E,1,Gq,R] @ ([E,H,R,C] @ [E,1,C,Gk])
        of_row = s.sum(-1, keepdim=True)  # [E,H,R,1]
        row_total[at] += (in_query @ of_row)[..., 0]
        matrix_total[at] += of_row.sum((-1, -2))

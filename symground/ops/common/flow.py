"""Probes and groups of positions, which request saliency and flow from a mixer, and sums of |S| over groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.derivatives import at_zero, product


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


class Probes(NamedTuple):
    """The probes of a forward pass: its backward pass gives saliency and flow as their gradients."""

    saliency: Tensor | None  # [B,T,S]
    flow: Tensor | None  # [B,H,Gq,Gk]
    query_groups: Tensor | None  # [B,T]
    key_groups: Tensor | None  # [B,S]

    @property
    def dtypes(self) -> tuple[torch.dtype | None, torch.dtype | None]:
        """The dtypes that the gradients of the saliency and the flow probe must have."""
        saliency, flow = self.saliency, self.flow
        return None if saliency is None else saliency.dtype, None if flow is None else flow.dtype

    @property
    def groups(self) -> Groups:
        """The groups of the flow probe."""
        if self.flow is None:
            return NO_GROUPS
        return Groups(self.query_groups, self.key_groups, *self.flow.shape[2:])

    def on(self, a: Tensor) -> Tensor:
        """The mixing matrix [B,H,T,S] with the probes applied, which do not change its values.

        The saliency probe p enters as A·(1 + p), so that ∂L/∂p at p = 0 is Σ_h A_h ∘ ∂L/∂A_h.
        """
        if self.saliency is not None:
            a = a * (1 + at_zero(self.saliency)[:, None])
        return a if self.flow is None else _FlowProbe.apply(a, self.flow, self.query_groups, self.key_groups)


NO_PROBES = Probes(None, None, None, None)


def check_probes(probes: Probes, sizes: tuple[int, int, int, int], like_name: str, like: Tensor) -> Probes:
    """Check probes of a mixer of ``sizes`` (B, H, T, S); returns them with their ids as int64.

    They must be on the device of ``like``, whose name in messages is ``like_name``.
    """
    batch, heads, queries, keys = sizes
    saliency, flow, query_groups, key_groups = probes
    if saliency is not None:
        dims = "B,T,S" if like_name == "q" else "B,T,T"
        check.probe("saliency_probe", saliency, dims, (batch, queries, keys), like_name, like)
    if flow is None:
        return probes
    for name, value in (("query_groups", query_groups), ("key_groups", key_groups)):
        if value is None:
            raise ValueError(f"{name}: expected group ids, since flow_probe is given; got None")
    if check.is_tensor("flow_probe", flow).ndim != 4:
        raise ValueError(f"flow_probe: expected shape [B,H,Gq,Gk], got {list(flow.shape)}")
    check.probe("flow_probe", flow, "B,H,Gq,Gk", (batch, heads, *flow.shape[2:]), like_name, like)
    num_query, num_key = flow.shape[2:]
    groups = check_groups(query_groups, key_groups, num_query, num_key, (batch, queries, keys), like_name, like)
    query_groups, key_groups = groups.given
    # A compiled graph does not allow an autograd function to take the same tensor twice.
    return Probes(saliency, flow, query_groups, key_groups.clone() if key_groups is query_groups else key_groups)


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


class _FlowProbe(torch.autograd.Function):
    """Identity on A. The backward pass gives the probe the group sums of |A ∘ ∂L/∂A|; autograd would omit the | |."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, flow_probe: Tensor, query_groups: Tensor, key_groups: Tensor) -> Tensor:
        ctx.save_for_backward(a, query_groups, key_groups)
        ctx.counts, ctx.dtype = flow_probe.shape[2:], flow_probe.dtype
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        a, query_groups, key_groups = ctx.saved_tensors
        sums = group_sums(a * grad, Groups(query_groups, key_groups, *ctx.counts))
        return grad, sums.flow.to(ctx.dtype), None, None


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

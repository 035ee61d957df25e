"""Runs of the stage `weights` of one attention layer: rows, mass, received and summary together, forward only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common.inputs import Inputs
from symground import ops
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights.api import attention_read
from symground.ops.attention.weights.record import Asked, Read

Run = Callable[[], Any]


def sums_of(a: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """Mass, received, entropy, largest weight, its key and mean distance of matrices A [B,H,T,T] whose rows sum to 1.

    ``queries`` [B,1,Gq,T] and ``keys`` [B,1,Gk,T] are 1 where a position is in the group.
    """
    received = queries @ a
    weight, key = a.max(-1)
    position = torch.arange(a.shape[-1], dtype=a.dtype, device=a.device)
    # Σ A·(i - j) = i - Σ A·j needs no further matrix.
    return received @ keys.mT, received, torch.special.entr(a).sum(-1), weight, key, position - a @ position


def read_off(x: Inputs, s: Tensor, one_hot: Tensor) -> tuple[Tensor, ...]:
    """The same of the matrix: s [B,H,T,T] are masked scores, ``one_hot`` [B,1,G,T] the groups."""
    a = s.softmax(-1)
    return a.take_along_dim(x.rows[:, None, :, None], 2), s.amax(-1), *sums_of(a, one_hot, one_hot)


def eager(x: Inputs) -> Run:
    q, k, _, _ = x.detached
    one_hot = (x.groups[:, None] == torch.arange(x.GROUPS, device=q.device)[:, None]).to(q.dtype)[:, None]
    future = x.future
    return lambda: read_off(x, ((q @ k.mT) * x.scale).masked_fill(future, float("-inf")), one_hot)


def _asked(x: Inputs) -> Asked:
    return Asked(x.rows, x.groups, x.groups, x.GROUPS, x.GROUPS, received=True, summary=True)


def symground(x: Inputs) -> Run:
    q, k, _, _ = x.detached
    lse, asked = x.lse, _asked(x)
    return lambda: attention_read(q, k, lse, Mixing(), asked)


def forward_and_weights(x: Inputs) -> Run:
    q, k, v, _ = x.detached
    asked = _asked(x)

    def run() -> tuple[Tensor, Read]:
        out, lse = ops.attention(q, k, v, impl=x.impl)
        return out, attention_read(q, k, lse, Mixing(), asked)

    return run


def sdpa(x: Inputs) -> Run:
    q, k, v, _ = x.detached
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)

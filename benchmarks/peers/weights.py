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


def read_off(x: Inputs, s: Tensor, one_hot: Tensor) -> tuple[Tensor, ...]:
    """The same of the matrix: s [B,H,T,T] are masked scores, ``one_hot`` [B,1,G,T] the groups."""
    a = s.softmax(-1)
    received = one_hot @ a
    weight, key = a.max(-1)
    distance = torch.arange(a.shape[2], device=a.device)[:, None] - torch.arange(a.shape[3], device=a.device)
    return (
        a.take_along_dim(x.rows[:, None, :, None], 2), received, received @ one_hot.mT, torch.special.entr(a).sum(-1),
        weight, key, s.amax(-1), (a * distance).sum(-1),
    )  # fmt: skip


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

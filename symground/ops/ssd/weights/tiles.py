"""Rows of M, and sums of |M| over queries by tiles, in plain PyTorch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common.flow import members
from symground.ops.common.tensors import accumulation_dtype, finest, running_sum
from symground.ops.ssd import tiles
from symground.ops.ssd.scan import Scan


def rows(scan: Scan, at: Tensor) -> Tensor:
    """M of the queries ``at`` [B,R], signed: [B,H,R,T]."""
    x, dt, A, b, c, _ = scan.without_padding()
    total = running_sum(finest(dt) * finest(A), 1)  # [B,T,H]
    of_row = total.take_along_dim(at[..., None], 1).transpose(1, 2)[..., None]  # [B,H,R,1]
    seen = torch.arange(x.shape[1], device=x.device) <= at[:, None, :, None]
    exponent = (of_row - total.transpose(1, 2)[:, :, None]).masked_fill(~seen, float("-inf"))
    weight = tiles.weight(exponent, x.dtype).mul_(dt.transpose(1, 2)[:, :, None])
    scores = c.take_along_dim(at[..., None, None], 1).transpose(1, 2) @ b.permute(0, 2, 3, 1)  # [B,G,R,T]
    weight.unflatten(1, (scores.shape[1], -1)).mul_(scores[:, :, None])
    return weight


def received(scan: Scan, query: Tensor | None, count: int, reads: bool) -> Tensor:
    """Σ |M[i,j]| over the queries i of each group [B,H,Gq,T]; ``query`` [B,T] or None, one group of all.

    S is M where x and dY are 1.
    """
    batch, length, heads, _ = scan.x.shape
    one = scan.x.new_ones(batch, length, heads, 1)
    found = scan.x.new_zeros(batch, heads, count, length, dtype=accumulation_dtype(scan.x))
    wanted = None if query is None else query >= 0
    for examples, rows, columns, m in tiles.magnitudes(scan._replace(x=one), one, reads, wanted):
        if query is None:
            found[examples, :, :, columns] += m.sum(2, keepdim=True)
        else:
            in_query = members(query[examples, rows], count, m.dtype)[:, None]  # [E,1,Gq,R]
            found[examples, :, :, columns] += in_query @ m
    return found

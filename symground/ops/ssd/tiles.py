"""Saliency and flow of SSD in plain PyTorch on any device, by tiles of queries, each against all keys before it.

The decay from earlier keys to a tile of queries is a product, exp(L_i - L_m) · exp(L_m - L_j), with m the position
before the tile. Both factors are multiplied into the operands, so no exponential is computed for each pair, and one
matrix product sums the heads of a group, which share C Bᵀ. Only tiles on the diagonal compute their decay in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.plan import ROW, UNREAD
from symground.ops.common.flow import FlowSums, Groups, TileSums
from symground.ops.common.tensors import accumulation_dtype, finest, running_sum
from symground.ops.ssd.scan import Scan

TILE = 64  # queries
#: Below these exponents a weight is set to 0: denormal numbers would slow the products down and add almost nothing.
SMALLEST = {torch.float32: -80.0, torch.float64: -700.0}


class Tile(NamedTuple):
    """A tile of queries of some examples, in at least float32: E examples, R queries, G groups of H / G heads."""

    examples: slice
    rows: slice
    before: slice
    """All keys before the tile."""
    scores: Tensor
    """[E,G,R,C] C Bᵀ against those keys and the tile's own."""
    grad: Tensor
    """[E,R,H,P] dY times the decay since the position before the tile."""
    keys: Tensor
    """[E,before,H,P] x times dt and the decay up to that position."""
    diagonal: Tensor
    """[E,H,R,R] S of the tile's own keys, signed."""


def tiles(scan: Scan, grad_y: Tensor, reads: bool, wanted: Tensor | None = None) -> Iterator[Tile]:
    """One tile after the other; with ``wanted`` [B,T] bool and if values are read, only those with a True query."""
    batch, length, heads, _ = scan.x.shape
    groups = scan.B.shape[2]
    max_examples = max(1, (ROW if reads else UNREAD) // (heads * min(length, TILE) * length))
    for first in range(0, batch, max_examples):
        at = slice(first, min(first + max_examples, batch))
        x_, dt_, A_, b, c, _ = scan.of(at).without_padding()
        b, c = b.permute(0, 2, 3, 1), c.transpose(1, 2)  # [E,G,N,T], [E,G,T,N]
        grad = grad_y[at].to(x_.dtype)
        # Differences of these sums are exact over any length; those of float32 sums from the start would not be.
        total = running_sum(finest(dt_) * finest(A_), 1)  # [E,T,H]
        for start in range(0, length, TILE):
            rows = slice(start, min(start + TILE, length))
            if reads and wanted is not None and not bool(wanted[at, rows].any()):
                continue
            before = slice(0, start)
            scores = c[:, :, rows] @ b[..., : rows.stop]
            last = total[:, max(0, start - 1), None] if start else total[:, :1] * 0
            since = weight(total[:, rows] - last, x_.dtype)
            upto = weight(last - total[:, before], x_.dtype) * dt_[:, before]
            pair = total[:, rows].transpose(1, 2)  # [E,H,R]
            diagonal = weight(pair[..., :, None] - pair[..., None, :], x_.dtype).tril_()
            diagonal *= dt_[:, rows].transpose(1, 2)[..., None, :]
            diagonal *= grad[:, rows].transpose(1, 2) @ x_[:, rows].permute(0, 2, 3, 1)
            diagonal.unflatten(1, (groups, -1)).mul_(scores[:, :, None, :, start:])
            yield Tile(
                at, rows, before, scores, grad[:, rows] * since[..., None], x_[:, before] * upto[..., None], diagonal
            )


def weight(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return exponent.to(dtype).exp_().masked_fill_(exponent < SMALLEST[dtype], 0)


def saliency(scan: Scan, grad_y: Tensor, signed: bool, reads: bool) -> Tensor:
    """As `Backend.saliency`."""
    batch, length = scan.x.shape[:2]
    groups = scan.B.shape[2]
    total = None
    for tile in tiles(scan, grad_y, reads):
        if total is None:
            total = tile.scores.new_zeros(batch, length, length)
        out = total[tile.examples, tile.rows]
        out[..., tile.rows] = tile.diagonal.sum(1)
        if tile.rows.start:
            grad, keys = (z.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2) for z in (tile.grad, tile.keys))
            product = (grad @ keys.mT).mul_(tile.scores[..., : tile.rows.start])  # [E,G,R,before]
            out[..., tile.before] = product.sum(1) if groups > 1 else product[:, 0]
    assert total is not None
    return total if signed else total.abs_()


def magnitudes(
    scan: Scan, grad_y: Tensor, reads: bool, wanted: Tensor | None = None
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """The examples, queries and keys of each half of a tile, its own keys and those before, and |S| [E,H,R,C] there."""
    for tile in tiles(scan, grad_y, reads, wanted):
        yield tile.examples, tile.rows, tile.rows, tile.diagonal.abs_()
        if tile.rows.start:
            product = tile.grad.transpose(1, 2) @ tile.keys.permute(0, 2, 3, 1)  # [E,H,R,before]
            product.unflatten(1, (scan.B.shape[2], -1)).mul_(tile.scores[:, :, None, :, : tile.rows.start])
            yield tile.examples, tile.rows, tile.before, product.abs_()


def flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool, reads: bool) -> FlowSums:
    """As `Backend.flow`."""
    x = scan.x
    sums = TileSums(x.new_empty(x.shape[0], x.shape[2], dtype=accumulation_dtype(x)), groups)
    wanted = None if matrix_total else groups.given[0] >= 0
    for examples, rows, columns, s in magnitudes(scan, grad_y, reads, wanted):
        sums.add((examples, slice(None)), rows, columns, s)
    return sums.sums

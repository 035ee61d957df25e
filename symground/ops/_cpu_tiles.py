"""Saliency on a CPU, by rows of tiles: a tile of queries against its keys, all heads at once.

Nothing of size B·H·T·S exists: a row of tiles holds two [examples, H, TILE, S] products, and is summed before the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 64  # queries
ROW = 2**20  # numbers in a row of tiles, where one example's own is smaller: so many short examples go together


def rows_of_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    key_range: Tensor | None,
    window: int | None,
    wanted: Tensor | None = None,
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Yields (examples, queries, keys, S [examples, H, queries, keys] signed); S = 0 at keys outside the slice.

    ``wanted`` [B,T] bool leaves out the tiles in which no query is True.
    """
    batch, heads, queries, size = q.shape
    key_heads, keys = k.shape[1:3]
    offset = keys - queries  # causal is aligned bottom-right
    together = max(1, ROW // max(1, heads * min(queries, TILE) * keys))
    for example in range(0, batch, together):
        examples = slice(example, min(example + together, batch))
        low, high = 0, keys
        if key_range is not None:
            bounds = key_range[examples]
            low, high = int(bounds[:, 0].min()), int(bounds[:, 1].max())
        for start in range(0, queries, TILE):
            stop = min(start + TILE, queries)
            rows = slice(start, stop)
            if wanted is not None and not bool(wanted[examples, rows].any()):
                continue
            first = max(low, start + offset - window + 1) if window is not None else low
            last = min(high, stop + offset) if causal else high
            if first >= last:
                continue
            columns = slice(first, last)
            shape = (examples.stop - examples.start, heads, stop - start, last - first)

            def product(
                x: Tensor, y: Tensor, at: tuple[slice, slice, slice] = (examples, rows, columns),
                shape: tuple[int, ...] = shape,
            ) -> Tensor:  # fmt: skip
                x = x[at[0], :, at[1]].to(lse.dtype).reshape(shape[0], key_heads, -1, size)  # [·, Hk, H/Hk·rows, D]
                y = y[at[0], :, at[2]].to(lse.dtype).transpose(2, 3)  # [·, Hk, D, columns]
                return (x @ y).view(shape)

            s = product(q, k).mul_(scale).sub_(lse[examples, :, rows, None]).exp_()
            i = torch.arange(start, stop)[:, None] + offset
            j = torch.arange(first, last)
            if causal and last > start + offset + 1:
                s.masked_fill_(j > i, 0.0)
            if window is not None and first < stop + offset - window:
                s.masked_fill_(j <= i - window, 0.0)
            if key_range is not None:
                s.masked_fill_(((j < bounds[:, :1]) | (j >= bounds[:, 1:]))[:, None, None], 0.0)
            yield examples, rows, columns, s.mul_(product(grad_out, v))

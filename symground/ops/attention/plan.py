"""How attention is split: into examples computed together, and on a CPU into rectangles of queries × keys.

On a CPU the split follows the values of the key ranges and gates: padding and closed heads cost nothing, and no copy of
k and v is made. Elsewhere reading a value would wait for the device, so that the split follows the shapes alone, and
padding and closed heads are masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.common.flow import Heads
from symground.ops.common.tensors import padding

ROW = 2**20  # query-key products: examples are computed together up to this many
UNREAD = 2**24  # the same where values are not read: a device other than a CPU needs larger operations to be busy
CHUNK = 256  # queries in a rectangle that needs a mask


class Group(NamedTuple):
    """Consecutive examples and heads that are computed together, and the keys [low, high) that any of them reads."""

    examples: slice
    heads: Heads
    key_heads: Heads  # the key heads of ``heads``; each serves equally many of them
    low: int
    high: int
    bounds: Tensor | None  # [examples,2] the examples' key ranges if they differ or are not read, else None
    first: bool  # the first heads of these examples
    closed: Tensor | None = None  # [examples,H] bool, heads with gate 0 that are among ``heads``; else None

    def without_padding(self, x: Tensor) -> Tensor:
        """The group's part of keys or values; a copy with 0 outside ``bounds`` and in closed heads, if it has these."""
        x = x[self.examples, self.key_heads, self.low : self.high]
        if self.closed is not None:
            closed = self.closed.unflatten(1, (x.shape[1], -1)).all(-1)
            x = x.masked_fill(closed[..., None, None], 0.0)
        if self.bounds is not None:
            x = x.masked_fill(padding(self.bounds, self.high, self.low)[:, None, :, None], 0.0)
        return x

    def of_queries(self, x: Tensor, rows: slice = slice(None), closed: float = 0.0) -> Tensor:
        """The group's part of [B,H,T,…]; a copy with the value ``closed`` in closed heads, if it has these."""
        x = x[self.examples, self.heads, rows]
        if self.closed is None:
            return x
        return x.masked_fill(self.closed.view(*self.closed.shape, *(1,) * (x.ndim - 2)), closed)


def one_range(key_range: Tensor | None) -> bool:
    """Whether all examples may read the same keys."""
    return key_range is None or bool((key_range == key_range[:1]).all())


def unread(q: Tensor, k: Tensor, mixing: Mixing, tall: int) -> Iterator[Group]:
    """Every example and head, by the shapes alone; ``tall`` queries are computed at once."""
    (batch, heads), keys, gate = q.shape[:2], k.shape[2], mixing.gate
    step = max(1, UNREAD // max(1, heads * tall * keys))
    for start in range(0, batch, step):
        at = slice(start, min(start + step, batch))
        bounds = None if mixing.key_range is None else mixing.key_range[at]
        yield Group(at, slice(None), slice(None), 0, keys, bounds, True, None if gate is None else gate[at] == 0)


def groups(q: Tensor, k: Tensor, mixing: Mixing, max_examples: int) -> Iterator[Group]:
    """Every example and every head whose gate is not 0, by the values of the gates and key ranges.

    Consecutive examples whose gates are 0 at the same heads share a group, at most ``max_examples`` of them.
    """
    (batch, heads), key_heads, keys = q.shape[:2], k.shape[1], k.shape[2]
    key_range, gate = mixing.key_range, mixing.gate
    is_open = [[True] * heads] * batch if gate is None else (gate != 0).tolist()
    start = 0
    while start < batch:
        stop = start + 1
        while stop < min(start + max_examples, batch) and is_open[stop] == is_open[start]:
            stop += 1
        low, high, bounds = 0, keys, None
        if key_range is not None:
            bounds = key_range[start:stop]
            low = max(0, int(bounds[:, 0].min()))
            high = max(low, min(keys, int(bounds[:, 1].max())))  # ranges may be empty, first > last
        examples, bounds = slice(start, stop), None if one_range(bounds) else bounds
        for n, (of_query, of_key) in enumerate(_open_heads(is_open[start], heads // key_heads)):
            yield Group(examples, of_query, of_key, low, high, bounds, n == 0)
        start = stop


def _open_heads(is_open: list[bool], shared: int) -> Iterator[tuple[Heads, Heads]]:
    """Heads and their key heads: first all heads of the key heads without a gate of 0, then runs of neighbouring heads.

    The first group is large because single heads would be products too small for many threads. No group uses a key head
    twice, so each can assign to that key head's gradient.
    """
    of_key = [range(start, start + shared) for start in range(0, len(is_open), shared)]
    whole = [j for j, heads in enumerate(of_key) if all(is_open[h] for h in heads)]
    if whole:
        yield _index([h for j in whole for h in of_key[j]]), _index(whole)
    for j, heads in enumerate(of_key):
        if j not in whole:
            for found, run in groupby(heads, is_open.__getitem__):
                if found:
                    yield _index(list(run)), slice(j, j + 1)


def _index(heads: list[int]) -> Heads:
    neighbours = heads[-1] - heads[0] == len(heads) - 1
    return slice(heads[0], heads[-1] + 1) if neighbours else torch.tensor(heads)


class Rectangle(NamedTuple):
    """Queries and keys whose attention a kernel without key ranges can compute."""

    queries: slice
    keys: slice
    causal: bool = False  # query i of the rectangle sees its keys j <= i
    mask: Tensor | None = None  # [queries, keys] bool, True where the query sees the key


def rectangles(queries: int, keys: int, mixing: Mixing, low: int, high: int) -> Iterator[Rectangle]:
    """Rectangles of all pairs that see each other if keys [low, high) are valid; each query in them sees a key."""
    offset, window = keys - queries, mixing.window  # query i is at position i + offset
    if low >= high:
        return
    if not mixing.causal:
        yield Rectangle(slice(0, queries), slice(low, high))
        return
    start = max(0, low - offset)  # the first query that sees a key
    stop = queries if window is None else min(queries, high - offset + window - 1)  # after the last such query
    if window is None:
        if start == low - offset:  # that query sees one key, so the rectangle is causal from its corner
            full = max(start, min(queries, high - offset))
            if start < full:
                yield Rectangle(slice(start, full), slice(low, low + full - start), causal=True)
            start = full
        full = max(start, min(queries, high - offset - 1))  # the first query that sees all keys
        if full < queries:
            yield Rectangle(slice(full, queries), slice(low, high))
        stop = full
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        seen = slice(low if window is None else max(low, first + offset - window + 1), min(high, last + offset))
        i, j = torch.arange(first, last)[:, None] + offset, torch.arange(seen.start, seen.stop)
        mask = j <= i if window is None else (j <= i) & (j > i - window)
        yield Rectangle(slice(first, last), seen, mask=mask)

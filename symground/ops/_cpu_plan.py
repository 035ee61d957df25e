"""How the CPU cuts attention up: examples that go together, and rectangles of queries × keys for a flash kernel.

So that no copy of k and v is made to hide what stands outside a range, and no mask of size B·T·S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROW = 2**20  # products: while examples have fewer than this together, they go together
CHUNK = 256  # queries in a rectangle that needs a mask


class Group(NamedTuple):
    """Consecutive examples, and the keys [low, high) that one of them may read."""

    examples: slice
    low: int
    high: int
    bounds: Tensor | None  # [examples,2] where they differ in that, else None

    @property
    def size(self) -> int:
        return self.examples.stop - self.examples.start  # type: ignore[no-any-return]

    def readable(self, x: Tensor) -> Tensor:
        """The group's part of keys or values; where ranges differ, a copy with 0 where an example may not read."""
        x = x[self.examples, :, self.low : self.high]
        return x if self.bounds is None else x.masked_fill(self.outside()[:, None, :, None], 0.0)

    def outside(self, first: int | None = None, last: int | None = None) -> Tensor:
        """[examples, keys] True at keys outside the example's own range."""
        assert self.bounds is not None
        j = torch.arange(self.low if first is None else first, self.high if last is None else last)
        return (j < self.bounds[:, :1]) | (j >= self.bounds[:, 1:])


def one_range(key_range: Tensor | None) -> bool:
    """Whether all examples may read the same keys."""
    return key_range is None or bool((key_range == key_range[:1]).all())


def groups(batch: int, keys: int, key_range: Tensor | None, together: int) -> Iterator[Group]:
    """The batch in groups of ``together`` examples, at least one."""
    together = max(1, together)
    for start in range(0, batch, together):
        examples = slice(start, min(start + together, batch))
        if key_range is None:
            yield Group(examples, 0, keys, None)
            continue
        bounds = key_range[examples]
        low, high = int(bounds[:, 0].min()), int(bounds[:, 1].max())
        yield Group(examples, low, high, None if one_range(bounds) else bounds)


class Rectangle(NamedTuple):
    """Queries and keys of which a kernel without key ranges can compute the attention."""

    queries: slice
    keys: slice
    causal: bool = False  # query i of the rectangle sees its keys j <= i
    mask: Tensor | None = None  # [queries, keys] bool of the pairs that see each other


def rectangles(
    queries: int, keys: int, causal: bool, low: int, high: int, window: int | None
) -> Iterator[Rectangle]:  # fmt: skip
    """All pairs that see each other when keys [low, high) are valid; every query in here sees a key."""
    offset = keys - queries  # query i is at position i + offset
    if low >= high:
        return
    if not causal:
        yield Rectangle(slice(0, queries), slice(low, high))
        return
    start = max(0, low - offset)  # the first query that sees a key
    stop = queries if window is None else min(queries, high - offset + window - 1)  # after the last one
    if window is None:
        if start == low - offset:  # it sees exactly one: causal from the corner
            full = max(start, min(queries, high - offset))
            if start < full:
                yield Rectangle(slice(start, full), slice(low, low + full - start), causal=True)
            start = full
        full = max(start, min(queries, high - offset - 1))  # the first query that sees all
        if full < queries:
            yield Rectangle(slice(full, queries), slice(low, high))
        stop = full
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        seen = slice(low if window is None else max(low, first + offset - window + 1), min(high, last + offset))
        i, j = torch.arange(first, last)[:, None] + offset, torch.arange(seen.start, seen.stop)
        mask = j <= i if window is None else (j <= i) & (j > i - window)
        yield Rectangle(slice(first, last), seen, mask=mask)

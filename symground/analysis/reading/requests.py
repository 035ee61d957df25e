"""What is asked of attention weights, whatever text or pass it is read of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.analysis.checks import tensor_of
from symground.errors import choice, flag, integer

#: The keywords of `attention`, one of which an error may suggest.
KEYWORDS = (
    "input_ids", "attention_mask", "rows", "groups", "source_groups", "received", "summary", "topk", "block", "reduce",
    "layers", "batch_size", "limit",
)  # fmt: skip


class Request(NamedTuple):
    """What is asked for; `request_of` checks it."""

    rows: Any
    """ "last", "all", positions [B,R], or None."""
    received: bool
    summary: bool
    topk: int | None
    block: int
    """0 asks for no blocks."""
    largest: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for but perhaps sums between groups."""
        return self.rows is None and not (self.received or self.summary or self.topk or self.block)


def request_of(rows: Any, received: Any, summary: Any, topk: Any, block: Any, reduce: Any) -> Request:
    """The arguments of `attention` and `observe` of these names.

    Raises:
        ValueError: one has a wrong type or is out of its range.
    """
    if isinstance(rows, str):
        choice("rows", rows, ("last", "all"))
    return Request(
        rows, flag("received", received), flag("summary", summary), None if topk is None else integer("topk", topk, 1),
        0 if block is None else integer("block", block, 1), choice("reduce", reduce, ("sum", "max")) == "max",
    )  # fmt: skip


def rows_of(rows: Any, last: Tensor | None, examples: int, length: int) -> Tensor | None:
    """Positions [N,R] of the queries whose rows are asked for; ``last`` [N] is None where no text has a last word.

    Raises:
        ValueError: positions of another shape or out of range, or "last" without a text.
    """
    if rows is None:
        return None
    if isinstance(rows, str):
        if rows == "all":
            return torch.arange(length).expand(examples, -1)
        if last is None:
            raise ValueError(
                "rows: expected 'all', positions [B,R] or None, since no text that asks has a last word; got 'last'"
            )
        return last[:, None]
    found = tensor_of(rows, "rows")
    if found.ndim != 2 or len(found) != examples or found.is_floating_point() or found.dtype == torch.bool:
        raise ValueError(f"rows: expected positions [B,R] = [{examples}, any], got {list(found.shape)} {found.dtype}")
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < length:
        wrong = found[(found < 0) | (found >= length)][0]
        raise ValueError(f"rows: expected positions from 0 to {length - 1}, got {int(wrong)}")
    return found.long().cpu()


def check_asked(names: Collection[str]) -> None:
    """Refuse a request for nothing; ``names`` are those of the variables.

    Raises:
        ValueError: there is none.
    """
    if not names:
        raise ValueError("rows: expected something to read: rows, groups, received, summary, topk or block; got none")


def check_limit(needed: int, limit: int | None) -> None:
    if limit is not None and needed > integer("limit", limit, 0):
        raise ValueError(f"limit: the result needs {needed} bytes in host memory, got a limit of {limit}; ask for less")

"""The registered ops of what is read off M, which every implementation shares. They have no derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from symground.ops.common.register import Op
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.ssd.scan import Scan
from symground.ops.ssd.weights import tiles


class Ops(NamedTuple):
    """An implementation of the public ops, which expects checked arguments; mass is a sum of what is received."""

    ssd_rows: Callable[[Scan, Tensor], Tensor]
    ssd_received: Callable[[Scan, Tensor | None, int], Tensor]
    ssd_mass: Callable[[Scan, Tensor | None, int], Tensor]
    refuses: Callable[[Tensor], Exception | None]


def register(impl: str, reads: bool, refuses: Callable[[Tensor], Exception | None], cpu_only: bool = False) -> Ops:
    """Register ``symground::ssd_rows_<impl>`` and ``ssd_received_<impl>``; ``reads``: values may be read."""
    op = partial(Op, impl=impl, cpu_only=cpu_only)
    rows = op(
        "ssd_rows", tiles.rows, [Scan, "Tensor rows"], lambda scan, rows: _zeros(scan, rows.shape[1]),
        is_empty=lambda scan, rows: scan.x.numel() == 0 or rows.numel() == 0,
    )  # fmt: skip
    received = op(
        "ssd_received", partial(tiles.received, reads=reads), [Scan, "Tensor? query", "int count"],
        lambda scan, query, count: _zeros(scan, count), is_empty=lambda scan, *rest: scan.x.numel() == 0,
    )  # fmt: skip
    return Ops(rows, received, received, refuses)


def _zeros(scan: Scan, count: int) -> Any:
    batch, length, heads, _ = scan.x.shape
    return scan.x.new_zeros(batch, heads, count, length, dtype=accumulation_dtype(scan.x))

"""Choosing the implementation of an op: by device when the caller leaves it open, exactly as named otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., object])

#: For each device type, the implementations that suit it, best first.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "cuda": ("triton", "cuda", "reference"),
    "cpu": ("cpu", "reference"),
}


def choose(op: str, table: Mapping[str, F], impl: str | None, like: Tensor) -> F:
    """Return the implementation of ``op`` to run.

    ``impl=None`` takes the best one in ``table`` for the device of ``like``. A named implementation is returned as
    named or refused with ValueError; it is never replaced by another.
    """
    if impl is None:
        impl = next(name for name in _PREFERENCE.get(like.device.type, ("reference",)) if name in table)
    if impl not in table:
        raise ValueError(f"impl: ops.{op} has {', '.join(map(repr, sorted(table)))}; got {impl!r}")
    return table[impl]

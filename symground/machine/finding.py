"""What a part of the check finds."""

from __future__ import annotations

from typing import Any, NamedTuple


class Finding(NamedTuple):
    """One line of the check; a process passes it on as JSON."""

    part: str
    """The implementation, or what else was looked at."""
    device: str
    status: str
    """"right", "wrong", or "absent": it cannot run here, which is no fault."""
    said: str
    op: str = ""
    dtype: str = ""
    error: float | None = None
    """The largest error, as a part of the largest number of a result."""
    eager: float | None = None
    """The same of the reference in the dtype, which is plain PyTorch."""
    more: dict[str, Any] = {}  # noqa: RUF012
    """Further numbers, by name."""

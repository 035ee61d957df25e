"""What a part of the check finds."""

from __future__ import annotations

from typing import Any, NamedTuple


class Finding(NamedTuple):
    """One line of the check; a process passes it on as JSON."""

    part: str
    """The implementation, or what else was looked at."""
    device: str
    status: str
    """"right", "wrong", "absent": it cannot run here, which is no fault; or "untried": its process ended before it."""
    said: str
    op: str = ""
    dtype: str = ""
    error: float | None = None
    """The largest error, as a part of the largest number of a result."""
    eager: float | None = None
    """The same of the reference in the dtype, which is plain PyTorch."""
    more: dict[str, Any] = {}  # noqa: RUF012
    """Further numbers, by name."""


def said_by(error: BaseException) -> str:
    """The type of an error, and the first line of its message; what follows it is advice, or a trace.

    A compiler's first line may be a place, which ends with a colon. The last line then says what is wrong there.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first, last = lines[0], lines[-1]
    text = f"{first} {last}" if first.endswith(":") and len(lines) > 1 else first
    return f"{type(error).__name__}: {text}"

"""What the user has switched off with ``SYMGROUND_DISABLE``."""

from __future__ import annotations

import os

from symground.errors import DISABLE, switched_off

#: Read once: a compiled graph uses it as a constant.
DISABLED = frozenset(switched_off(os.environ.get(DISABLE, "")))


def refusal(name: str) -> Exception | None:
    """The error of an implementation that is switched off, else None."""
    return RuntimeError(f"impl: {name!r} is switched off by {DISABLE}") if name in DISABLED else None

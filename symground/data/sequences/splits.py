"""The choice of documents kept from training. It depends on names only, not on the order or on other documents."""

from __future__ import annotations

import hashlib


def share_of(name: str) -> float:
    """A number from 0 to below 1 that depends only on the name; below the validation share it is kept from training."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32

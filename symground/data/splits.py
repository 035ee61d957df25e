"""Which documents are kept from training: a matter of their names, so that neither order nor others change it."""

from __future__ import annotations

import hashlib


def share_of(name: str) -> float:
    """A number from 0 to below 1 that depends on the name alone; names below the wanted share are kept apart."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32

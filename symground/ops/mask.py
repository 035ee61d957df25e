"""Which keys each query sees: the one definition that every attention op and every mask is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check


def valid_keys(
    queries: int, keys: int, causal: bool, key_range: Tensor | None, window: int | None, device: torch.device
) -> Tensor:
    """[B or 1, 1, T, S] bool: True where query i sees key j.

    Causal is aligned bottom-right, j <= i + S - T; ``window`` keeps the last of those; ``key_range`` [B,2] holds each
    example's first and one-past-last valid key.
    """
    last = torch.arange(queries, device=device)[:, None] + (keys - queries)  # [T,1]
    j = torch.arange(keys, device=device)[None, :]  # [1,S]
    valid = (j <= last) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    if window is not None:
        valid = valid & (j > last - window)
    if key_range is not None:
        valid = valid & (j >= key_range[:, :1, None]) & (j < key_range[:, 1:, None])  # [B,T,S]
        return valid[:, None]
    return valid[None, None]


def key_range_of(mask: Tensor) -> Tensor:
    """[B,S] mask of the valid keys → [B,2] first and one-past-last valid key of each example.

    Raises:
        ValueError: valid keys that are not contiguous.
    """
    valid = mask.bool()
    first = valid.int().argmax(-1)  # of the first True; 0 where there is none
    last = first + valid.sum(-1)
    positions = torch.arange(valid.shape[1], device=valid.device)
    contiguous = (positions >= first[:, None]) & (positions < last[:, None])
    check.values(
        (contiguous == valid).all(-1),
        "attention_mask: expected the valid tokens of each example to be contiguous (padding at the ends only)",
        mask,
    )
    return torch.stack((first, last), -1)

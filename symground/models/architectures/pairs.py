"""Masks of all pairs of queries and keys, as code outside of transformers makes them: what they say, if they say it."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing, key_range_of, valid_keys

#: A score with at most this added is hidden: its attention weight is exactly 0 if any key is visible.
HIDES = -1e4


def seen_pairs(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The pairs [B or 1,H or 1,T,S] that a mask, bool or added to the scores, shows.

    Raises:
        ValueError: the mask biases scores, or has another shape.
    """
    queries, keys = query.shape[2], key.shape[2]
    floats = mask.is_floating_point()
    fits = mask.ndim == 4 and mask.shape[2] in (1, queries) and mask.shape[3] == keys
    if not fits or not (floats or mask.dtype == torch.bool):
        raise ValueError(
            f"attention_mask: expected [B,S], or bools or floats for all pairs [B,H,{queries},{keys}]; got "
            f"{list(mask.shape)} {mask.dtype}"
        )
    mask = mask.expand(-1, -1, queries, -1)
    seen = mask == 0 if floats else mask
    if floats and not bool((seen | (mask <= HIDES)).all()):
        biased = mask[~(seen | (mask <= HIDES))][0].item()
        raise ValueError(
            f"attention_mask: symground's attention takes no bias of scores: expected 0 (seen) or at most {HIDES:g} "
            f"(hidden) for each pair, got {biased:g}; model.set_attn_implementation('sdpa') computes it untraced"
        )
    return seen


def range_of_pairs(mask: Tensor, query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """A mask of all pairs [B or 1,H or 1,T,S], bool or added to the scores, as key ranges [B,2].

    Raises:
        ValueError: the mask biases scores, or is not that of this layer, with its window and padding at the ends.
    """
    found = _range_of_seen(seen_pairs(mask, query, key), causal, window)
    if found is None:
        wanted = "causal masks" if causal else "masks of all positions"
        wanted += "" if window is None else f" with this layer's window of {window} keys and"
        raise ValueError(
            f"attention_mask: symground supports {wanted} with padding at the ends only, and this mask of shape "
            f"{list(mask.shape)} hides other pairs; model.set_attn_implementation('sdpa') computes it untraced"
        )
    return found.expand(len(query), -1)


def of_seen(seen: Tensor) -> Mixing | None:
    """What pairs [B or 1,H or 1,T,S] bool that are visible say: causal or not, window, padding, packed texts.

    None if they say more.
    """
    (queries, keys), device = seen.shape[2:], seen.device
    causal = not bool((seen & ~valid_keys(queries, keys, True, None, None, device)).any())
    distance = (torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]).abs()
    farthest = distance * (seen & ~seen.all(-1, keepdim=True))  # [B or 1,H or 1,T,S]; rows of padding may see all
    windows = (None, int(farthest.max()) + 1)
    texts: list[Tensor | None] = [None]
    if causal and queries == keys:  # a text begins where a token does not see the one before it
        begins = torch.nn.functional.pad(~seen[:, 0].diagonal(-1, 1, 2), (1, 0))
        texts.append(begins.cumsum(-1))
    for segments in texts:
        for window in windows:
            found = _range_of_seen(seen, causal, window, segments)
            if found is not None:
                return Mixing(causal, key_range=found, window=window, segments=segments)
    return None


def _range_of_seen(seen: Tensor, causal: bool, window: int | None, segments: Tensor | None = None) -> Tensor | None:
    """Key ranges [B or 1,2] of visible pairs; None if they are not those of such a mask with padding at the ends."""
    queries, keys = seen.shape[2:]
    each = torch.arange(keys, device=seen.device)
    by_layer = valid_keys(queries, keys, causal, None, window, seen.device)
    if segments is not None:
        by_layer = by_layer & (segments[:, None, :, None] == segments[:, None, None])
    # Rows of padding may see nothing or all keys, as the code that makes masks likes it. One that sees itself alone
    # could be a row of the text.
    beside = ~seen.any(-1) | seen.all(-1)  # [B,H,T]
    # The last query whose window contains each key: if even this query does not see a key, the key is padding. But this
    # query may be padding too, and then all that any query sees is valid.
    last = (each + (keys if window is None else window) - 1).clamp(max=keys - 1) - (keys - queries)
    for valid in (seen[:, 0].any(1), seen[:, 0, last.clamp(min=0), each] & (last >= 0)):  # [B,S]
        rows = valid[:, None, keys - queries :]
        same = (seen == by_layer & valid[:, None, None]).all(-1)
        if bool((same | (beside & ~rows)).all()):
            return key_range_of(valid)
    return None

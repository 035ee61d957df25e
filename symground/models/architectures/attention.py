"""``attn_implementation="symground"`` for transformers: its attention function and its mask function.

Both are needed. With the attention function alone, transformers builds no mask, and padding is silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from symground import ops
from symground.models.hooks import attention_row, check_batch, shown, tap_of
from symground.ops.attention.mixing import Mixing, key_range_of, valid_keys

NAME = "symground"
UNPADDED = "symground-unpadded"
#: Attention variants that change the scores in a way `ops.attention` has no argument for.
_UNSUPPORTED = ("position_bias",)
#: A score with at most this added is hidden: its attention weight is exactly 0 if any key is visible.
_HIDES = -1e4


def key_range_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask as key ranges [B,1,1+W,2]: first and one-past-last valid key of each example; None if all are valid.

    The mask has four dimensions because transformers passes such a mask on unchanged, and int64 tells it from others.
    W is the sliding window, or 0 if none hides a key; the layer must pass the same window to the attention function.
    With a key-value cache of fixed size, the last dimension is 3, and the third number is how many keys are in use. If
    all keys are valid and there is a window, the last dimension is 0. The numbers of an example are stored once.

    Raises:
        ValueError: the mask is not causal, with or without a window, with padding at the ends only.
    """
    window = None
    if mask_function is not causal_mask_function:
        window = kwargs.get("local_size")
        if window is None or not _is_window(mask_function, window, q_length, kv_length):
            raise ValueError(
                "attention_mask: symground supports causal masks, with or without a sliding window, with padding only; "
                "this model asks for another"
            )
    found = None if attention_mask is None else key_range_of(attention_mask[:, kv_offset : kv_offset + kv_length])
    used = q_offset + q_length - kv_offset
    if isinstance(used, Tensor) or used != kv_length:
        used = torch.as_tensor(used, device=device).expand(batch_size)
        first, last = (torch.zeros_like(used), used) if found is None else found.unbind(-1)
        found = torch.stack([first, torch.minimum(last, used), used], -1)
    hides = 0 if window is None or window >= kv_length else int(window)
    if found is None and not hides:
        return None
    found = torch.empty(batch_size, 0, dtype=torch.int64, device=device) if found is None else found
    return found[:, None, None].expand(-1, -1, 1 + hides, -1)


def _is_window(mask_function: Any, window: int, queries: int, keys: int) -> bool:
    """Whether each query sees exactly its last ``window`` keys, by a trial around the two edges of the mask."""
    at = torch.arange(min(max(queries, keys), 64) + 1)
    query, key = (at + window)[:, None], torch.cat([at + window, at])[None]
    try:
        found = mask_function(torch.tensor(0), torch.tensor(0), query, key)
    except Exception:  # for example, a mask function that indexes the batch
        return False
    expected = (key <= query) & (key > query - window)
    return isinstance(found, Tensor) and torch.equal(found.expand_as(expected), expected)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer [B,H,T,D] → [B,T,H,D], by `ops.attention` with the probes and gate of the layer's tap.

    If the tap has no probe or gate, and every key is valid or attention dropout is on, it is computed by
    scaled_dot_product_attention, whose output is the same; but not with capped scores or a sink, which it lacks.

    Raises:
        ValueError: an attention variant that symground does not support; the message names it.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: symground's attention does not support {name}")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # cast as for scaled_dot_product_attention
        query, key, value = (_lowered(x, torch.get_autocast_dtype(device)) for x in (query, key, value))
        with torch.autocast(device, enabled=False):
            return attention_forward(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    causal = getattr(module, "is_causal", True)
    window = kwargs.get("sliding_window")
    window = None if window is None or window >= key.shape[2] else int(window)
    key_range, in_use = _ranges(module, attention_mask, query, key, causal, window)
    if in_use is not None and (query.shape[2] > 1 or window is not None):
        # A causal mask is aligned to the last key, so unused keys are cut off. A single query needs only the range,
        # which does not wait for the GPU.
        key, value = (x[:, :, : int(in_use)] for x in (key, value))
        window = None if window is None or window >= key.shape[2] else window
    mixing = Mixing(
        causal, scaling, key_range, window, softcap=kwargs.get("softcap"), sink=kwargs.get("s_aux")
    ).resolved(query)
    tap = tap_of(module)
    check_batch(tap, len(query))
    if dropout > 0 and not tap.idle:
        raise ValueError("model: tracing and ablation need model.eval(), or an attention dropout of 0")
    if dropout > 0 and mixing.extended:
        raise ValueError(
            f"model: {type(module).__name__} has capped scores or a sink, which symground's attention computes without "
            f"dropout; expected model.eval(), or an attention dropout of 0; got {dropout}"
        )
    if tap.mix is not None:
        if kwargs.get("sliding_window") is not None or mixing.extended:
            raise ValueError(
                "model: an attention with a sliding window, a sink or capped scores is not mixed otherwise"
            )
        out = tap.mix(query, key, value, mixing.scale_of(query))
    elif tap.plain and not mixing.extended and (dropout > 0 or key_range is None):
        queries, keys = query.shape[2], key.shape[2]
        plain = causal and queries == keys and key_range is None and window is None
        mask = None if plain else valid_keys(queries, keys, causal, key_range, window, query.device)
        gqa = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=plain, scale=scaling, enable_gqa=gqa
        )
    else:
        out, _ = ops.attention(
            query,
            key,
            value,
            causal,
            scaling,
            key_range,
            window,
            gate=tap.gate,
            saliency_probe=tap.saliency_probe,
            flow_probe=tap.flow_probe,
            query_groups=tap.query_groups,
            key_groups=tap.key_groups,
            softcap=mixing.softcap,
            sink=mixing.sink,
        )
    if tap.row_probe is not None:
        added = attention_row(tap.row_probe, query, key, value, mixing)
        out = out + (added if tap.gate is None else ops.gate_heads(added.transpose(1, 2), tap.gate).transpose(1, 2))
    return shown(tap, out.transpose(1, 2)).contiguous(), None  # some models call view on it


def _lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The argument as autocast casts it."""
    return x if x.dtype == torch.float64 else x.to(dtype)


def _ranges(
    module: nn.Module, mask: Tensor | None, query: Tensor, key: Tensor, causal: bool, window: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """A layer's mask as key ranges [B,2], and the number of keys in use if the key-value cache has a fixed size.

    Raises:
        ValueError: the mask has another window than the layer passes, or symground does not support the mask.
    """
    if mask is not None and not _is_key_range(mask):
        return _range_of_pairs(mask, query, key, causal, window), None
    made = getattr(getattr(module, "config", None), "_attn_implementation", None) != UNPADDED
    meant = 0 if mask is None else mask.shape[2] - 1
    if made and meant != (window or 0):
        in_mask, in_layer = (f"a sliding window of {w} keys" if w else "no sliding window" for w in (meant, window))
        raise ValueError(
            f"model: its attention mask has {in_mask}, and {type(module).__name__} tells the attention function of "
            f"{in_layer}; symground does not support this model: model.set_attn_implementation('sdpa')"
        )
    if mask is None or not mask.shape[3]:
        return None, None
    if len(mask) != len(query):
        raise ValueError(f"attention_mask: expected {len(query)} examples, got {len(mask)}")
    found = mask[:, 0, 0]
    return found[:, :2], found[0, 2] if found.shape[1] == 3 else None


def _is_key_range(mask: Tensor) -> bool:
    """Whether a mask has the form that `key_range_mask` returns."""
    return mask.dtype == torch.int64 and mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[3] in (0, 2, 3)


def _range_of_pairs(mask: Tensor, query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """A mask of all pairs [B or 1,H or 1,T,S], bool or added to the scores, as key ranges [B,2].

    Raises:
        ValueError: the mask biases scores, or is not causal with this layer's window and padding at the ends.
    """
    queries, keys = query.shape[2], key.shape[2]
    floats = mask.is_floating_point()
    if mask.ndim != 4 or tuple(mask.shape[2:]) != (queries, keys) or not (floats or mask.dtype == torch.bool):
        raise ValueError(
            f"attention_mask: expected [B,S], or bools or floats for all pairs [B,H,{queries},{keys}]; got "
            f"{list(mask.shape)} {mask.dtype}"
        )
    seen = mask == 0 if floats else mask
    if floats and not bool((seen | (mask <= _HIDES)).all()):
        biased = mask[~(seen | (mask <= _HIDES))][0].item()
        raise ValueError(
            f"attention_mask: symground's attention takes no bias of scores: expected 0 (seen) or at most {_HIDES:g} "
            f"(hidden) for each pair, got {biased:g}; model.set_attn_implementation('sdpa') computes it untraced"
        )
    each = torch.arange(keys, device=mask.device)
    # The last query whose window contains each key. If even this query does not see a key, the key is padding.
    last = (each + (keys if window is None else window) - 1).clamp(max=keys - 1) - (keys - queries)
    valid = seen[:, 0, last.clamp(min=0), each] & (last >= 0)  # [B,S]
    expected = valid_keys(queries, keys, causal, None, window, mask.device) & valid[:, None, None]
    rows = valid[:, None, keys - queries :, None]  # the rows of padding are not compared
    if not bool(((seen == expected) | ~rows).all()):
        wanted = "causal masks" if window is None else f"causal masks with this layer's window of {window} keys and"
        raise ValueError(
            f"attention_mask: symground supports {wanted} with padding at the ends only, and this mask of shape "
            f"{list(mask.shape)} hides other pairs; model.set_attn_implementation('sdpa') computes it untraced"
        )
    return key_range_of(valid).expand(len(query), -1)


def register() -> None:
    """Register ``attn_implementation="symground"`` with transformers. It may be called more than once."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, key_range_mask)
    # This name has no mask function, so transformers neither builds nor inspects a mask.
    AttentionInterface.register(UNPADDED, attention_forward)


@contextmanager
def unpadded(model: PreTrainedModel) -> Iterator[None]:
    """Within the block each row is one causal text without padding: no mask is built, and torch.compile sees none.

    Under torch.compile, transformers cannot tell whether a row packs several texts, and builds a mask for that case.
    """
    if model.config._attn_implementation != NAME:
        yield
        return
    model.set_attn_implementation(UNPADDED)
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)

"""``attn_implementation="symground"`` for transformers: its attention function and its mask function.

Both are needed: with the attention function alone transformers builds no mask and padding is silently ignored.
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
from symground.models.mixers import check_batch, shown, tap_of
from symground.models.rows import attention_row
from symground.ops.mask import key_range_of, valid_keys

NAME = "symground"
_UNPADDED = "symground-unpadded"
#: Attention variants that change the scores in a way `ops.attention` has no argument for.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def key_range_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask as a [B,2] key range: first and one-past-last valid key of each example; None when all are valid.

    A sliding window is no part of it: the layer tells it to the attention function.

    Raises:
        ValueError: a mask that is not causal, with or without a window, with padding on one side or both.
    """
    if mask_function is not causal_mask_function:
        window = kwargs.get("local_size")
        if window is None or not _is_window(mask_function, window, q_length, kv_length):
            raise ValueError(
                "attention_mask: symground supports causal masks, with or without a sliding window, with padding only; "
                "this model asks for another"
            )
    if isinstance(q_offset, int) and q_offset + q_length != kv_offset + kv_length:
        raise ValueError("past_key_values: symground supports the dynamic cache only; got one of fixed size")
    return None if attention_mask is None else key_range_of(attention_mask[:, kv_offset : kv_offset + kv_length])


def _is_window(mask_function: Any, window: int, queries: int, keys: int) -> bool:
    """Whether a mask is that of the last ``window`` keys of each query, tried around its two edges."""
    at = torch.arange(min(max(queries, keys), 64) + 1)
    query, key = (at + window)[:, None], torch.cat([at + window, at])[None]
    try:
        found = mask_function(torch.tensor(0), torch.tensor(0), query, key)
    except Exception:  # one that looks into the batch, say
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
    """Attention of one layer [B,H,T,D] → [B,T,H,D], through `ops.attention` with what the layer's tap asks.

    Where the tap asks nothing of the mixing and every key is valid, or attention dropout is on, it runs through
    scaled_dot_product_attention, which gives the same output.

    Raises:
        ValueError: an attention variant that symground does not support, by its name.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: symground's attention does not support {name}")
    if attention_mask is not None and tuple(attention_mask.shape) != (query.shape[0], 2):
        raise ValueError(
            f"attention_mask: expected [B,S] with padding at the ends, or none; got shape {list(attention_mask.shape)}"
        )
    window = kwargs.get("sliding_window")
    window = None if window is None or window >= key.shape[2] else int(window)
    tap = tap_of(module)
    check_batch(tap, len(query))
    causal = getattr(module, "is_causal", True)
    if dropout > 0 and not tap.idle:
        raise ValueError("model: tracing and ablation need model.eval(), or an attention dropout of 0")
    if tap.mix is not None:
        if kwargs.get("sliding_window") is not None:
            raise ValueError("model: an attention with a sliding window is not mixed otherwise")
        out = tap.mix(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    elif tap.plain and (dropout > 0 or attention_mask is None):
        queries, keys = query.shape[2], key.shape[2]
        plain = causal and queries == keys and attention_mask is None and window is None
        mask = None if plain else valid_keys(queries, keys, causal, attention_mask, window, query.device)
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
            attention_mask,
            window,
            gate=tap.gate,
            saliency_probe=tap.saliency_probe,
            flow_probe=tap.flow_probe,
            query_groups=tap.query_groups,
            key_groups=tap.key_groups,
        )
    if tap.rows is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        added = attention_row(tap.rows, query, key, value, scale, causal, attention_mask, window)
        out = out + (added if tap.gate is None else ops.gate_heads(added.transpose(1, 2), tap.gate).transpose(1, 2))
    return shown(tap, out.transpose(1, 2)), None


def register() -> None:
    """Make ``attn_implementation="symground"`` known to transformers. Safe to call more than once."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, key_range_mask)
    # Without a mask function of its own transformers builds no mask for it, and has nothing to find out about one.
    AttentionInterface.register(_UNPADDED, attention_forward)


@contextmanager
def unpadded(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model takes its rows as causal and whole: no mask is made, and torch.compile sees none.

    While it compiles, transformers cannot tell several texts packed into a row from one, and masks for the former.
    """
    if model.config._attn_implementation != NAME:
        yield
        return
    model.set_attn_implementation(_UNPADDED)
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)

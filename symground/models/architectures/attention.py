"""``attn_implementation="symground"`` for transformers: its attention function and its mask function.

Both are needed. With the attention function alone, transformers builds no mask, and padding is silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from symground import ops
from symground.models.architectures.masks import NAME, UNPADDED, key_range_mask, read
from symground.models.hooks import Tap, attention_row, check_batch, shown, tap_of
from symground.ops.attention.mixing import Mixing
from symground.ops.common.compiled import opaque

#: Attention variants that change the scores in a way `ops.attention` has no argument for.
_UNSUPPORTED = ("position_bias",)
NO_MATRIX = (
    "output_attentions: symground never builds the attention matrix; symground.attention and symground.observe read "
    "what is in it"
)


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
            raise ValueError(
                f"model: {type(module).__name__} adds a number for each pair of positions to its scores ({name}), "
                "which symground's attention does not compute"
            )
    if kwargs.get("output_attentions"):  # of a model that is not attached and shares an attached one's configuration
        raise ValueError(NO_MATRIX)
    causal = kwargs.get("is_causal")  # CLIP's layers are told by the call
    if causal is None:
        causal = getattr(module, "is_causal", "CrossAttention" not in type(module).__name__)
    window = kwargs.get("sliding_window")
    window = None if window is None or window >= key.shape[2] else int(window)
    mask = read(module, attention_mask, query, key, causal, window)
    causal = causal if mask.causal is None else mask.causal
    segments, blocks, window = mask.segments, mask.blocks, mask.window
    whole = query.shape[2] > 1 or window is not None or segments is not None
    if mask.in_use is not None and (whole or tap_of(module).read):
        # A causal mask is aligned to the last key, so unused keys are cut off. A single query that nothing reads needs
        # only the range, which does not wait for the GPU.
        used = int(mask.in_use)
        key, value = key[:, :, :used], value[:, :, :used]
        segments, blocks = (None if x is None else x[:, :used] for x in (segments, blocks))
        window = None if window is None or window >= key.shape[2] else window
    key_range, softcap, sink = mask.key_range, kwargs.get("softcap"), kwargs.get("s_aux")
    mixing = Mixing(causal, scaling, key_range, window, softcap=softcap, sink=sink, segments=segments, blocks=blocks)
    return attend(module, query, key, value, mixing, dropout, mask.all_keys), None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mixing: Mixing, dropout: float,
    all_keys: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The heads' outputs [B,T,H,Dv] of q [B,H,T,D], k and v, with what the tap of ``module`` asks.

    ``all_keys`` [B,T] are the queries that see all keys in place of those in the key range.

    Raises:
        ValueError: the tap asks what this mixing or dropout does not allow.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):  # cast as for scaled_dot_product_attention
        query, key, value = (_lowered(x, torch.get_autocast_dtype(device)) for x in (query, key, value))
        with torch.autocast(device, enabled=False):
            return attend(module, query, key, value, mixing, dropout, all_keys)
    mixing = mixing.resolved(query)
    tap = tap_of(module)
    check_batch(tap, len(query))
    if dropout > 0 and not (tap.idle or (tap.apart and tap.only_reads)):
        raise ValueError(
            "model: tracing, flow and ablation need model.eval(), or an attention dropout of 0; "
            f"{type(module).__name__} drops {dropout} of its weights"
        )
    if dropout > 0 and not mixing.is_masks:
        has = {"capped scores": mixing.softcap, "a sink": mixing.sink, "slopes": mixing.slopes}
        what = " and ".join(name for name, x in has.items() if x is not None)
        raise ValueError(
            f"model: {type(module).__name__} has {what}, with which symground's attention has no dropout; expected "
            f"model.eval(), or an attention dropout of 0; got {dropout}"
        )
    if tap.query_groups is not None and tap.key_groups is not None:
        wanted = tap.query_groups.shape[1], tap.key_groups.shape[1]
        if wanted != (query.shape[2], key.shape[2]):
            raise ValueError(
                f"model: {type(module).__name__} mixes {query.shape[2]} queries and {key.shape[2]} keys, not the "
                f"{wanted[0]} and {wanted[1]} positions that it is given: parts of a text, or keys beside it, are not "
                "traced"
            )
    if tap.measure is not None:
        tap.measure(len(query), query.shape[2], key.shape[2])
    if tap.read and (tap.mix is not None or all_keys is not None):
        raise ValueError(f"model: the attention weights of {type(module).__name__} are not read beside its own mixing")
    if tap.mix is not None and (mixing.window is not None or mixing.extended or all_keys is not None):
        raise ValueError(
            "model: an attention with a window, a sink, capped scores, segments or blocks is not mixed otherwise"
        )
    if _is_both_ways(mixing) and (mixing.by_ids or mixing.slopes is not None):
        raise ValueError(
            f"model: {type(module).__name__} has a sliding window on both sides of a query with packed texts, blocks "
            "or slopes, which symground's attention does not compute"
        )
    out = _mixed(tap, query, key, value, mixing, dropout)
    if all_keys is not None:
        whole = _mixed(tap, query, key, value, mixing._replace(key_range=None), dropout)
        out = torch.where(all_keys[:, None, :, None], whole, out)
    return shown(tap, out.transpose(1, 2)).contiguous()  # some models call view on it


def _mixed(tap: Tap, query: Tensor, key: Tensor, value: Tensor, mixing: Mixing, dropout: float) -> Tensor:
    """The heads' outputs [B,H,T,Dv], by the cheapest function that gives what the tap asks."""
    lse = None
    enough = tap.plain and (dropout > 0 or (not mixing.extended and mixing.key_range is None))
    if tap.mix is not None:
        out = tap.mix(query, key, value, mixing.scale_of(query))
    elif enough and (tap.apart or not tap.read):
        queries, keys = query.shape[2], key.shape[2]
        plain = mixing.causal and queries == keys and mixing.key_range is None and mixing.window is None
        plain = plain and not mixing.by_ids
        mask = None if plain else mixing.valid(query, key)
        gqa = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=plain, scale=mixing.scale, enable_gqa=gqa
        )
    else:
        names = ("gate", "saliency_probe", "flow_probe", "query_groups", "key_groups")
        probes = {name: getattr(tap, name) for name in names}
        k, v, seen = _one_way(key, value, mixing)
        more = 0, k.shape[2] - key.shape[2]
        if more[1]:
            for name, fill in (("saliency_probe", 0), ("key_groups", -1)):
                probes[name] = None if probes[name] is None else pad(probes[name], more, value=fill)
        out, lse = ops.attention(query, k, v, **{**seen._asdict(), **probes})
    if tap.read:
        _show(tap, query, key, value, mixing, lse)
    if tap.row_probe is None:
        return out
    added = attention_row(tap.row_probe, query, key, value, mixing)
    return out + (added if tap.gate is None else ops.gate_heads(added.transpose(1, 2), tap.gate).transpose(1, 2))


@opaque
def _show(tap: Tap, query: Tensor, key: Tensor, value: Tensor, mixing: Mixing, lse: Tensor | None) -> None:
    """Call what reads the tap's attention weights; an LSE of None was not computed with the outputs."""
    with torch.no_grad():
        k, v, seen = _one_way(key, value, mixing)
        if lse is None:
            _, lse = ops.attention(query, k, v, **seen._asdict())
        for reader in tap.read:
            reader(query, k, lse, seen, key.shape[2])


def _is_both_ways(mixing: Mixing) -> bool:
    return mixing.window is not None and not mixing.causal


def _one_way(key: Tensor, value: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, Mixing]:
    """Keys, values and record as `ops.attention` takes them: a window on both sides of a query is a causal one there.

    With w - 1 keys of padding behind the others, query i is aligned to the key w - 1 after its own, the last it sees.
    """
    if not _is_both_ways(mixing):
        return key, value, mixing
    assert mixing.window is not None
    reach, keys = mixing.window - 1, key.shape[2]
    key_range = mixing.key_range
    if key_range is None:
        key_range = torch.tensor([[0, keys]], device=key.device).expand(len(key), -1)
    key, value = (pad(x, (0, 0, 0, reach)) for x in (key, value))
    return key, value, mixing._replace(causal=True, window=2 * reach + 1, key_range=key_range)


def _lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The argument as autocast casts it."""
    return x if x.dtype == torch.float64 else x.to(dtype)


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
